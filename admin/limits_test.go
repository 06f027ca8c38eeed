package admin

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// eventually waits for long, on a machine that is slow.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// So many may follow, and who comes after them is told; when one goes, there is a place.
func TestFollowersAreBounded(t *testing.T) {
	p, _, c := serve(t)
	ctx, leave := context.WithCancel(t.Context())
	for n := range 16 {
		who := t.Context()
		if n == 0 {
			who = ctx
		}
		go func() { _ = c.Follow(who, func(Denied) error { return nil }) }()
	}
	eventually(t, "16 follow", func() bool { return p.following.Load() == 16 })
	late, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if err := c.Follow(late, func(Denied) error { return nil }); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "16 follow already") {
		t.Errorf("a 17th: %v", err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("others ask meanwhile: %v", err)
	}
	leave()
	eventually(t, "one has left", func() bool { return p.following.Load() == 15 })
	eventually(t, "another follows", func() bool {
		ctx, stop := context.WithCancel(t.Context())
		go func() { p.flows <- Denied{}; stop() }()
		err := c.Follow(ctx, func(Denied) error { return nil })
		return !errors.Is(err, ErrUnavailable)
	})
}

// So many connections are answered at the same time; the next one waits.
func TestConnectionsAreBounded(t *testing.T) {
	_, s, _ := serve(t)
	ask := func() net.Conn {
		conn, err := net.Dial("unix", s.Path())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := conn.Write([]byte("GET /v1/status HTTP/1.1\r\nHost: guard\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	answered := func(conn net.Conn, within time.Duration) bool {
		_ = conn.SetReadDeadline(time.Now().Add(within))
		r, err := http.ReadResponse(bufio.NewReader(conn), nil)
		return err == nil && r.StatusCode == http.StatusOK
	}
	var open []net.Conn
	for n := range 64 {
		open = append(open, ask())
		if !answered(open[n], time.Minute) {
			t.Fatalf("connection %d is not answered", n+1)
		}
	}
	next := ask()
	if answered(next, 200*time.Millisecond) {
		t.Fatal("a 65th is answered")
	}
	open[0].Close()
	if !answered(next, time.Minute) {
		t.Error("it is not answered when one has gone")
	}
}

// The socket is the group's before anybody finds it.
func TestSocketIsTheGroups(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root to give a file away")
	}
	for _, m := range []members{{group: 54321, named: true}, {group: 54321}} {
		path := filepath.Join(t.TempDir(), "s")
		l, err := listen(path, m)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if gid := info.Sys().(*syscall.Stat_t).Gid; (gid == m.group) != m.named || info.Mode().Perm() != 0o660 {
			t.Errorf("%+v: the socket is %v, of group %d", m, info.Mode(), gid)
		}
	}
}

var (
	routed     = regexp.MustCompile(`(?m)^\t+(get|post)\(mux, "(/[a-z/]+)"|"(GET|POST) "\+Version\+"(/[a-z/]+)"`)
	documented = regexp.MustCompile("(?m)^\\| `(GET|POST) (/v1/[a-z/]+)` \\|")
	status     = regexp.MustCompile(`(?m)^\| ([45][0-9]{2}) \|`)
)

// docs/admin-api.md has every call and every status that there is, and no other.
func TestDocumented(t *testing.T) {
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	text := read("../docs/admin-api.md")
	var there, told []string
	for _, m := range routed.FindAllStringSubmatch(read("server.go"), -1) {
		there = append(there, strings.ToUpper(m[1]+m[3])+" "+Version+m[2]+m[4])
	}
	for _, m := range documented.FindAllStringSubmatch(text, -1) {
		told = append(told, m[1]+" "+m[2])
	}
	slices.Sort(there)
	slices.Sort(told)
	if !slices.Equal(there, told) || len(there) == 0 {
		t.Errorf("there is      %q\nit is told of %q", there, told)
	}
	codes := map[string]bool{"500": true} // what is no error of its own
	for _, s := range statuses {
		codes[strconv.Itoa(s.status)] = true
	}
	for _, m := range status.FindAllStringSubmatch(text, -1) {
		if !codes[m[1]] {
			t.Errorf("%s is documented, and nothing has it", m[1])
		}
		delete(codes, m[1])
	}
	if len(codes) > 0 {
		t.Errorf("not documented: %v", codes)
	}
	for _, want := range []string{DefaultPath, "the group `" + Group + "`", "10,000 entries", strconv.Itoa(maxFollowers) + " may follow"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in docs/admin-api.md", want)
		}
	}
}
