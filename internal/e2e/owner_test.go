package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
)

// `nft flush ruleset` takes everybody's tables but the guard's. It is counted,
// and told once.
func TestFlushIsWithstood(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	kernels[0].prepare(w)
	c := w.start(corefile(guardBlock("nft-both")))
	tr := w.traffic()
	tr.ofAll()
	const rounds = 3
	for n := range rounds {
		w.nftables(func(conn *nftables.Conn) error {
			conn.AddTable(&nftables.Table{Name: "theirs", Family: nftables.TableFamilyIPv4})
			return conn.Flush()
		})
		time.Sleep(100 * time.Millisecond)
		w.nftables(flushRuleset)
		w.eventually("it is counted", func() bool {
			return w.metric("coredns_ipdestinationguard_flushes_withstood_total") == float64(n+1)
		})
	}
	if !w.ready() {
		t.Error("not ready")
	}
	tr.end()
	if n := strings.Count(c.Output(), "Somebody else has flushed the ruleset"); n != 1 {
		t.Errorf("told %d times, want once:\n%s", n, c.Output())
	}
	for _, variable := range []string{"kernel_errors_total", "repairs_total"} {
		if got := w.metric("coredns_ipdestinationguard_" + variable); got != 0 {
			t.Errorf("%s is %v", variable, got)
		}
	}
}

// A second CoreDNS with the same table ends with an error that says so. The first
// does not notice. When it has gone, the second can start.
func TestSecondCoreDNS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	kernels[0].prepare(w)
	file := corefile(guardBlock("nft-both"))
	c := w.start(file)
	p := w.self()
	w.lookup(p.Host, p.resolver4, p.addr4(1), 600)
	tr := w.traffic()
	tr.neverOpen(w.guard)
	tr.neverOpen(w.client)
	tr.alwaysOpen(w.guard, p.addr4(1))
	path := filepath.Join(t.TempDir(), "Corefile")
	w.save(path, strings.NewReplacer(":8181", ":8182", ":9153", ":9154").Replace(file))
	out := w.fails(w.guard.Command(binary(t), "-conf", path))
	t.Logf("it said:\n%s", out)
	if !strings.Contains(out, "table inet ipdestinationguard: ") || !strings.Contains(out, "belongs to another process, most likely a second CoreDNS") {
		t.Error("it does not say why")
	}
	w.lookup(p.Host, p.resolver4, p.addr4(2), 600)
	w.wantOpen(p.Host, "tcp", p.addr4(2))
	if n := w.metric("coredns_ipdestinationguard_repairs_total") + w.metric("coredns_ipdestinationguard_kernel_errors_total"); n != 0 {
		t.Errorf("the first was disturbed %v times:\n%s", n, c.Output())
	}
	w.kill(c)
	w.start(file)
	tr.end()
}
