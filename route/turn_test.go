package route

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// blockDisk has the disk take its time until release is called.
func (d *desk) blockDisk() (release func()) {
	d.Helper()
	reached, free := make(chan struct{}), make(chan struct{})
	go d.store.do(context.Background(), func(*bolt.Tx) error {
		close(reached)
		<-free
		return nil
	})
	<-reached
	return func() { close(free) }
}

// waiting waits until so many jobs wait for the disk.
func (d *desk) waiting(n int) {
	d.Helper()
	for range 5000 {
		d.store.mu.Lock()
		got := len(d.store.jobs)
		d.store.mu.Unlock()
		if got == n {
			return
		}
		time.Sleep(time.Millisecond)
	}
	d.Fatalf("never %d jobs", n)
}

// flush waits for all that is to be written.
func (d *desk) flush() { d.store.do(context.Background(), func(*bolt.Tx) error { return nil }) }

func TestWhileTheDiskIsBusy(t *testing.T) {
	r := routed("r", 2, "10.0.0.0/29")
	full := errors.New("the disk is full")
	left := errors.New("the client has left")
	gone, cancel := context.WithCancelCause(context.Background())
	cancel(left)
	for _, tt := range []struct {
		name string
		do   func(d *desk, release func()) // with before.org, which has the first address
	}{
		{"an answer is late", func(d *desk, release func()) {
			d.wait = time.Millisecond
			d.want(d.ask(r, "a.org", four), ErrLate.Error())
			release()
			d.flush()
			d.wait = time.Minute
			d.want(d.ask(r, "a.org", four), "10.0.0.2 10.0.0.3")
		}},
		{"a client leaves", func(d *desk, release func()) {
			_, err := d.Assign(gone, r, "a.org", "", 0, addrs(four), time.Minute)
			d.want(fmt.Sprint(err), left.Error())
			release()
		}},
		{"those who ask for the name again get the same addresses", func(d *desk, release func()) {
			d.wait = time.Millisecond
			for range 10 {
				d.want(d.ask(r, "a.org", four), ErrLate.Error())
			}
			d.waiting(1)
			d.wait = time.Minute
			var asking sync.WaitGroup
			for range 10 {
				asking.Go(func() { d.want(d.ask(r, "a.org", four), "10.0.0.2 10.0.0.3") })
			}
			time.Sleep(10 * time.Millisecond)
			release()
			asking.Wait()
		}},
		{"what is in force is answered, and may be pointed elsewhere", func(d *desk, release func()) {
			d.want(d.ask(r, "before.org", "192.0.2.1"), "10.0.0.1")
			d.want(d.ask(r, "before.org", "192.0.2.2"), "10.0.0.1 | 10.0.0.1")
			release()
		}},
		{"a name that grows is answered by who has waited", func(d *desk, release func()) {
			d.wait = time.Millisecond
			d.want(d.ask(r, "before.org", four), ErrLate.Error())
			d.want(d.ask(r, "before.org", "192.0.2.1"), "10.0.0.1")
			release()
			d.wait = time.Minute
			d.want(d.ask(r, "before.org", four), "10.0.0.1 10.0.0.2")
		}},
		{"the book is closed and opened", func(d *desk, release func()) {
			d.wait = time.Millisecond
			d.want(d.ask(r, "a.org", four), ErrLate.Error())
			time.AfterFunc(10*time.Millisecond, release)
			d.restart()
			d.wait = time.Minute
			d.want(d.ask(r, "b.org", four), "10.0.0.4 10.0.0.5")
			d.want(d.ask(r, "a.org", four), "10.0.0.2 10.0.0.3 | 10.0.0.2 10.0.0.3")
		}},
		{"the disk is full", func(d *desk, release func()) {
			d.store.submit(&job{write: func(*bolt.Tx) error { return full }})
			d.wait = time.Millisecond
			d.want(d.ask(r, "a.org", four), ErrLate.Error())
			d.wait = time.Minute
			time.AfterFunc(10*time.Millisecond, release)
			_, err := d.Assign(context.Background(), r, "b.org", "", 0, addrs(four), time.Minute)
			if !errors.Is(err, full) {
				d.Errorf("got %v, want %v", err, full)
			}
			// Nobody has been told of these, so others may have them.
			d.want(d.taken(r, "c", 4, "192.0.2.1 192.0.2.2"), "10.0.0.6, 10.0.0.4-10.0.0.5, 10.0.0.2-10.0.0.3, "+ErrPoolFull.Error())
		}},
		{"too many wait", func(d *desk, release func()) {
			for range mostJobs {
				if err := d.store.submit(&job{write: func(*bolt.Tx) error { return nil }}); err != nil {
					d.Error(err)
				}
			}
			d.want(d.ask(r, "a.org", four), ErrBusy.Error())
			release()
			d.waiting(0)
			d.want(d.taken(r, "a", 1, four), "10.0.0.4-10.0.0.5")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t)
			d.ask(r, "before.org", "192.0.2.1")
			release := d.blockDisk()
			tt.do(d, release)
			d.flush()
			d.sound()
		})
	}
}

// Whoever waits for others who ask for the same name can leave, and is answered in turn.
func TestTurns(t *testing.T) {
	d := newDesk(t)
	r := routed("r", 2, "10.0.0.0/8")
	d.ask(r, "a.org", "192.0.2.1")
	blocked := d.router.block()

	var asking sync.WaitGroup
	asking.Go(func() { d.want(d.ask(r, "a.org", "192.0.2.2"), "10.0.0.1 | 10.0.0.1") })
	<-blocked.reached
	d.want(d.ask(r, "b.org", "192.0.2.1"), "10.0.0.2") // others do not wait

	_, err := d.Assign(context.Background(), r, "a.org", "", 0, addrs("192.0.2.3"), time.Millisecond)
	d.want(fmt.Sprint(err), ErrLate.Error())
	leaving, leave := context.WithCancel(context.Background())
	time.AfterFunc(10*time.Millisecond, leave)
	_, err = d.Assign(leaving, r, "a.org", "", 0, addrs("192.0.2.3"), time.Minute)
	d.want(fmt.Sprint(err), context.Canceled.Error())

	asking.Go(func() { d.want(d.ask(r, "a.org", "192.0.2.4"), "10.0.0.1 | 10.0.0.1") })
	for e := d.entry("4r\x00a.org"); ; time.Sleep(time.Millisecond) {
		e.mu.Lock()
		wanting := e.turn.wanting
		e.mu.Unlock()
		if wanting == 2 {
			break
		}
	}
	close(blocked.free)
	asking.Wait()
	d.want(d.kernel(), "10.0.0.1>192.0.2.4 10.0.0.2>192.0.2.1")
	d.sound()
}

// Whatever the order in which answers come, the kernel has at last what the book says.
func TestKernelAgrees(t *testing.T) {
	d := newDesk(t)
	r := routed("r", 2, "10.0.0.0/8", "fd00::/64")
	const names, askers = 20, 64
	var asking sync.WaitGroup
	for n := range askers {
		asking.Go(func() {
			for i := range 200 {
				name := fmt.Sprint((n + i/2) % names)
				version := [2]string{"192.0.2.%d 192.0.2.%d", "2001:db8::%d 2001:db8::%d"}[i%2]
				answer := d.ask(r, name, fmt.Sprintf(version, i%7, 10+n%3))
				if _, err := fmt.Sscan(answer, new(string)); err != nil || answer[0] != '1' && answer[0] != 'f' {
					d.Errorf("%s: %q", name, answer)
				}
				if i%50 == 0 {
					d.router.epoch.Add(1)
				}
			}
		})
	}
	asking.Wait()
	d.sound()
	if n := len(d.mapped); n != names*2*2 {
		t.Errorf("%d are mapped, want %d", n, names*2*2)
	}
	for i := range d.shards {
		for _, e := range d.shards[i].entries {
			for _, s := range e.slots {
				if m := d.mapped[e.addr(s.mapped)]; m.Real != e.addr(s.real) {
					t.Errorf("%q: %v leads to %v, the book says %v", e.key, m.Mapped, m.Real, e.addr(s.real))
				}
			}
		}
	}
}

func (d *desk) entry(key string) *entry { return d.shard([]byte(key)).find([]byte(key)) }
