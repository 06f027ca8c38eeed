package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

// Of a mapped address it is said whose it is, to whom it is open, and that nobody has it.
func TestMappedAddressesAreExplained(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path, option := w.socket()
	other, _ := w.moreClients()
	w.addEgress()
	c := w.start(corefile(guardBlock("nft-both", append(slices.Clone(twoRoutes), option)...)))
	behind := w.behind()
	mapped := w.mappedTo(behind, "one", behind.addr4(1))
	name := strings.TrimSuffix(inZone("one", 3600, behind.addr4(1)), ".")
	for _, tt := range []struct {
		to, client string
		passes     bool
		reason     string
		text       string
	}{
		{mapped, "192.168.50.2", true, "granted", "mapped address of " + name + ": opened by the answer for " + name},
		{mapped, neighbour4, false, "other_holder", "mapped address of " + name + ": granted to 192.168.50.2, not to " + neighbour4},
		{"100.127.1.1", "192.168.50.2", false, "unassigned", "unassigned"},
	} {
		e, err := w.asks(path).Explain(t.Context(), admin.ExplainQuery{Address: mustAddr(tt.to), Client: mustAddr(tt.client)})
		w.must(err)
		if v := e.Addresses[0].Verdicts[0]; v.Passes != tt.passes || v.Reason != tt.reason || !strings.HasPrefix(v.Text, tt.text) {
			t.Errorf("%s to %s: %+v", tt.client, tt.to, v)
		}
	}
	w.wantOpen(w.client, "tcp", mapped)
	for addr, want := range map[string]string{mapped: "other_holder", "100.127.1.1": "unassigned"} {
		from := w.client
		if addr == mapped {
			from = other
		}
		if err := w.connect(from, "tcp", addr); err == nil {
			t.Errorf("%s reaches %s", from.Name(), addr)
		}
		if d := w.denied(path, addr, echoPort, "forward"); d.Reason != want {
			t.Errorf("%s: %+v, want %s", addr, d, want)
		}
	}
	explain := func(code int, want ...string) {
		t.Helper()
		out := w.ctl(path, code, "explain", mapped, "--client", "192.168.50.2")
		for _, text := range want {
			if !strings.Contains(out, text) {
				t.Errorf("no %q in\n%s", text, out)
			}
		}
	}
	explain(exitOK, mapped+" leads to "+behind.addr4(1)+", leaves as "+egressOne[0]+" (route at ", ": passes: mapped address of "+name)

	// Its route goes: whatever is granted, it leads nowhere.
	nowhere := []string{mapped + " leads nowhere now", "REFUSED: unassigned", ", though it leads nowhere now: " + name}
	w.mustReload(c, corefile(guardBlock("nft-both", twoRoutes[1], option)))
	if err := w.connect(w.client, "tcp", mapped); err == nil {
		t.Errorf("%s is reached, and its route has gone", mapped)
	}
	explain(exitNo, append(nowhere, "its route has changed")...)
	w.mustReload(c, corefile(guardBlock("nft-both", append(slices.Clone(twoRoutes), option)...)))
	w.mappedTo(behind, "one", behind.addr4(1))
	w.wantOpen(w.client, "tcp", mapped)
	explain(exitOK, mapped+" leads to "+behind.addr4(1))

	// Another book: nobody has it.
	w.mustReload(c, corefile(guardBlock("nft-both", routeBlock("one", "state "+w.TempDir()+"/other.db"), option)))
	if err := w.connect(w.client, "tcp", mapped); err == nil {
		t.Errorf("%s is reached, and no name has it", mapped)
	}
	explain(exitNo, append(nowhere, "that no name has now")...)
}
