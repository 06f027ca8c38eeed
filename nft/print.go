package nft

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// contents is what the kernel adds to a ruleset in use, as text.
type contents struct {
	flags    uint32              // of the table
	elements map[string][]string // of sets with timeouts, by set
	counters map[string]string   // of the last rule, by chain
}

// print writes the table as `nft list table` does, which also names its owner.
func (rs ruleset) print(w io.Writer, now contents) {
	fmt.Fprintf(w, "table inet %s {\n", rs.table)
	if now.flags != 0 {
		fmt.Fprintf(w, "\tflags %s\n\n", flagsText(now.flags))
	}
	for _, s := range rs.sets {
		what, typ := "set", s.key.key().Name
		if s.isMap() {
			what, typ = "map", typ+" : "+s.data.Name
		}
		fmt.Fprintf(w, "\t%s %s {\n\t\ttype %s\n", what, s.name, typ)
		if s.size > 0 {
			fmt.Fprintf(w, "\t\tsize %d\n", s.size)
		}
		var flags []string
		for _, f := range []struct {
			set  bool
			name string
		}{{s.interval, "interval"}, {s.dynamic, "dynamic"}, {s.timeout, "timeout"}} {
			if f.set {
				flags = append(flags, f.name)
			}
		}
		if len(flags) > 0 {
			fmt.Fprintf(w, "\t\tflags %s\n", strings.Join(flags, ","))
		}
		if s.gc > 0 {
			fmt.Fprintf(w, "\t\tgc-interval %s\n", duration(s.gc))
		}
		fmt.Fprintf(w, "\t\tcomment \"%s\"\n", fit(s.comment))
		printElements(w, append(s.texts(), now.elements[s.name]...), s.key.perLine())
		fmt.Fprint(w, "\t}\n\n")
	}
	for i, c := range rs.chains {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "\tchain %s {\n", c.name)
		if c.base != nil {
			fmt.Fprintf(w, "\t\t%s\n", c.base.text)
		}
		for _, r := range c.rules {
			text := r.String()
			if counted := now.counters[c.name]; counted != "" {
				text = strings.Replace(text, counter.text, counted, 1)
			}
			fmt.Fprintf(w, "\t\t%s\n", text)
		}
		fmt.Fprint(w, "\t}\n")
	}
	fmt.Fprint(w, "}\n")
}

// String returns the rule as nft prints it.
func (r rule) String() string {
	var parts []string
	for _, m := range r.match {
		parts = append(parts, m.text)
	}
	if r.verdict.text != "" {
		parts = append(parts, r.verdict.text)
	}
	return fmt.Sprintf("%s comment %q", strings.Join(parts, " "), r.comment)
}

// perLine is how many elements nft puts on a line.
func (s selector) perLine() int {
	if len(s) > 1 || s[0].perLine == 0 {
		return 1
	}
	return s[0].perLine
}

func printElements(w io.Writer, elements []string, perLine int) {
	if len(elements) == 0 {
		return
	}
	fmt.Fprint(w, "\t\telements = { ")
	for i, e := range elements {
		switch {
		case i == 0:
		case i%perLine == 0:
			fmt.Fprint(w, ",\n\t\t\t     ")
		default:
			fmt.Fprint(w, ", ")
		}
		fmt.Fprint(w, e)
	}
	fmt.Fprint(w, " }\n")
}

// Print writes the rules as `nft list table` prints them, with the grants that
// the kernel holds and what it has counted. Cgroups go by their numbers: nft looks
// for one with that number, and in all hierarchies that it finds.
func Print(w io.Writer, r backend.Rules) error {
	rs := newRuleset(r)
	now, err := rs.read()
	if err != nil {
		return explain(err)
	}
	rs.print(w, now)
	return nil
}

func (rs ruleset) read() (contents, error) {
	now := contents{0, map[string][]string{}, map[string]string{}}
	c, err := nftables.New()
	if err != nil {
		return now, err
	}
	table, err := c.ListTableOfFamily(rs.table, nftables.TableFamilyINet)
	if err != nil {
		return now, err
	}
	now.flags = flagsOf(table)
	for _, s := range rs.sets {
		if !s.lasts() {
			continue
		}
		elements, err := c.GetSetElements(&nftables.Set{Table: table, Name: s.name})
		if err != nil {
			return now, err
		}
		slices.SortFunc(elements, func(a, b nftables.SetElement) int { return s.key.compare(a.Key, b.Key) })
		for _, e := range elements {
			text := s.key.text(e.Key)
			switch {
			case s.isMap():
				text += " : " + s.key.text(e.Val)
			case e.Timeout > 0:
				text += fmt.Sprintf(" timeout %s expires %s", duration(e.Timeout), duration(e.Expires))
			}
			now.elements[s.name] = append(now.elements[s.name], text)
		}
	}
	sock, err := openSocket()
	if err != nil {
		return now, err
	}
	defer sock.close()
	rules, err := sock.rulesOf(rs.table)
	for chain, all := range rules {
		for _, r := range all {
			if r.counter != "" {
				now.counters[chain] = r.counter
			}
		}
	}
	return now, err
}

// flagsText names a table's flags as nft does; before 1.1 it does not know persist.
func flagsText(flags uint32) string {
	var names []string
	for i, name := range []string{"dormant", "owner", "persist"} {
		if flags>>i&1 != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// duration writes d as nft does: 1m29s984ms.
func duration(d time.Duration) string {
	var b strings.Builder
	for _, unit := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}, {time.Millisecond, "ms"}} {
		if n := d / unit.size; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, unit.name)
			d -= n * unit.size
		}
	}
	return b.String()
}
