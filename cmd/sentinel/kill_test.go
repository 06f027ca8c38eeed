package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Whenever it is killed, the machine has a resolver, and gets its own back when that is asked for.
func TestKilledAtEveryStep(t *testing.T) {
	const viaLink = "../run/NetworkManager/resolv.conf"
	link := func(b *box) {
		b.save("run/NetworkManager/resolv.conf", lease)
		b.must(os.Symlink(viaLink, b.path(resolv)))
	}
	file := func(b *box) { b.save(resolv, lease); b.must(os.Chmod(b.path(resolv), 0o640)) }
	up := func(make func(*box)) func(*box) { return func(b *box) { make(b); b.do("up", 0, "") } }
	for _, c := range []struct {
		name    string
		prepare func(*box)
		verb    string
		meet    string
		before  []string // what resolv.conf may be besides ours
		after   string   // what it is after all
		steps   int      // at least
	}{
		{name: "up over a file", prepare: file, verb: "up", before: []string{lease}, after: "-rw-r----- " + lease, steps: 7},
		{name: "up over a link", prepare: link, verb: "up", before: []string{viaLink}, after: "-> " + viaLink, steps: 7},
		{name: "down to a file", prepare: up(file), verb: "down", before: []string{lease}, after: "-rw-r----- " + lease, steps: 5},
		{name: "down to a link", prepare: up(link), verb: "down", before: []string{viaLink}, after: "-> " + viaLink, steps: 5},
		{name: "up again after DHCP has written", prepare: func(b *box) { up(file)(b); b.must(dhcp(b.root, lease2)) },
			verb: "up", before: []string{lease2}, after: "-rw-r--r-- " + lease2, steps: 7},
		{name: "up again after DHCP has written over a link", prepare: func(b *box) { up(link)(b); b.must(dhcp(b.root, lease2)) },
			verb: "up", before: []string{lease2}, after: "-rw-r--r-- " + lease2, steps: 7},
		{name: "DHCP writes in the moment of up", prepare: file, verb: "up", meet: lease2, before: []string{lease, lease2}, steps: 7},
		{name: "DHCP writes in the moment of down", prepare: up(file), verb: "down", meet: lease2, before: []string{lease, lease2}, steps: 5},
		{name: "DHCP writes in the moment of down to a link", prepare: up(link), verb: "down", meet: lease2, before: []string{viaLink, lease2}, steps: 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for step := 1; ; step++ {
				if step > 50 {
					t.Fatal("it has no end")
				}
				b := newBox(t)
				c.prepare(b)
				killed := b.do(c.verb, step, c.meet)
				b.wantResolver(c.before...)
				_, err := os.Stat(b.path("met"))
				met := err == nil // DHCP has written
				// It may be killed a second time, on its way back.
				if killed {
					for again := 1; again < step && b.do("down", again, ""); again++ {
						b.wantResolver(append(c.before, lease2)...)
					}
				}
				if b.do("down", 0, ""); c.meet == "" || !met {
					want := c.after
					if c.meet != "" {
						want = b.is(resolv) // whichever it was
						b.wantResolver(c.before...)
					}
					if got := b.is(resolv); got != want {
						t.Errorf("killed at step %d, resolv.conf is %s", step, got)
					}
				} else if got := b.is(resolv); got != "-rw-r--r-- "+lease2 {
					t.Errorf("killed at step %d, what DHCP has written is lost: resolv.conf is %s", step, got)
				}
				for _, name := range []string{fresh, kept, list, part(fresh), part(kept)} {
					if is := b.is(name); is != "none" {
						t.Errorf("killed at step %d, %s stays: %s", step, name, is)
					}
				}
				if !killed {
					if step <= c.steps {
						t.Errorf("there were only %d steps", step-1)
					}
					return
				}
			}
		})
	}
}

// So it is with systemd-resolved, whose own resolv.conf is left alone.
func TestKilledAtEveryStepWithResolved(t *testing.T) {
	t.Parallel()
	const link = "../run/systemd/resolve/stub-resolv.conf"
	for _, verb := range []string{"up", "down"} {
		for step := 1; ; step++ {
			b := newBox(t)
			b.save(stub, "nameserver 127.0.0.53\n")
			b.save(uplinks, "nameserver 10.0.0.1\n")
			b.must(os.Symlink(link, b.path(resolv)))
			if verb == "down" {
				b.do("up", 0, "")
			}
			killed := b.do(verb, step, "")
			if is := b.is(resolv); is != "-> "+link {
				t.Errorf("%s, killed at step %d: %s", verb, step, is)
			}
			b.do("up", 0, "")
			if is := b.is(uplinks); is != "-rw-r--r-- nameserver 100.100.111.1\nnameserver 100.100.111.2\nnameserver 10.0.0.1\n" {
				t.Errorf("%s, killed at step %d, and up: %s", verb, step, is)
			}
			if is := b.is(dropIn); !strings.HasPrefix(is, "-rw-r--r-- ") {
				t.Errorf("%s, killed at step %d, and up: systemd-resolved cannot read %s", verb, step, is)
			}
			b.do("down", 0, "")
			if got := fmt.Sprint(b.is(uplinks), b.is(dropIn), b.is(list)); got != "-rw-r--r-- nameserver 10.0.0.1\nnonenone" {
				t.Errorf("%s, killed at step %d, and down: %s", verb, step, got)
			}
			if !killed {
				if step < 4 {
					t.Errorf("%s has only %d steps", verb, step-1)
				}
				break
			}
		}
	}
}
