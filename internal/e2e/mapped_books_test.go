package e2e

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables"
)

// A stateWorld has a route whose file is one of two.
type stateWorld struct {
	*mappedWorld
	coredns *coredns // nil while none runs
	files   map[string]string
	names   []string
	reals   map[string]string // of the names
}

func newStateWorld(t *testing.T) *stateWorld {
	s := &stateWorld{mappedWorld: newMappedWorld(t), reals: map[string]string{}}
	for n := range 6 {
		name := fmt.Sprintf("n%d.shop.test.", n)
		s.names = append(s.names, name)
		s.reals[name] = fmt.Sprintf("198.18.52.%d", n+1)
		s.atlas.addrs(name, 60, s.reals[name])
	}
	other := filepath.Join(t.TempDir(), "other.db")
	s.files = map[string]string{
		"first": s.corefile("nft-gateway", s.routedTo("shop.test")),
		"other": s.corefile("nft-gateway", s.routedTo("shop.test", "state "+other)),
		"both":  s.corefile("nft-gateway", s.routedTo("shop.test"), s.route("**.bank.test", "pool 10.77.0.0/16 fd77::/64", "state "+other)),
		"none":  s.corefile("nft-gateway"),
	}
	return s
}

// do is one step: something that happens, or the file that is started or reloaded.
func (s *stateWorld) do(step string) {
	s.Helper()
	switch step {
	case "stop":
		s.must(s.coredns.Stop())
		s.coredns = nil
	case "kill":
		s.kill(s.coredns)
		s.coredns = nil
	case "lose":
		s.shell(s.guard, "rm "+s.stateDir()+"/*")
	case "delete": // the table, and all grants
		s.nftables(anew(func(c *nftables.Conn) { c.DelTable(ours) }))
	default:
		if s.coredns == nil {
			s.coredns = s.start(s.files[step])
		} else {
			s.mustReload(s.coredns, s.files[step])
		}
	}
}

// The state is lost, or another one takes its place: names get other addresses perhaps,
// and nobody gets to another name's server. Who is connected is cut off, and who may still
// connect by what he was told before does not connect to somebody else.
func TestOtherStateDeliversToNobodyElse(t *testing.T) {
	t.Parallel()
	for _, steps := range []string{ // to ask gives names addresses in another order, before or after the client is told
		"first tell stop lose first",
		"first tell stop other",
		"first tell other",
		"first ask other tell first",
		"first ask other tell stop first",
		"other ask stop delete first tell other",
		"other ask stop delete first tell stop other",
		"other ask stop delete first tell kill other",
		"other ask stop delete first tell stop none other",
		"other ask stop delete first tell both stop other",
	} {
		t.Run(steps, func(t *testing.T) {
			t.Parallel()
			m := newStateWorld(t)
			neighbour, _ := m.moreClients()
			ask := func() {
				t.Helper()
				for i := range m.names {
					name := m.names[len(m.names)-1-i]
					addr := m.mapped(neighbour, neighbourGateway4, name, true)[0]
					m.wantSight(neighbour, addr, m.reals[name], routeEgress4)
				}
			}
			flows, told := map[string]flow{}, map[string]string{}
			for step := range strings.FieldsSeq(steps) {
				switch step {
				case "ask":
					ask()
				case "tell":
					for _, name := range m.names[:3] {
						told[name] = m.mapped(m.client, gateway4, name, true)[0]
						flows[name] = m.flow(m.client, told[name], m.reals[name])
					}
				default:
					m.do(step)
				}
			}
			ask()
			for name, addr := range told {
				if s, conn, err := m.look(m.client, addr); err == nil {
					conn.Close()
					if s.real != m.reals[name] {
						t.Errorf("%s, where the client was told that %s is, leads to %s instead of %s", addr, name, s.real, m.reals[name])
					}
				}
				if ended(flows[name]) == nil {
					t.Errorf("the connection with %s of before goes on, by an address that is perhaps another's", name)
				}
			}
		})
	}
}

// While it is the same state, however CoreDNS ends and begins and whatever other routes and
// states come and go, names keep their addresses, and connections go on.
func TestSameStateCutsNothing(t *testing.T) {
	t.Parallel()
	for _, steps := range []string{"stop first", "kill first", "both kill both first stop first", "stop none first", "none kill first"} {
		t.Run(steps, func(t *testing.T) {
			t.Parallel()
			m := newStateWorld(t)
			m.do("other") // which has had its time
			for i := range m.names {
				m.mapped(m.client, gateway4, m.names[len(m.names)-1-i], true)
			}
			m.do("stop")
			m.do("delete")
			m.do("first")
			told := map[string]string{}
			var live []net.Conn
			for _, name := range m.names {
				told[name] = m.mapped(m.client, gateway4, name, true)[0]
				live = append(live, m.flow(m.client, told[name], m.reals[name]))
			}
			for step := range strings.FieldsSeq(steps) {
				m.do(step)
			}
			for i, name := range m.names {
				if err := echo(live[i]); err != nil {
					t.Errorf("the connection with %s: %v", name, err)
				}
				if again := m.mapped(m.client, gateway4, name, true)[0]; again != told[name] {
					t.Errorf("%s had %s, and has %s", name, told[name], again)
				}
				m.wantSight(m.client, told[name], m.reals[name], routeEgress4)
			}
		})
	}
}
