package identity

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// benchWatch watches a host with a thousand neighbours on 10.1.0.0/16.
func benchWatch(b *testing.B) *watched {
	const n = 1000
	w := watch(b, newHost(b))
	d0 := w.port("d0")
	w.address(w.nl.AddrAdd, "d0", "10.1.255.1/16")
	for i := range n {
		w.neighbour(d0, floodAddr(i).String(), mac(i), unix.NUD_PERMANENT)
	}
	eventually(b, "all neighbours are known", func() bool { return w.wrong(d0, 0, n, 0) == "" })
	return w
}

func BenchmarkFind(b *testing.B) {
	w := benchWatch(b)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if _, _, ok := w.Find(floodAddr(i % 1000)); !ok {
				b.Error("not known")
			}
		}
	})
}

func BenchmarkFindOne(b *testing.B) {
	w := benchWatch(b)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, _, ok := w.Find(floodAddr(7)); !ok {
				b.Error("not known")
			}
		}
	})
}

func BenchmarkFindWithZone(b *testing.B) {
	w := benchWatch(b)
	addr := netip.MustParseAddr("fe80::7%d0")
	w.neighbour(w.ifindex("d0"), "fe80::7", mac(7), unix.NUD_PERMANENT)
	w.links(w.ifindex("d0"), "fe80::7", mac(7))
	b.ReportAllocs()
	for b.Loop() {
		w.Find(addr)
	}
}

func BenchmarkOwn(b *testing.B) {
	w := benchWatch(b)
	for name, addr := range map[string]string{"loopback": "127.0.0.1", "own": "10.1.255.1", "other": "10.1.0.7"} {
		addr := netip.MustParseAddr(addr)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w.Own(addr)
			}
		})
	}
}

func BenchmarkFindMiss(b *testing.B) {
	w := benchWatch(b)
	routed := netip.MustParseAddr("203.0.113.1")
	b.ReportAllocs()
	for b.Loop() {
		w.Find(routed)
	}
}

// What a question costs that is not remembered.
func BenchmarkAsk(b *testing.B) {
	w := benchWatch(b)
	here := netip.MustParseAddr("10.1.254.1")
	r, err := w.pool.get()
	must(b, err)
	defer w.pool.put(r)
	for name, q := range map[string]spot{
		"route": spotOf(here, 0), "no route": spotOf(netip.MustParseAddr("203.0.113.1"), 0),
		"neighbour": spotOf(here, uint32(w.ifindex("d0"))),
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if a, err := ask(r, q); a.ok || err != nil {
					b.Fatal(a, err)
				}
			}
		})
	}
}

func BenchmarkReadAll(b *testing.B) {
	w := benchWatch(b)
	for b.Loop() {
		again, err := openOn(w)
		if err != nil {
			b.Fatal(err)
		}
		if err := again.readAll(time.Minute); err != nil {
			b.Fatal(err)
		}
		again.Close()
	}
}

func openOn(w *watched) (again *Watcher, err error) {
	err = w.host.Do(func() error {
		again, err = openWatcher(func(error) {})
		return err
	})
	return again, err
}

func BenchmarkFindAsker(b *testing.B) {
	h, a := here(b)
	for _, network := range []string{"udp", "tcp"} {
		b.Run(network, func(b *testing.B) {
			server := serve(b, h, network, "127.0.0.1:0")
			conn, err := h.Dial(b.Context(), network, server.String())
			must(b, err)
			defer conn.Close()
			client := addrPort(conn.LocalAddr())
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := a.Find(network, client, server); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

func BenchmarkUnit(b *testing.B) {
	c := newCgroups(b)
	a := newAskers(b, newHost(b))
	id := c.add("/x.service/worker")
	b.Run("known", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := a.Unit(b.Context(), id); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, byHandle := range []bool{true, false} {
		name := map[bool]string{true: "by handle", false: "by a walk of 1,000"}[byHandle]
		for i := range 1000 {
			c.add("/" + floodAddr(i).String())
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				a.units.finder.init(time.Now)
				a.units.finder.byHandle.Store(byHandle)
				if _, err := a.units.find(b.Context(), &c.mount, id, time.Now()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What following costs once a second.
func BenchmarkLookAtUnits(b *testing.B) {
	f := follow(b, true, "/a.slice/x.service", "/a.slice/y.service", "/a.slice/nosuch.service")
	f.add("/a.slice/x.service")
	y := f.add("/a.slice/y.service")
	eventually(b, "they are known", func() bool { return f.List()[1].ID == y })
	f.Close()
	must(b, f.listen())
	for b.Loop() {
		f.look()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/3, "ns/unit")
	f.events.Close()
}
