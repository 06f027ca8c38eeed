package route

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const crashBook = "ROUTE_TEST_CRASH_BOOK" // tells a child what to open

func TestMain(m *testing.M) {
	if path := os.Getenv(crashBook); path != "" {
		assignAway(path)
	}
	os.Exit(m.Run())
}

var crashRoutes = [2]*Route{routed("one", 3, "10.0.0.0/8", "fd00::/64"), routed("two", 3, "10.0.0.0/8", "fd00::/64")}

// assignAway gives out addresses as fast as it can, and tells of each answer, until it is
// killed.
func assignAway(path string) {
	b, err := Open(path, newRouter(), time.Now)
	if err != nil {
		fmt.Println("open:", err)
		os.Exit(1)
	}
	for n := range 16 {
		go func() {
			random := rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(n)))
			for {
				reals := []netip.Addr{randomReal(random, n%2 == 0)}
				for len(reals) < 1+random.IntN(3) {
					reals = append(reals, randomReal(random, n%2 == 0))
				}
				name := fmt.Sprintf("%x.example.", random.IntN(20_000))
				a, err := b.Assign(context.Background(), crashRoutes[random.IntN(2)], name, "", 0, reals, time.Minute)
				if err != nil {
					fmt.Println("assign:", err)
				} else {
					os.Stdout.WriteString(name + " " + text(a.Mapped) + "\n")
				}
			}
		}()
	}
	for n := 0; ; n++ {
		if _, err := b.Tidy(context.Background(), 48*time.Hour); err != nil {
			fmt.Println("tidy:", err)
		}
		err := b.Rehome(context.Background(), func(_, name, _ string) *Route {
			if name[0] == '1' {
				return crashRoutes[n%2]
			}
			return nil
		})
		if err != nil {
			fmt.Println("rehome:", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func randomReal(random *rand.Rand, ipv4 bool) netip.Addr {
	if ipv4 {
		return netip.AddrFrom4([4]byte{192, 0, 2, byte(random.IntN(256))})
	}
	return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(random.IntN(256))})
}

// A process that is killed has given nobody's address to somebody else, and the next one
// knows of every address that it has given out.
func TestKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "book")
	owner := make(map[netip.Addr]string)
	kills := 25
	if testing.Short() {
		kills = 5
	}
	for n := range kills {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), crashBook+"="+path)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Duration(rand.IntN(200))*time.Millisecond, func() { child.Process.Kill() })
		lines := bufio.NewReader(out)
		for {
			line, err := lines.ReadString('\n')
			if err != nil { // what it said of the last one may not be all
				break
			}
			if strings.Contains(line, ":") && !strings.Contains(line, "fd00:") {
				t.Fatalf("kill %d: %s", n, line)
			}
			name, mapped, _ := strings.Cut(strings.TrimSpace(line), " ")
			for _, a := range addrs(mapped) {
				if was := owner[a]; was != "" && was != name {
					t.Fatalf("kill %d: %v was %s's, and is %s's", n, a, was, name)
				}
				owner[a] = name
			}
		}
		child.Wait()
		known(t, path, owner)
	}
	t.Logf("%d addresses after %d kills", len(owner), kills)
	if len(owner) < 20*kills {
		t.Errorf("only %d addresses were given out", len(owner))
	}
}

// known checks that a book knows who has which address.
func known(t *testing.T, path string, owner map[netip.Addr]string) {
	t.Helper()
	b, err := Open(path, newRouter(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for a, name := range owner {
		if now, _ := b.NameOf(a); now != name {
			t.Fatalf("%v was %s's, and is %q's", a, name, now)
		}
	}
}

// Who copies the file while it is written to gets a book, or is told that it is none.
func TestCopiedWhileWritten(t *testing.T) {
	d := newDesk(t)
	d.Settled()
	ctx, stop := context.WithCancel(context.Background())
	var assigning sync.WaitGroup
	assigning.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			d.taken(crashRoutes[i%2], fmt.Sprintf("%x.example.", i), 3, "192.0.2.1 192.0.2.2")
			d.Tidy(context.Background(), long)
		}
	})
	path := filepath.Join(t.TempDir(), "copy")
	opened, refused := 0, 0
	for n, began := 0, time.Now(); n < 200 && time.Since(began) < 3*time.Second; n++ {
		slowCopy(t, d.path, path, 1<<rand.IntN(8), n%10 == 0)
		b, err := Open(path, newRouter(), time.Now)
		if err != nil {
			refused++
			continue
		}
		opened++
		(&desk{T: t, Book: b}).sound()
		if b.Strange() != nil {
			t.Error("it is taken for a new one")
		}
		if err := b.Close(); err != nil && !errors.Is(err, ErrCorrupt) { // it is seen when it is written to
			t.Error(err)
		}
	}
	stop()
	assigning.Wait()
	d.sound()
	t.Logf("%d opened, %d refused", opened, refused)
}

// slowCopy copies so many pages at a time, and maybe not all of them.
func slowCopy(t *testing.T, from, to string, pages int, part bool) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for {
		if n, err := io.CopyN(out, in, int64(4096*pages)); err != nil || n == 0 || part && rand.IntN(20) == 0 {
			return
		}
		time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
	}
}
