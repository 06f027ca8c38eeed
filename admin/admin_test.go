package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// parrot is a guard that answers with what it was asked.
type parrot struct {
	asked     any
	err       error
	flows     chan Denied
	following atomic.Int32
}

func (p *parrot) hear(q any) error { p.asked = q; return p.err }

func (p *parrot) Status(context.Context) (Status, error) {
	return Status{Mode: "nft-both"}, p.hear("status")
}
func (p *parrot) Grants(_ context.Context, q GrantsQuery) (Grants, error) {
	return Grants{More: true}, p.hear(q)
}
func (p *parrot) Explain(_ context.Context, q ExplainQuery) (Explanation, error) {
	return Explanation{Text: "why"}, p.hear(q)
}
func (p *parrot) Answers(_ context.Context, q AnswersQuery) (Answers, error) {
	return Answers{More: true}, p.hear(q)
}
func (p *parrot) Denied(_ context.Context, q DeniedQuery) (DeniedList, error) {
	return DeniedList{More: true}, p.hear(q)
}
func (p *parrot) Directives(context.Context) (Directives, error) {
	return Directives{[]Directive{{"Corefile:3", []string{"ipdestinationguard nft-both"}}}}, p.hear("directives")
}
func (p *parrot) Blocks(context.Context) (Blocks, error) {
	return Blocks{[]Block{{Place: "Corefile:3"}}}, p.hear("blocks")
}
func (p *parrot) Revoke(_ context.Context, r RevokeRequest) (Revoked, error) {
	return Revoked{Grants: 7}, p.hear(r)
}
func (p *parrot) SetAudit(_ context.Context, r AuditRequest) (Status, error) {
	return Status{Mode: "nft-local"}, p.hear(r)
}
func (p *parrot) Trial(_ context.Context, r TrialRequest) (Status, error) {
	return Status{Mode: "nft-local"}, p.hear(r)
}
func (p *parrot) Confirm(context.Context) (Status, error) { return Status{}, p.hear("confirm") }
func (p *parrot) Disarm(context.Context) (Status, error)  { return Status{}, p.hear("disarm") }
func (p *parrot) Follow(ctx context.Context, each func(Denied) error) error {
	p.following.Add(1)
	defer p.following.Add(-1)
	for {
		select {
		case d := <-p.flows:
			if err := each(d); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func serve(t *testing.T) (*parrot, *Server, *Client) {
	t.Helper()
	p := &parrot{flows: make(chan Denied)}
	s, err := Serve(filepath.Join(t.TempDir(), "admin.sock"), p)
	if err != nil {
		t.Fatal(err)
	}
	c := NewClient(s.Path())
	t.Cleanup(func() { c.Close(); s.Close() })
	return p, s, c
}

// call makes any of a client's calls.
func call[Q, R any](do func(context.Context, Q) (R, error), q Q) func() (any, any, error) {
	return func() (any, any, error) {
		r, err := do(context.Background(), q)
		return q, r, err
	}
}

func bare[R any](name string, do func(context.Context) (R, error)) func() (any, any, error) {
	return func() (any, any, error) {
		r, err := do(context.Background())
		return name, r, err
	}
}

// What the client is asked comes to the guard as it is, and the answer back.
func TestCalls(t *testing.T) {
	p, _, c := serve(t)
	at := time.Date(2026, 11, 29, 1, 2, 3, 4, time.UTC)
	for name, do := range map[string]func() (any, any, error){
		"status":             bare("status", c.Status),
		"all grants":         call(c.Grants, GrantsQuery{}),
		"some grants":        call(c.Grants, GrantsQuery{Name: `a\.b&c=d.example`, Address: netip.MustParsePrefix("2001:db8::/32"), Client: "02:00:00:00:00:01 at interface 3"}),
		"explain":            call(c.Explain, ExplainQuery{Name: "www.example.com", Protocol: "udp", Port: 1, Client: netip.MustParseAddr("fd00::1"), Interface: "lan0", User: "root", Unit: "a.service"}),
		"explain an address": call(c.Explain, ExplainQuery{Address: netip.MustParseAddr("192.0.2.1")}),
		"answers":            call(c.Answers, AnswersQuery{Name: "x", Address: netip.MustParseAddr("192.0.2.1"), Since: at}),
		"directives":         bare("directives", c.Directives),
		"blocks":             bare("blocks", c.Blocks),
		"denied":             call(c.Denied, DeniedQuery{Since: at}),
		"revoke":             call(c.Revoke, RevokeRequest{GrantsQuery: GrantsQuery{Name: "x", Address: netip.MustParsePrefix("192.0.2.1/32")}, Cut: true}),
		"flush":              call(c.Revoke, RevokeRequest{All: true}),
		"audit":              call(c.SetAudit, AuditRequest{Hook: "output", Audit: true}),
		"trial":              call(c.Trial, TrialRequest{Seconds: 1.5}),
		"confirm":            bare("confirm", c.Confirm),
		"disarm":             bare("disarm", c.Disarm),
	} {
		t.Run(name, func(t *testing.T) {
			p.err = nil
			q, r, err := do()
			if err != nil || !reflect.DeepEqual(p.asked, q) {
				t.Errorf("asked %+v, want %+v: %v", p.asked, q, err)
			}
			if name != "confirm" && name != "disarm" && reflect.ValueOf(r).IsZero() {
				t.Errorf("the answer is empty: %+v", r)
			}
			for _, want := range []error{ErrInvalid, ErrConflict, ErrUnsupported, ErrUnavailable} {
				p.err = errors.Join(errors.New("because"), want)
				if _, _, err := do(); !errors.Is(err, want) || !strings.Contains(err.Error(), "because") {
					t.Errorf("%v, want %v", err, want)
				}
			}
		})
	}
}

// Who follows may do so for longer than anything else may take, at either end.
func TestFollow(t *testing.T) {
	defer func(before time.Duration) { patience = before }(patience)
	patience = 50 * time.Millisecond
	p, s, c := serve(t)
	c.within = patience
	got := make(chan Denied)
	ended := make(chan error, 1)
	follow := func() {
		ended <- c.Follow(context.Background(), func(d Denied) error { got <- d; return nil })
	}
	go follow()
	began := false
	for _, want := range []Denied{{Text: "one"}, {Text: "two", Packets: 1 << 60}} {
		for sent := false; !sent; {
			select {
			case p.flows <- want:
				sent = true
			case err := <-ended:
				if began {
					t.Fatalf("it has ended: %v", err)
				}
				go follow() // this machine was too slow to ask in time
			}
		}
		began = true
		select {
		case d := <-got:
			if d != want {
				t.Errorf("%+v, want %+v", d, want)
			}
		case err := <-ended:
			t.Fatalf("it has ended: %v", err)
		}
		time.Sleep(4 * patience)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	var gone *UnreachableError
	if err := <-ended; !errors.As(err, &gone) {
		t.Errorf("after the server has ended: %v", err)
	}
	if _, err := c.Status(t.Context()); !errors.As(err, &gone) {
		t.Errorf("after the server has ended: %v", err)
	}
}

// Who listens and does not answer, as a process that is stopped or stuck, is not there.
func TestSilence(t *testing.T) {
	for name, begin := range map[string]string{"nothing": "", "half an answer": "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					defer conn.Close()
					_, _ = conn.Read(make([]byte, 1<<12))
					_, _ = conn.Write([]byte(begin))
				}
			}()
			c := NewClient(path)
			defer c.Close()
			c.within = time.Millisecond
			_, asked := c.Status(t.Context())
			_, revoked := c.Revoke(t.Context(), RevokeRequest{All: true})
			_, disarmed := c.Disarm(t.Context())
			for what, err := range map[string]error{"status": asked, "revoke": revoked, "disarm": disarmed} {
				var silent *UnreachableError
				if !errors.As(err, &silent) || !strings.Contains(err.Error(), path+": who listens there has not answered") {
					t.Errorf("%s: %v", what, err)
				}
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			why := errors.New("interrupted")
			cancel(why)
			if _, err := c.Status(ctx); !errors.Is(err, why) {
				t.Errorf("interrupted: %v", err)
			}
		})
	}
}

func TestBadRequests(t *testing.T) {
	_, s, c := serve(t)
	for _, tt := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/v1/nothing", "", 404},
		{"GET", "/v2/status", "", 404},
		{"GET", "/v1/revoke", "", 405},
		{"POST", "/v1/status", "", 405},
		{"POST", "/v1/revoke", `{"nmae": "www.example.com"}`, 400},
		{"POST", "/v1/revoke", `{"name": `, 400},
		{"POST", "/v1/revoke", `{"name": "` + strings.Repeat("a", maxRequest) + `"}`, 400},
		{"GET", "/v1/grants?address=x", "", 400},
		{"GET", "/v1/explain", "", 400},
		{"GET", "/v1/explain?address=192.0.2.1&port=65536", "", 400},
		{"GET", "/v1/explain?address=192.0.2.1&client=me", "", 400},
		{"GET", "/v1/denied?since=yesterday", "", 400},
		{"GET", "/v1/status?" + strings.Repeat("a", 2*maxRequest), "", 431},
	} {
		t.Run(tt.method+" "+tt.path[:min(len(tt.path), 40)], func(t *testing.T) {
			r, err := http.NewRequest(tt.method, "http://guard"+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			a, err := c.http.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Body.Close()
			body, _ := io.ReadAll(a.Body)
			if a.StatusCode != tt.status {
				t.Errorf("%s: %s", a.Status, body)
			}
			if tt.status == 400 && !json.Valid(body) {
				t.Errorf("not JSON: %s", body)
			}
		})
	}
	if _, err := NewClient(s.Path()).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// Who begins a request and does not go on is let go.
func TestSlowRequests(t *testing.T) {
	defer func(before time.Duration) { patience = before }(patience)
	patience = 50 * time.Millisecond
	_, s, _ := serve(t)
	for _, begin := range []string{"", "GET /v1/status HTTP/1.1\r\n", "POST /v1/revoke HTTP/1.1\r\nHost: guard\r\nContent-Length: 100\r\n\r\n{"} {
		conn, err := net.Dial("unix", s.Path())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte(begin)); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.ReadAll(conn); err != nil {
			t.Errorf("%q: %v", begin, err)
		}
	}
}

func TestWhoMay(t *testing.T) {
	m := members{own: 53, group: 99, named: true}
	for _, tt := range []struct {
		name string
		peer peer
		may  bool
	}{
		{"root", peer{uid: 0}, true},
		{"CoreDNS's user", peer{uid: 53}, true},
		{"a member", peer{uid: 1000, groups: []uint32{7, 99}}, true},
		{"another", peer{uid: 1000, groups: []uint32{7}}, false},
		{"one of the group that is no group", peer{uid: 1000, groups: []uint32{0, 53}}, false},
	} {
		if got := m.may(tt.peer); got != tt.may {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	if (members{own: 53}).may(peer{uid: 1000, groups: []uint32{0}}) {
		t.Error("without a group its members may")
	}
}

func TestPeer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	accepted, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	p, err := peerOf(accepted)
	if err != nil || p.pid != int32(os.Getpid()) || p.uid != uint32(os.Geteuid()) {
		t.Errorf("%v, %v", p, err)
	}
	groups, _ := os.Getgroups()
	if len(p.groups) != len(groups)+1 {
		t.Errorf("groups %v, want %v and %d", p.groups, groups, os.Getegid())
	}
}

func TestSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "admin.sock")
	first, err := Serve(path, &parrot{})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := Serve(path, &parrot{}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second one: %v", err)
	}
	first.Close()
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}

	// What a process that was killed has left is replaced.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	again, err := Serve(path, &parrot{})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:                               "no socket",
		"admin.sock":                       "slash",
		"/" + strings.Repeat("a", 107):     "bytes",
		filepath.Join(dir, "none", "sock"): "no such file",
	} {
		if s, err := Serve(path, &parrot{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", path, err, want)
			if s != nil {
				s.Close()
			}
		}
	}
}
