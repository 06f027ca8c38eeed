package nft

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"go4.org/netipx"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// gcInterval is how often the kernel looks for expired grants. Its default of a
// second costs 6 % of a core with a million of them; since the writer removes
// what has run out, the kernel only has to be sure to do it some time.
const gcInterval = time.Minute

// print writes the table as `nft list table` does. elements tells what a set
// with timeouts holds, already as text.
func (rs ruleset) print(w io.Writer, elements func(set string) []string) {
	fmt.Fprintf(w, "table inet %s {\n", rs.table)
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
			if elements != nil {
				have = elements(s.name)
			}
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
			fmt.Fprintf(w, "\t\t%s\n", r)
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

// perLine is how many elements nft puts on a line.
func perLine(s set) int {
	switch {
	case s.timeout:
		return 1
	case s.key == nftables.TypeIPAddr:
		return 2
	default:
		return 1
	}
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
// the kernel holds.
func Print(w io.Writer, r backend.Rules) error {
	s, err := openSocket()
	if err != nil {
		return err
	}
	defer s.close()
	held := map[string][]string{}
	for _, ipv4 := range []bool{true, false} {
		var all []element
		if err := s.dump(r.Table, ipv4, func(part []element) bool { all = append(all, part...); return true }); err != nil {
			return explain(err)
		}
		slices.SortFunc(all, func(a, b element) int { return bytes.Compare(a.key[:], b.key[:]) })
		name := forVersion(setGranted, ipv4)
		for _, e := range all {
			held[name] = append(held[name], fmt.Sprintf("%s expires %s", e.key.Addr(), duration(e.left)))
		}
	}
	newRuleset(r).print(w, func(set string) []string { return held[set] })
	return nil
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
