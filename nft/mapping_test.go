package nft

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/nftables"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
)

func TestRouterContract(t *testing.T) {
	for name, make := range map[string]func(*testing.T, backend.Observer) *Backend{
		"with an owner": observed, "without an owner": ownerless,
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.RunRouter(t, func(t *testing.T) (backend.Backend, *backend.InForce, func() map[netip.Addr]backend.Mapping) {
				t.Cleanup(func() { removeTable(t, backendtest.Rules().Table) })
				b := make(t, backendtest.Quiet{})
				return b, b.inForce, func() map[netip.Addr]backend.Mapping { return b.inKernelMapped(t) }
			})
		})
	}
}

// inKernelMappedQuietly is inKernelMapped while the kernel has not all of them yet.
func (g *guarded) inKernelMappedQuietly() map[netip.Addr]backend.Mapping {
	return g.readMapped(g.T, func(string) {})
}

// inKernelMapped returns the mappings that the kernel has: of addresses that are in the map
// and in the set of one route.
func (b *Backend) inKernelMapped(t testing.TB) map[netip.Addr]backend.Mapping {
	t.Helper()
	return b.readMapped(t, func(what string) { t.Helper(); t.Error(what) })
}

func (b *Backend) readMapped(t testing.TB, complain func(string)) map[netip.Addr]backend.Mapping {
	t.Helper()
	var rules backend.Rules
	if err := b.do(func(w *writer) error { rules = w.rules; return nil }); err != nil {
		t.Fatal(err)
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := &nftables.Table{Name: rules.Table, Family: nftables.TableFamilyINet}
	all := map[netip.Addr]backend.Mapping{}
	for _, s := range mappings(&rules, false) {
		if !s.isMap() {
			continue
		}
		elements, err := c.GetSetElements(&nftables.Set{Table: table, Name: s.name, IsMap: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range elements {
			mapped, _ := netip.AddrFromSlice(e.Key)
			real, _ := netip.AddrFromSlice(e.Val)
			all[mapped] = backend.Mapping{Mapped: mapped, Real: real}
		}
	}
	for _, route := range rules.Routes {
		for _, ipv4 := range versions {
			elements, err := c.GetSetElements(&nftables.Set{Table: table, Name: routeName(route.Name, ipv4, rules.Book)})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range elements {
				a, _ := netip.AddrFromSlice(e.Key)
				m, mapped := all[a]
				if !mapped || m.Route != "" {
					complain(fmt.Sprintf("%v of %s: %+v", a, route.Name, m))
				}
				m.Route = route.Name
				all[a] = m
			}
		}
	}
	for a, m := range all {
		if m.Route == "" { // leads nowhere
			delete(all, a)
		}
	}
	return all
}
