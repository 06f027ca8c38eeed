package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// firewalls looks for rules of others that refuse what the guard lets through.
func (d *doctor) firewalls() {
	for _, path := range []string{"/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"} {
		if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), "filter") {
			d.say(warning, "iptables-legacy -S and ip6tables-legacy -S show them; move them to nftables, or see that they accept what is to get out", "the old iptables has a table filter, whose rules see packets as well")
			break
		}
	}
	c, err := nftables.New()
	if err != nil {
		d.say(unknown, "be root", "%v", err)
		return
	}
	chains, err := c.ListChains()
	if err != nil {
		d.say(unknown, "be root", "they cannot be listed: %v", err)
		return
	}
	ours := "ipdestinationguard"
	if d.status != nil {
		ours = d.status.Table
	}
	others, found := ends{c, map[string]end{}}, false
	for _, ch := range chains {
		if ch.Hooknum == nil || ch.Table.Name == ours && ch.Table.Family == nftables.TableFamilyINet {
			continue
		}
		hook := hookOf(ch)
		if hook == "" || (hook == "output" || hook == "forward") && d.status != nil && !d.guards(hook) {
			continue
		}
		where := place(ch.Table, ch.Name)
		e, err := others.of(ch.Table, ch.Name)
		switch {
		case err != nil:
			found = true
			d.say(unknown, "look with nft list chain "+where, "chain %s cannot be read: %v", where, err)
		case e == refuses, e == goesOn && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop:
			found = true
			d.say(warning, fmt.Sprintf("nft list chain %s shows it: have it accept what is to get out and what comes back, as the guard then refuses what has not been looked up", where),
				"table %s %s, chain %s refuses on hook %s what it does not accept itself, whatever the guard lets through", family(ch.Table.Family), ch.Table.Name, ch.Name, hook)
		}
	}
	if !found {
		d.say(fine, "", "none that refuses by default what the guard lets through")
	}
}

const ingressOfINet nftables.ChainHook = 5 // NF_INET_INGRESS

// hookOf is where a chain sees what is guarded or the replies, or nothing if it sees neither, or
// only what is for this machine itself: of that, a firewall refuses what it does not know.
func hookOf(ch *nftables.Chain) string {
	switch h := *ch.Hooknum; ch.Table.Family {
	case nftables.TableFamilyARP:
		return ""
	case nftables.TableFamilyNetdev:
		return map[nftables.ChainHook]string{*nftables.ChainHookIngress: "ingress", *nftables.ChainHookEgress: "egress"}[h]
	default:
		return map[nftables.ChainHook]string{
			*nftables.ChainHookPrerouting: "prerouting", *nftables.ChainHookForward: "forward", *nftables.ChainHookOutput: "output",
			*nftables.ChainHookPostrouting: "postrouting", ingressOfINet: "ingress",
		}[h]
	}
}

// end is what becomes, in a chain, of packets that no condition in it is true of.
type end int

const (
	goesOn end = iota // the chain before it goes on, or the policy decides
	accepts
	refuses
)

// ends are those of chains, each read once.
type ends struct {
	conn  *nftables.Conn
	known map[string]end // by places
}

func (e *ends) of(table *nftables.Table, name string) (end, error) {
	key := place(table, name)
	if known, ok := e.known[key]; ok {
		return known, nil
	}
	rules, err := e.conn.GetRules(table, &nftables.Chain{Name: name})
	for _, r := range rules {
		if err != nil {
			break
		}
		found, last := goesOn, false
		switch v := always(r.Exprs); {
		case v == nil:
		case v.Kind == expr.VerdictAccept:
			found = accepts
		case v.Kind == expr.VerdictDrop:
			found = refuses
		case v.Kind == expr.VerdictReturn:
			last = true
		case v.Kind == expr.VerdictJump, v.Kind == expr.VerdictGoto:
			found, err = e.of(table, v.Chain) // the kernel allows no loops
			last = v.Kind == expr.VerdictGoto
		}
		if found != goesOn || last {
			e.known[key] = found
			return found, err
		}
	}
	e.known[key] = goesOn
	return goesOn, err
}

// always is the verdict of a rule without conditions, or nil.
func always(exprs []expr.Any) *expr.Verdict {
	for _, x := range exprs {
		switch x := x.(type) {
		case *expr.Verdict:
			return x
		case *expr.Reject:
			return &expr.Verdict{Kind: expr.VerdictDrop}
		case *expr.Target:
			if x.Name == "REJECT" {
				return &expr.Verdict{Kind: expr.VerdictDrop}
			}
		case *expr.Match: // of iptables
			if x.Name != "comment" {
				return nil
			}
		case *expr.Meta:
			if !x.SourceRegister {
				return nil
			}
		case *expr.Ct:
			if !x.SourceRegister {
				return nil
			}
		case *expr.Counter, *expr.Log, *expr.Immediate:
		default:
			return nil
		}
	}
	return nil
}

// place is how nft is told which chain.
func place(table *nftables.Table, chain string) string {
	return fmt.Sprintf("%s %s %s", family(table.Family), table.Name, chain)
}

func family(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyBridge:
		return "bridge"
	case nftables.TableFamilyNetdev:
		return "netdev"
	}
	return "arp"
}
