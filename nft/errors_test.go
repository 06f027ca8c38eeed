package nft

import (
	"errors"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
)

// A kernel that lacks what only some rules need is told of by its name, and whoever
// has no such rules does not need it.
func TestKernelLacks(t *testing.T) {
	base := backendtest.Rules()
	units, self, class, capture, uid := base, base, base, base, base
	units.LocalHolders = []backend.Holder{backend.Unit}
	self.Upstream = upstreams(t, "192.0.2.1:53")
	uid.Upstream = self.Upstream
	self.Self.Cgroup = backend.Cgroup{ID: 1 << 40, Level: 1}
	class.Classes = map[backend.Class]backend.Predicates{1: {Units: []backend.Cgroup{{Path: "/a", Level: 1}}}}
	capture.Capture = 53
	elsewhere := capture
	elsewhere.Capture = 5353
	base.Linger = 1e9
	routes := capture
	routes.Capture, routes.Book, routes.Routes = 0, "book", []backend.Route{{Name: "one", Pools: poolsOfTests}}
	for name, tt := range map[string]struct {
		rules backend.Rules
		need  []string
	}{
		"neither": {rules: base}, "a user": {rules: uid}, "elsewhere": {rules: elsewhere, need: []string{"nft_chain_nat", "nft_redir"}},
		"units": {units, []string{"nft_socket"}}, "self": {self, []string{"nft_socket"}}, "class": {class, []string{"nft_socket"}},
		"capture": {capture, []string{"nft_chain_nat", "nft_fib_inet"}}, "routes": {routes, []string{"nft_chain_nat", "nft_fib_inet", "nft_masq"}},
	} {
		t.Run(name, func(t *testing.T) {
			msgs, err := newRuleset(tt.rules).compile(present{}, false, 0, true)
			if err != nil {
				t.Fatal(err)
			}
			told := map[string]bool{}
			for i := range msgs {
				err := explainAbout(&msgs[i], &kernelError{errno: unix.ENOENT, text: "x"})
				var unsupported *unsupportedError
				if errors.As(err, &unsupported) {
					need, _, _ := strings.Cut(unsupported.need, " ")
					told[need] = true
					if want := "this kernel cannot do it: no such file or directory (x) (" + need; !strings.HasPrefix(err.Error(), want) {
						t.Errorf("%v", err)
					}
				}
			}
			for _, need := range tt.need {
				if !told[need] {
					t.Errorf("%s is not told of", need)
				}
				delete(told, need)
			}
			if len(told) > 0 {
				t.Errorf("told of %v", told)
			}
		})
	}
	rule := &netlink.Message{Header: netlink.Header{Type: unix.NFT_MSG_NEWRULE}, Data: make([]byte, 4)}
	var unsupported *unsupportedError
	for name, err := range map[string]error{
		"another error":         explainAbout(rule, &kernelError{errno: unix.EINVAL}),
		"nobody knows of which": explainAbout(nil, &kernelError{errno: unix.ENOENT}),
		"another rule":          explainAbout(rule, &kernelError{errno: unix.ENOENT}),
	} {
		if errors.As(err, &unsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
