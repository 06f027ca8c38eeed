package nft

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// gcInterval is how often the kernel looks for expired grants. Its default of a
// second costs 6 % of a core with a million of them; since the writer removes
// what has run out, the kernel only has to be sure to do it some time.
const gcInterval = time.Minute

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
		fmt.Fprintf(w, "\tset %s {\n\t\ttype %s\n", s.name, s.key.Name)
		if s.size > 0 {
			fmt.Fprintf(w, "\t\tsize %d\n", s.size)
		}
		var have []string
		switch {
		case s.timeout:
			fmt.Fprint(w, "\t\tflags timeout\n")
			if s.size > 0 {
				fmt.Fprintf(w, "\t\tgc-interval %dm\n", int(gcInterval.Minutes()))
			}
			have = now.elements[s.name]
		case s.interval():
			fmt.Fprint(w, "\t\tflags interval\n")
			for _, r := range s.ranges {
				have = append(have, rangeText(r))
			}
		default:
			for _, name := range s.interfaces {
				have = append(have, strconv.Quote(name))
			}
		}
		fmt.Fprintf(w, "\t\tcomment %q\n", s.comment)
		printElements(w, have, perLine(s))
		fmt.Fprint(w, "\t}\n\n")
	}
	for i, c := range rs.chains {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "\tchain %s {\n\t\ttype filter hook %s priority filter; policy drop;\n", c.name, hookNames[*c.hook])
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

var hookNames = map[nftables.ChainHook]string{
	*nftables.ChainHookOutput:  "output",
	*nftables.ChainHookForward: "forward",
}

// String returns the rule as nft prints it.
func (r rule) String() string {
	var b strings.Builder
	for _, m := range r.match {
		b.WriteString(m.text + " ")
	}
	fmt.Fprintf(&b, "%s comment %q", r.verdict.text, r.comment)
	return b.String()
}

// perLine is how many elements nft puts on a line: two of those that are short.
func perLine(s set) int {
	if s.key.Bytes <= 4 {
		return 2
	}
	return 1
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

func rangeText(r netipx.IPRange) string {
	if p, ok := r.Prefix(); ok {
		if p.IsSingleIP() {
			return p.Addr().String()
		}
		return p.String()
	}
	return r.String()
}

// Print writes the rules as `nft list table` prints them, with the grants that
// the kernel holds and what it has counted.
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
		if !s.timeout {
			continue
		}
		elements, err := c.GetSetElements(&nftables.Set{Table: table, Name: s.name})
		if err != nil {
			return now, err
		}
		slices.SortFunc(elements, func(a, b nftables.SetElement) int { return s.compareKeys(a.Key, b.Key) })
		for _, e := range elements {
			now.elements[s.name] = append(now.elements[s.name],
				fmt.Sprintf("%s timeout %s expires %s", s.keyText(e.Key), duration(e.Timeout), duration(e.Expires)))
		}
	}
	for _, ch := range rs.chains {
		rules, err := c.GetRules(table, &nftables.Chain{Table: table, Name: ch.name})
		if err != nil {
			return now, err
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if e, ok := e.(*expr.Counter); ok {
					now.counters[ch.name] = fmt.Sprintf("counter packets %d bytes %d", e.Packets, e.Bytes)
				}
			}
		}
	}
	return now, nil
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

// compareKeys orders elements as nft does: by their last field first.
func (s set) compareKeys(a, b []byte) int {
	if s.grants == nil {
		return bytes.Compare(a, b)
	}
	whoA, addrA := s.grants.split(a)
	whoB, addrB := s.grants.split(b)
	return cmp.Or(bytes.Compare(addrA, addrB), bytes.Compare(whoA, whoB))
}

// keyText is the key of an element as nft prints it: of a grant, or an IP version.
func (s set) keyText(key []byte) string {
	if s.grants != nil {
		return s.grants.keyText(key)
	}
	if key[0] == unix.NFPROTO_IPV4 {
		return "ipv4"
	}
	return "ipv6"
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
