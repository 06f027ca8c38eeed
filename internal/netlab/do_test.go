package netlab

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
)

func whereAmI(t testing.TB) string {
	t.Helper()
	ns, err := os.Readlink("/proc/thread-self/ns/net")
	must(t, err)
	return ns
}

func TestDo(t *testing.T) {
	lab := newLab(t)
	a, b := newTestHost(t, lab, "a"), newTestHost(t, lab, "b")
	runtime.LockOSThread() // so that the thread looked at is the one which was away
	defer runtime.UnlockOSThread()

	home := whereAmI(t)
	failure := errors.New("failure")
	err := a.Do(func() error {
		inA := whereAmI(t)
		must(t, b.Do(func() error {
			if inB := whereAmI(t); inB == inA || inB == home {
				t.Errorf("b is %s, a %s, home %s", inB, inA, home)
			}
			return nil
		}))
		if got := whereAmI(t); got != inA || got == home {
			t.Errorf("back from b to %s, a is %s, home %s", got, inA, home)
		}
		return failure
	})
	if !errors.Is(err, failure) {
		t.Errorf("got %v, want what the function returned", err)
	}
	if got := whereAmI(t); got != home {
		t.Errorf("back home in %s, not %s", got, home)
	}
}

func TestDoWhenGoroutineEnds(t *testing.T) {
	a := newTestHost(t, newLab(t), "a")
	home := whereAmI(t)
	ended := make(chan string)
	go func() {
		defer func() { ended <- whereAmI(t) }()
		_ = a.Do(func() error { runtime.Goexit(); return nil })
	}()
	if got := <-ended; got != home {
		t.Errorf("left in %s, not %s", got, home)
	}
}

func TestDoFromManyGoroutines(t *testing.T) {
	lab := newLab(t)
	hosts := []*Host{newTestHost(t, lab, "a"), newTestHost(t, lab, "b"), newTestHost(t, lab, "c")}
	var wants [3]string
	for i, h := range hosts {
		must(t, h.Do(func() error { wants[i] = whereAmI(t); return nil }))
	}
	home := whereAmI(t)
	var wg sync.WaitGroup
	for g := range 30 {
		wg.Go(func() {
			for range 100 {
				err := hosts[g%3].Do(func() error {
					if got := whereAmI(t); got != wants[g%3] {
						t.Errorf("in %s, not %s", got, wants[g%3])
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
				if got := whereAmI(t); got != home {
					t.Errorf("outside in %s, not %s", got, home)
				}
			}
		})
	}
	wg.Wait()
}

func TestSysctl(t *testing.T) {
	a := newTestHost(t, newLab(t), "a")
	get := func(key string) string {
		var value []byte
		must(t, a.Do(func() (err error) { value, err = os.ReadFile("/proc/sys/" + key); return err }))
		return strings.TrimSpace(string(value))
	}
	if got := get("net/ipv4/ip_forward"); got != "0" {
		t.Errorf("a new host has ip_forward %s", got) // TestIsolated has set it outside
	}
	must(t, a.Sysctl("net.ipv4.ip_forward", "1"), a.Sysctl("net/ipv6/conf/lo/hop_limit", "9"))
	if v4, v6 := get("net/ipv4/ip_forward"), get("net/ipv6/conf/lo/hop_limit"); v4 != "1" || v6 != "9" {
		t.Errorf("ip_forward is %s and hop_limit %s", v4, v6)
	}
	for _, key := range []string{"kernel.hostname", "net/../kernel/hostname", "/proc/sys/net/ipv4/ip_forward", "net/none"} {
		if err := a.Sysctl(key, "1"); err == nil {
			t.Errorf("%s was set", key)
		}
	}
}

func BenchmarkDo(b *testing.B) {
	a := newTestHost(b, newLab(b), "a")
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_ = a.Do(func() error { return nil })
		}
	})
}
