package e2e

import "testing"

// Only answers through CoreDNS open anything. What other resolvers say does not,
// even where the Corefile lets them be asked; nor does the upstream's own word.
func TestOtherResolversOpenNothing(t *testing.T) {
	eachMode(t, func(w *world, m mode) {
		w.start(corefile(guardBlock(m.name, "allowedIPs "+stranger4+" "+stranger6, "allowedGatewayIPs "+resolver4)))
		guarded, _ := m.parties(w)
		var all []attempt
		for _, p := range guarded {
			n := 0
			for _, resolver := range []string{stranger4, stranger6, resolver4} {
				for _, addr := range []func(int) string{p.addr4, p.addr6} {
					n++
					w.lookup(p.Host, resolver, addr(n), 60)
					all = append(all, attempt{p, addr(n), false})
				}
			}
		}
		w.want(all)
	})
}

// A resolver that nobody has allowed cannot even be asked.
func TestStrangersCannotBeAsked(t *testing.T) {
	eachMode(t, func(w *world, m mode) {
		w.start(corefile(guardBlock(m.name)))
		guarded, free := m.parties(w)
		for _, p := range guarded {
			for _, stranger := range []string{stranger4, stranger6} {
				if err := w.resolve(p.Host, stranger, p.addr4(1), 60); !refused(err) {
					w.Errorf("%s: %s: %v, want a refusal", p.Name(), stranger, err)
				}
			}
		}
		for _, p := range free {
			w.lookup(p.Host, stranger4, p.addr4(1), 60)
			w.lookup(p.Host, stranger6, p.addr6(1), 60)
		}
	})
}
