package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The report of a guard at work has what was looked up and opened, for whom, what was
// taken out, and what was denied and why.
func TestReport(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path, option := w.socket()
	w.start(corefile(guardBlock("nft-both", option)))
	behind := w.behind()
	named, evil := strings.TrimSuffix(nameOf(60, behind.addr4(1)), "."), "a-10-9-9-9.evil.test"
	w.lookup(w.client, gateway4, behind.addr4(1), 60)
	if _, n := w.askName(w.client, gateway4, evil+".", mustAddr("10.9.9.9")); n > 0 {
		t.Errorf("%s has an address", evil)
	}
	w.wantRefused(w.client, "tcp", behind.addr4(2))

	file := filepath.Join(t.TempDir(), "report.html")
	var report struct {
		Names []struct {
			Name, Stripped string
			Addresses, For []string
		}
		Denied  []struct{ Address, Reason string }
		Reasons []struct {
			Reason  string
			Packets int
		}
	}
	out := w.ctl(path, exitOK, "report", "--html", file, "--json")
	w.must(json.Unmarshal([]byte(out), &report))
	seen := map[string]bool{}
	for _, n := range report.Names {
		seen[n.Name] = len(n.For) == 1 && strings.HasPrefix(n.For[0], "192.168.50.2") &&
			(n.Name == named && n.Stripped == "" && slices.Equal(n.Addresses, []string{behind.addr4(1)}) || n.Name == evil && n.Stripped == "private-use (RFC 1918)" && len(n.Addresses) == 0)
	}
	for _, d := range report.Denied {
		seen[d.Address] = d.Reason == "never_resolved"
	}
	if len(seen) != 3 || !seen[named] || !seen[evil] || !seen[behind.addr4(2)] || len(report.Reasons) != 1 || report.Reasons[0].Packets == 0 {
		t.Errorf("the report has: %s", out)
	}
	page, err := os.ReadFile(file)
	w.must(err)
	for _, part := range []string{"in force", named, behind.addr4(1), evil, "taken out: private-use (RFC 1918)", behind.addr4(2), "never resolved here"} {
		if !strings.Contains(string(page), part) {
			t.Errorf("the page has no %s:\n%s", part, page)
		}
	}
	if n := strings.Count(string(page), `class="good"`); n != 1 {
		t.Errorf("%d columns of addresses that were opened, and one was", n)
	}
	w.ctl(path, exitUsage, "report")
	w.ctl(path, exitFailed, "report", "--html", filepath.Join(file, "none"))
}
