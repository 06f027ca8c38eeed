package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// foreignChain drops all that comes by a hook.
func (p *patient) foreignChain(hook *nftables.ChainHook) {
	p.Helper()
	p.foreign(p.guard, nftables.TableFamilyIPv4, hook, nftables.ChainPolicyDrop)
}

// foreign makes a chain on a hook, and another that its rules may lead to.
func (p *patient) foreign(h *netlab.Host, family nftables.TableFamily, hook *nftables.ChainHook, policy nftables.ChainPolicy, rules ...[]expr.Any) {
	p.Helper()
	p.must(h.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "other", Family: family})
		final := c.AddChain(&nftables.Chain{Table: table, Name: "final"})
		c.AddRule(&nftables.Rule{Table: table, Chain: final, Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}})
		chain := &nftables.Chain{
			Table: table, Name: "theirs", Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &policy,
		}
		if family == nftables.TableFamilyNetdev {
			chain.Device = "wan0"
		}
		c.AddChain(chain)
		for _, exprs := range rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
		}
		return c.Flush()
	}))
}

// Other firewalls are found by what becomes of a packet that they say nothing of.
func TestDoctorOfOtherFirewalls(t *testing.T) {
	verdict := func(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }
	to := func(k expr.VerdictKind, chain string) []expr.Any {
		return []expr.Any{&expr.Verdict{Kind: k, Chain: chain}}
	}
	mark := []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{7, 0, 0, 0}}}
	marked := func(exprs []expr.Any) []expr.Any { return slices.Concat(mark, exprs) }
	reject := []expr.Any{&expr.Counter{}, &expr.Log{}, &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
	accept, drop := nftables.ChainPolicyAccept, nftables.ChainPolicyDrop
	inet := nftables.TableFamilyINet

	p := newPatient(t)
	p.serve("nft-both")
	for _, tt := range []struct {
		name   string
		family nftables.TableFamily
		hook   *nftables.ChainHook
		policy nftables.ChainPolicy
		rules  [][]expr.Any
		want   string // the hook that is told of
	}{
		{"a final reject, as firewalld's", inet, nftables.ChainHookForward, accept, [][]expr.Any{marked(verdict(expr.VerdictAccept)), reject}, "forward"},
		{"a final drop", inet, nftables.ChainHookOutput, accept, [][]expr.Any{verdict(expr.VerdictDrop)}, "output"},
		{"by a jump", nftables.TableFamilyIPv6, nftables.ChainHookForward, accept, [][]expr.Any{to(expr.VerdictJump, "final")}, "forward"},
		{"by a goto", inet, nftables.ChainHookForward, accept, [][]expr.Any{to(expr.VerdictGoto, "final"), verdict(expr.VerdictAccept)}, "forward"},
		{"before routing", inet, nftables.ChainHookPrerouting, drop, nil, "prerouting"},
		{"after routing", inet, nftables.ChainHookPostrouting, accept, [][]expr.Any{verdict(expr.VerdictDrop)}, "postrouting"},
		{"at an interface", nftables.TableFamilyNetdev, nftables.ChainHookIngress, drop, nil, "ingress"},
		{"out of an interface", nftables.TableFamilyNetdev, nftables.ChainHookEgress, accept, [][]expr.Any{verdict(expr.VerdictDrop)}, "egress"},

		{"with a condition", inet, nftables.ChainHookForward, accept, [][]expr.Any{marked(verdict(expr.VerdictDrop)), marked(reject), marked(to(expr.VerdictJump, "final"))}, ""},
		{"never come to", inet, nftables.ChainHookForward, drop, [][]expr.Any{verdict(expr.VerdictAccept), reject}, ""},
		{"given back", inet, nftables.ChainHookForward, accept, [][]expr.Any{verdict(expr.VerdictReturn), reject}, ""},
		{"for this machine", inet, nftables.ChainHookInput, drop, [][]expr.Any{
			{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte("lo\x00")}, &expr.Verdict{Kind: expr.VerdictAccept}},
			{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{2, 0, 0, 0}, Xor: make([]byte, 4)},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}, &expr.Verdict{Kind: expr.VerdictAccept}},
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := *p.world
			w.T = t
			p := &patient{world: &w, root: p.root, socket: p.socket}
			p.foreign(p.guard, tt.family, tt.hook, tt.policy, tt.rules...)
			defer func() {
				p.must(p.guard.Do(func() error {
					c, err := nftables.New()
					if err != nil {
						return err
					}
					c.DelTable(&nftables.Table{Name: "other", Family: tt.family})
					return c.Flush()
				}))
			}()
			var told []string
			found, _ := p.found(netlab.As{})
			for _, f := range found {
				if strings.Contains(f, ": other firewalls: ") {
					told = append(told, f)
				}
			}
			if want := ", chain theirs refuses on hook " + tt.want + " what "; (tt.want == "") != (len(told) == 0) || len(told) > 1 || tt.want != "" && !strings.Contains(told[0], want) {
				t.Errorf("%q, want hook %q", told, tt.want)
			}
		})
	}
}
