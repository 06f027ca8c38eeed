package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
	"github.com/destination-guard/coredns-ip-destination-guard/identity"
	"github.com/destination-guard/coredns-ip-destination-guard/nft"
)

// kernel looks how old it is.
func (d *doctor) kernel() {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		d.say(unknown, "look with uname -r", "its version is not known: %v", err)
		return
	}
	d.judgeKernel(unix.ByteSliceToString(u.Release[:]))
}

func (d *doctor) judgeKernel(release string) {
	switch v := kernelVersion(release); {
	case v < 5_010:
		d.say(failure, "Linux 5.10 or later is needed", "it is Linux %s", release)
	case v < 6_009:
		d.say(warning, "with Linux 6.9 or later nobody but CoreDNS can change the table; here it is put back within 100 ms", "it is Linux %s: other programs can flush the guard's rules", release)
	default:
		d.say(fine, "", "it is Linux %s", release)
	}
}

// kernelVersion is 6018 of 6.18.5-arch1.
func kernelVersion(release string) (v int) {
	parts := strings.SplitN(release, ".", 3)
	for i := range 2 {
		v *= 1000
		if i < len(parts) {
			digits := strings.IndexFunc(parts[i], func(r rune) bool { return r < '0' || r > '9' })
			if digits < 0 {
				digits = len(parts[i])
			}
			n, _ := strconv.Atoi(parts[i][:digits])
			v += n
		}
	}
	return v
}

// features has the kernel try rules of each kind, without carrying them out.
func (d *doctor) features() {
	b := nft.New(expiry.NewTable[backend.Key](time.Now()), quiet{})
	defer func() { _ = b.Close(backend.Keep) }()
	d.tries(b.Check)
}

func (d *doctor) tries(can func(backend.Rules) error) {
	rules := func(change func(*backend.Rules)) backend.Rules {
		r := backend.Rules{
			Table: "guardctl-doctor", Local: true, Gateway: true,
			LocalHolders: []backend.Holder{backend.Machine}, GatewayHolders: []backend.Holder{backend.Link}, MaxGrants: 1 << 10,
		}
		if change != nil {
			change(&r)
		}
		return r
	}
	for _, f := range []struct {
		level level
		what  string
		use   string
		rules backend.Rules
	}{
		{failure, "rules and sets", "have the kernel load nf_tables, nft_ct and nft_reject_inet (modprobe), and run this as root", rules(nil)},
		{warning, "routed clients (nft_fib_inet)", "only clients on the gateway's own wires can be guarded", rules(func(r *backend.Rules) { r.GatewayHolders = append(r.GatewayHolders, backend.Client) })},
		{warning, "programs by their cgroups (nft_socket)", "scope application, units and upstream cannot tell services apart", rules(func(r *backend.Rules) {
			r.LocalHolders = append(r.LocalHolders, backend.User, backend.Unit)
		})},
		{warning, "capture (nft_redir, nft_chain_nat)", "the option capture cannot be used", rules(func(r *backend.Rules) { r.Capture = 53 })},
		{warning, "routes (nft_nat, nft_masq, nft_chain_nat, nft_fib_inet)", "the option route cannot be used", rules(func(r *backend.Rules) {
			pools := []netip.Prefix{netip.MustParsePrefix("100.96.0.0/11"), netip.MustParsePrefix("fd00:2021:1111:8000::/107")}
			r.MaxMappings, r.Book = 1<<10, "doctor"
			r.Routes = []backend.Route{{Name: "masked", Pools: pools}, {Name: "fixed", Pools: pools, Egress: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}}
		})},
		{warning, "what is denied, told of at once (nft_log, nfnetlink_log)", "write nflog_group off: it is told of some seconds late", rules(func(r *backend.Rules) { r.LogGroup = 1 })},
	} {
		err := can(f.rules)
		switch {
		case err == nil:
			d.say(fine, "", "%s", f.what)
		case unix.Geteuid() != 0:
			d.say(unknown, "be root", "%s cannot be tried: %v", f.what, err)
			return
		default:
			d.say(f.level, f.use, "%s: %v", f.what, err)
		}
	}
}

// quiet is an observer that nobody listens to.
type quiet struct{}

var _ backend.Observer = quiet{}

func (quiet) Committed(made, renewed, removed int, took time.Duration) {}
func (quiet) Expired(n int)                                            {}
func (quiet) Evicted(n int)                                            {}
func (quiet) Failed(op string, err error)                              {}
func (quiet) Live(ipv4, ipv6 int)                                      {}
func (quiet) Repaired(what string)                                     {}
func (quiet) Withstood()                                               {}
func (quiet) Enforcing(on bool)                                        {}

// cgroups looks whether services can be told apart.
func (d *doctor) cgroups() {
	_, err := identity.UnitAt("/system.slice")
	switch {
	case err == nil:
		d.say(fine, "", "services can be told apart by them")
	case d.status != nil && d.status.Scope == "application":
		d.say(warning, "boot with systemd.unified_cgroup_hierarchy=1, or write scope application uid", "services are told apart by their users only: %v", err)
	default:
		d.say(fine, "", "there are none of version 2, and nothing needs them: %v", err)
	}
}

// conntrack looks whether there is room for connections.
func (d *doctor) conntrack() {
	most, err := strconv.Atoi(sysctl("netfilter/nf_conntrack_max"))
	if err != nil {
		d.say(unknown, "see what is said of the guard, which has the kernel load it", "it is not at work here")
		return
	}
	count, _ := strconv.Atoi(sysctl("netfilter/nf_conntrack_count"))
	d.connections(count, most)
}

func (d *doctor) connections(count, most int) {
	text := fmt.Sprintf("%d of %d connections", count, most)
	if count*10 > most*8 {
		d.say(failure, fmt.Sprintf("sysctl net.netfilter.nf_conntrack_max=%d, and in /etc/sysctl.d: where it is full, packets are dropped", 4*most), "%s: it is nearly full", text)
		return
	}
	d.say(fine, "", "%s", text)
}
