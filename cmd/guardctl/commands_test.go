package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

// told is a guard that notes what it is told, and has a little of everything.
type told struct {
	requests []any
	status   admin.Status
}

var (
	noon    = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	web     = netip.MustParseAddr("192.0.2.7")
	refused = admin.Denied{Hook: "forward", Client: netip.MustParseAddr("10.0.0.9"), Interface: "lan0", Protocol: "tcp", Port: 443, Address: web, Packets: 3, Bytes: 180, Reason: "never_resolved", Text: "never resolved here"}
)

func note[Q, R any](g *told, q Q, r R) (R, error) {
	g.requests = append(g.requests, q)
	return r, nil
}

func (g *told) Status(context.Context) (admin.Status, error) { return g.status, nil }
func (g *told) Grants(_ context.Context, q admin.GrantsQuery) (admin.Grants, error) {
	until := time.Now().Add(time.Hour)
	return note(g, q, admin.Grants{Grants: []admin.Grant{
		{Address: web, For: "10.0.0.9", Until: until, Names: []string{"a.test", "b.test"}},
		{Address: web, For: "a.service", Only: "tcp/443", Until: until, Names: []string{}},
	}, More: true})
}
func (g *told) Explain(_ context.Context, q admin.ExplainQuery) (admin.Explanation, error) {
	return note(g, q, admin.Explanation{Addresses: []admin.Explained{{Address: web, Verdicts: []admin.Verdict{
		{Hook: "output", For: "this machine", To: "tcp/443", Passes: true, Refused: true, Text: "never resolved here"},
	}}}})
}
func (g *told) Answers(_ context.Context, q admin.AnswersQuery) (admin.Answers, error) {
	return note(g, q, admin.Answers{Answers: []admin.Answer{{Name: "a.test", Address: web, For: "10.0.0.9", At: noon}}})
}
func (g *told) Denied(_ context.Context, q admin.DeniedQuery) (admin.DeniedList, error) {
	return note(g, q, admin.DeniedList{Flows: []admin.Denied{refused}})
}
func (g *told) Directives(context.Context) (admin.Directives, error) {
	return admin.Directives{Directives: []admin.Directive{}}, nil
}
func (g *told) Blocks(context.Context) (admin.Blocks, error) {
	return admin.Blocks{Blocks: []admin.Block{}}, nil
}
func (g *told) Follow(ctx context.Context, each func(admin.Denied) error) error {
	for range 2 {
		if err := each(refused); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}
func (g *told) Revoke(_ context.Context, r admin.RevokeRequest) (admin.Revoked, error) {
	return note(g, r, admin.Revoked{Grants: 2, Connections: 1})
}
func (g *told) SetAudit(_ context.Context, r admin.AuditRequest) (admin.Status, error) {
	return note(g, r, g.status)
}
func (g *told) Trial(_ context.Context, r admin.TrialRequest) (admin.Status, error) {
	return note(g, r, g.status)
}
func (g *told) Confirm(context.Context) (admin.Status, error) { return note(g, "confirm", g.status) }
func (g *told) Disarm(context.Context) (admin.Status, error)  { return note(g, "disarm", g.status) }

// tell runs guardctl with such a guard, and interrupts it after so many lines if that is not 0.
func tell(t *testing.T, lines int, args ...string) (g *told, out string, code int) {
	t.Helper()
	end := noon.Add(time.Minute)
	g = &told{status: admin.Status{Now: noon, Mode: "nft-both", Table: "guard", Enforcing: true, Hooks: []admin.Hook{
		{Name: "output", State: admin.Enforced, By: "guardctl"}, {Name: "forward", State: admin.Tried, By: "corefile", Until: &end},
	}}}
	s, err := admin.Serve(filepath.Join(t.TempDir(), "s"), g)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	w := &interrupter{lines: lines, stop: stop}
	code = run(ctx, append([]string{"--socket", s.Path()}, args...), w, w)
	return g, w.String(), code
}

// interrupter is Ctrl-C after so many lines.
type interrupter struct {
	bytes.Buffer
	lines int
	stop  func()
}

func (w *interrupter) Write(b []byte) (int, error) {
	n, err := w.Buffer.Write(b)
	if w.lines > 0 && bytes.Count(w.Bytes(), []byte("\n")) >= w.lines {
		w.stop()
	}
	return n, err
}

// What is said on the command line is what the guard is asked.
func TestRequests(t *testing.T) {
	to := func(text string) admin.GrantsQuery { return admin.GrantsQuery{Address: netip.MustParsePrefix(text)} }
	for _, tt := range []struct {
		args []string
		want []any
	}{
		{[]string{"grants"}, []any{admin.GrantsQuery{}}},
		{[]string{"grants", "--name", "a.test", "--client", "10.0.0.9", "--address", "192.0.2.7"}, []any{admin.GrantsQuery{Name: "a.test", Client: "10.0.0.9", Address: netip.MustParsePrefix("192.0.2.7/32")}}},
		{[]string{"explain", "a.test", "--unit", "a.service", "--user", "www-data"}, []any{admin.ExplainQuery{Name: "a.test", Unit: "a.service", User: "www-data", Protocol: "tcp", Port: 443}}},
		{[]string{"explain", "192.0.2.7", "--interface", "lan0", "--client", "10.0.0.9", "--to", "icmp"}, []any{admin.ExplainQuery{Address: web, Interface: "lan0", Client: refused.Client, Protocol: "icmp"}}},
		{[]string{"revoke", "a.test"}, []any{admin.RevokeRequest{GrantsQuery: admin.GrantsQuery{Name: "a.test"}}}},
		{[]string{"revoke", "10.0.0.9", "--cut"}, []any{admin.RevokeRequest{GrantsQuery: to("10.0.0.9/32"), Cut: true}, admin.RevokeRequest{GrantsQuery: admin.GrantsQuery{Client: "10.0.0.9"}, Cut: true}}},
		{[]string{"revoke", "10.0.0.0/8"}, []any{admin.RevokeRequest{GrantsQuery: to("10.0.0.0/8")}}},
		{[]string{"revoke", "192.0.2.7", "--client", "10.0.0.9"}, []any{admin.RevokeRequest{GrantsQuery: admin.GrantsQuery{Address: netip.MustParsePrefix("192.0.2.7/32"), Client: "10.0.0.9"}}}},
		{[]string{"revoke", "10.0.0.9", "--address", "192.0.2.7"}, []any{admin.RevokeRequest{GrantsQuery: admin.GrantsQuery{Address: netip.MustParsePrefix("192.0.2.7/32"), Client: "10.0.0.9"}}}},
		{[]string{"revoke", "10.0.0.9", "--address", "192.0.2.7", "--client", "10.0.0.8"}, nil},
		{[]string{"revoke", "a.test", "--name", "b.test"}, nil},
		{[]string{"revoke", "--name", "a.test", "--client", "a.service", "--cut"}, []any{admin.RevokeRequest{GrantsQuery: admin.GrantsQuery{Name: "a.test", Client: "a.service"}, Cut: true}}},
		{[]string{"flush"}, []any{admin.RevokeRequest{All: true}}},
		{[]string{"flush", "--cut"}, []any{admin.RevokeRequest{All: true, Cut: true}}},
		{[]string{"audit"}, []any{admin.AuditRequest{Audit: true}}},
		{[]string{"enforce", "local"}, []any{admin.AuditRequest{Hook: "output"}}},
		{[]string{"audit", "gateway"}, []any{admin.AuditRequest{Hook: "forward", Audit: true}}},
		{[]string{"trial", "1m30s"}, []any{admin.TrialRequest{Seconds: 90}}},
	} {
		g, out, code := tell(t, 0, tt.args...)
		if wrong := tt.want == nil; wrong != (code == exitUsage) || !wrong && code != exitOK || !reflect.DeepEqual(g.requests, tt.want) {
			t.Errorf("guardctl %v: %d, %s\nasked %+v\nwant  %+v", tt.args, code, out, g.requests, tt.want)
		}
	}
}

// --since is how far back.
func TestSince(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.html")
	for _, args := range [][]string{{"denied"}, {"learn"}, {"report", "--html", page}} {
		began := time.Now()
		g, out, code := tell(t, 0, append(args, "--since", "90m")...)
		if code != exitOK || len(g.requests) == 0 {
			t.Errorf("guardctl %v: %d, %s", args, code, out)
		}
		for _, q := range g.requests {
			var since time.Time
			switch q := q.(type) {
			case admin.DeniedQuery:
				since = q.Since
			case admin.AnswersQuery:
				since = q.Since
			}
			if at := since.Add(90 * time.Minute); !at.Equal(noon) && (at.Before(began) || at.After(time.Now())) {
				t.Errorf("guardctl %v asks since %v", args, since)
			}
		}
	}
}

// Every command writes JSON if it is asked to, and nothing else.
func TestJSON(t *testing.T) {
	args := map[string][]string{"explain": {"a.test"}, "trial": {"5m"}, "watch": {"--times", "1"}, "doctor": {"--root", t.TempDir()}, "revoke": {"a.test"}}
	var commands [][]string
	for _, cmd := range new(guardctl).command().Commands() {
		if cmd.IsAvailableCommand() {
			commands = append(commands, append([]string{cmd.Name()}, args[cmd.Name()]...))
		}
	}
	for _, args := range append(commands, []string{"report", "--html", filepath.Join(t.TempDir(), "page.html")}) {
		_, out, code := tell(t, 0, append(args, "--json")...)
		var v map[string]any
		if err := json.Unmarshal([]byte(out), &v); err != nil || len(v) == 0 || code != exitOK && args[0] != "doctor" {
			t.Errorf("guardctl %v --json: %d, %v: %s", args, code, err, out)
		}
	}
	_, out, code := tell(t, 2, "denied", "-f", "--json")
	lines := json.NewDecoder(strings.NewReader(out))
	for range 2 {
		var d admin.Denied
		if err := lines.Decode(&d); err != nil || d != refused {
			t.Errorf("guardctl denied -f --json: %+v, %v", d, err)
		}
	}
	if code != exitOK || lines.More() {
		t.Errorf("guardctl denied -f --json: %d: %s", code, out)
	}
}

var hourOrLess = regexp.MustCompile(`\b[0-9]+[hm][0-9hm]*s\b`)

// What people read, in lines without their gaps.
func TestWords(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{[]string{"grants"}, []string{
			"ADDRESS FOR ONLY LEFT NAMES",
			"192.0.2.7 10.0.0.9 anything TIME a.test b.test",
			"192.0.2.7 a.service tcp/443 TIME (not remembered)",
			"and more than these 2: narrow it down by --name, --address or --client"}},
		{[]string{"revoke", "10.0.0.9", "--cut"}, []string{"4 grants ended, 2 connections cut"}},
		{[]string{"explain", "192.0.2.7"}, []string{"this machine to tcp/443: PASSES IN AUDIT, would be refused: never resolved here"}},
		{[]string{"status"}, []string{
			"what this machine sends: what no grant covers is refused (by guardctl, until CoreDNS is restarted: the Corefile says otherwise)",
			"what it forwards: TRIAL: refused for TIME more, then audit again unless guardctl confirm comes"}},
		{[]string{"watch", "--times", "1"}, []string{
			"output what no grant covers is refused (by guardctl, until CoreDNS is restarted: the Corefile says otherwise); refused 0.0/s, audit 0.0/s",
			"forward TRIAL: refused for TIME more, then audit again unless guardctl confirm comes; refused 0.0/s, audit 0.0/s"}},
		{[]string{"learn"}, []string{"names a.test", "allowedGatewayIPs 192.0.2.7 # tcp/443, by 10.0.0.9 (lan0), 3 packets"}},
	} {
		_, out, code := tell(t, 0, tt.args...)
		var lines []string
		for line := range strings.Lines(hourOrLess.ReplaceAllString(out, "TIME")) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		for _, want := range tt.want {
			if code != exitOK || !slices.Contains(lines, want) {
				t.Errorf("guardctl %v: %d, no line\n%s\nin\n%s", tt.args, code, want, out)
			}
		}
	}
	if _, out, code := tell(t, 0, "learn", "--any-name"); code != exitOK || strings.Contains(out, "names ") || !strings.Contains(out, "allowedGatewayIPs 192.0.2.7") {
		t.Errorf("learn --any-name: %d\n%s", code, out)
	}
}

// Each command has a man page with its options, and each shell a completion.
func TestManAndCompletion(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man8")
	if _, out, code := tell(t, 0, "man", dir); code != exitOK {
		t.Fatalf("man: %d, %s", code, out)
	}
	root := new(guardctl).command()
	var pages []string
	check := func(cmd *cobra.Command) {
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".8"
		pages = append(pages, name)
		page, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			return
		}
		text := strings.ReplaceAll(string(page), `\-`, "-")
		for _, want := range []string{".TH \"" + strings.ToUpper(strings.TrimSuffix(name, ".8")), cmd.Short, "--json"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q in it", name, want)
			}
		}
	}
	check(root)
	for _, cmd := range root.Commands() {
		if cmd.IsAvailableCommand() {
			check(cmd)
		}
	}
	files, _ := os.ReadDir(dir)
	for _, f := range files {
		if name := f.Name(); !slices.Contains(pages, name) && !strings.HasPrefix(name, "guardctl-completion") {
			t.Errorf("a page of nothing: %s", name)
		}
	}
	for shell, want := range map[string]string{"bash": "complete -o default -F __start_guardctl guardctl", "zsh": "#compdef guardctl", "fish": "complete -c guardctl"} {
		_, out, code := tell(t, 0, "completion", shell)
		if code != exitOK || !strings.Contains(out, want) {
			t.Errorf("completion %s: %d, no %q", shell, code, want)
		}
		if path, err := exec.LookPath(shell); err == nil {
			file := filepath.Join(t.TempDir(), shell)
			if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(path, "-n", file).CombinedOutput(); err != nil {
				t.Errorf("%s cannot read it: %v: %s", shell, err, out)
			}
		}
	}
	if _, out, _ := tell(t, 0, "__complete", "enforce", ""); !strings.Contains(out, "local\ngateway\n") {
		t.Errorf("enforce is completed by %q", out)
	}
}
