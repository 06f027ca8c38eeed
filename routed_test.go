package ipdestinationguard

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/identity"
)

// at is a client with an address.
func (r *rig) at(addr string) *client {
	return &client{Recorder: dnstest.NewRecorder(&test.ResponseWriter{RemoteIP: addr}), rig: r, by: r.policy}
}

// ask asks a question that the chain answers with these lines, and returns the answer as
// text: its code unless that is success, its records, and why it is so.
func (c *client) ask(question_ string, lines string) string {
	c.Helper()
	req := request(c, question_)
	req.SetEdns0(1232, false)
	m := sections(c, lines)
	rcode, err := c.serve(req, func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		answer := new(dns.Msg).SetReply(r)
		answer.Answer, answer.Ns, answer.Extra = m.Answer, m.Ns, m.Extra
		return dns.RcodeSuccess, w.WriteMsg(answer)
	})
	if err != nil {
		c.Fatal(rcode, err)
	}
	return c.text()
}

func (c *client) text() string {
	text := sectionsText(c.Msg)
	if c.Msg.Rcode != dns.RcodeSuccess {
		text = dns.RcodeToString[c.Msg.Rcode] + "\n" + text
	}
	if opt := c.Msg.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok {
				text += fmt.Sprintf("%s: %s\n", dns.ExtendedErrorCodeToString[ede.InfoCode], strings.TrimPrefix(ede.ExtraText, "ipdestinationguard: "))
			}
		}
	}
	return text
}

// wantText fails the test unless a text is as it should be.
func (r *rig) wantText(got, want string) {
	r.Helper()
	if got != want {
		r.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// wantMapped fails the test unless these mappings are in force: "mapped > real".
func (r *rig) wantMapped(want ...string) {
	r.Helper()
	var got []string
	for _, m := range r.kernel.Mappings() {
		got = append(got, fmt.Sprint(m.Mapped, " > ", m.Real))
	}
	if !slices.Equal(got, want) {
		r.Errorf("mapped: %q, want %q", got, want)
	}
}

// grantsText lists what is granted, and to whom.
func (r *rig) grantsText() (text string) {
	r.Helper()
	list, err := r.kernel.List()
	if err != nil {
		r.Fatal(err)
	}
	for _, g := range list {
		text += fmt.Sprintf("%v to %v\n", g.Addr, g.Scope)
	}
	return text
}

const routedBoth = "ipdestinationguard {\nmode nft-both\nroute **.routed.test\n}"

func TestRoutedAnswer(t *testing.T) {
	local := func(options string) string {
		return "ipdestinationguard {\nmode nft-local\nroute **.routed.test {\n" + options + "\n}\n}"
	}
	const here, there = "127.0.0.1", "10.0.0.1"
	for _, tt := range []struct {
		name, directive, from, question, answer string
		want, grants                            string
		mapped                                  []string
	}{
		{"a client of a gateway", routedBoth, there, "www.routed.test. A", "www.routed.test. 300 A 9.9.9.9",
			"www.routed.test. 60 IN A 100.96.0.1\n", "100.96.0.1 to 10.0.0.1\n", []string{"100.96.0.1 > 9.9.9.9"}},
		{"the machine itself", routedBoth, here, "www.routed.test. A", "www.routed.test. 300 A 9.9.9.9",
			"www.routed.test. 60 IN A 100.96.0.1\n", "100.96.0.1 to this machine\n", []string{"100.96.0.1 > 9.9.9.9"}},
		{"IPv6", local(""), here, "www.routed.test. AAAA", "www.routed.test. 30 AAAA 2620:fe::fe",
			"www.routed.test. 30 IN AAAA fd00:2021:1111:8000::1\n", "fd00:2021:1111:8000::1 to this machine\n", []string{"fd00:2021:1111:8000::1 > 2620:fe::fe"}},
		{"both", local(""), here, "www.routed.test. ANY", "www.routed.test. 30 AAAA 2620:fe::fe\nwww.routed.test. 30 A 9.9.9.9",
			"www.routed.test. 30 IN A 100.96.0.1\nwww.routed.test. 30 IN AAAA fd00:2021:1111:8000::1\n",
			"100.96.0.1 to this machine\nfd00:2021:1111:8000::1 to this machine\n", []string{"100.96.0.1 > 9.9.9.9", "fd00:2021:1111:8000::1 > 2620:fe::fe"}},
		{"several", local("slots 2"), here, "www.routed.test. A", "www.routed.test. 30 A 9.9.9.9\nwww.routed.test. 30 A 9.9.9.10\nwww.routed.test. 30 A 9.9.9.11",
			"www.routed.test. 30 IN A 100.96.0.1\nwww.routed.test. 30 IN A 100.96.0.2\n",
			"100.96.0.1 to this machine\n100.96.0.2 to this machine\n", []string{"100.96.0.1 > 9.9.9.9", "100.96.0.2 > 9.9.9.10"}},
		{"a pool of its own", local("pool 10.9.0.0/16"), here, "www.routed.test. A", "www.routed.test. 30 A 9.9.9.9",
			"www.routed.test. 30 IN A 10.9.0.1\n", "10.9.0.1 to this machine\n", []string{"10.9.0.1 > 9.9.9.9"}},
		{"ports of its own", local("ports tcp/443"), here, "www.routed.test. A", "www.routed.test. 30 A 9.9.9.9",
			"www.routed.test. 30 IN A 100.96.0.1\n", "100.96.0.1 to this machine (class 1)\n", []string{"100.96.0.1 > 9.9.9.9"}},
		{"a CNAME out of it", local(""), here, "www.routed.test. A", "www.routed.test. 20 CNAME a.test.\na.test. 30 A 9.9.9.9",
			"www.routed.test. 20 IN A 100.96.0.1\n", "100.96.0.1 to this machine\n", []string{"100.96.0.1 > 9.9.9.9"}},
		{"a CNAME into it", local(""), here, "a.test. A", "a.test. 30 CNAME www.routed.test.\nwww.routed.test. 30 A 9.9.9.9",
			"a.test. 30 IN A 100.96.0.1\n", "100.96.0.1 to this machine\n", []string{"100.96.0.1 > 9.9.9.9"}},
		{"a name without a route", local(""), here, "a.test. A", "a.test. 30 A 9.9.9.9\nadditional\nns.routed.test. 60 A 9.9.9.10",
			"a.test. 30 IN A 9.9.9.9\n", "9.9.9.9 to this machine\n", nil},
		{"hints", local(""), here, "www.routed.test. HTTPS", "www.routed.test. 30 HTTPS 1 . alpn=h2 ipv4hint=9.9.9.9",
			"www.routed.test. 30 IN HTTPS 1 . alpn=\"h2\"\n", "", nil},
		{"hints of a name with a route in an answer for another", local(""), here, "a.test. HTTPS", "a.test. 30 HTTPS 1 www.routed.test. ipv4hint=9.9.9.9",
			"a.test. 30 IN HTTPS 1 www.routed.test.\n", "", nil},
		{"a service that leads elsewhere only", local(""), here, "www.routed.test. HTTPS", "www.routed.test. 30 HTTPS 1 a.test. alpn=h2",
			"Filtered: www.routed.test has a route: it has nothing but what leads elsewhere\n", "", nil},
		{"an IP version that it does not carry", local("family ipv4"), here, "www.routed.test. AAAA", "www.routed.test. 30 AAAA 2620:fe::fe",
			"Filtered: www.routed.test has a route: it carries ipv4 only\n", "", nil},
		{"no data", local(""), here, "www.routed.test. AAAA", "authority\nrouted.test. 30 SOA ns.test. h.test. 1 2 3 4 5",
			"authority\nrouted.test. 30 IN SOA ns.test. h.test. 1 2 3 4 5\n", "", nil},
		{"another type", local(""), here, "www.routed.test. MX", "www.routed.test. 30 MX 1 mail.routed.test.\nadditional\nmail.routed.test. 30 A 9.9.9.9",
			"www.routed.test. 30 IN MX 1 mail.routed.test.\n", "", nil},
		{"a private real address", local(""), here, "www.routed.test. A", "www.routed.test. 30 A 10.0.0.7\nwww.routed.test. 30 A 9.9.9.9",
			"www.routed.test. 30 IN A 100.96.0.1\nFiltered: stripped 10.0.0.7: private-use (RFC 1918)\n", "100.96.0.1 to this machine\n", []string{"100.96.0.1 > 9.9.9.9"}},
		{"only private real addresses", local(""), here, "www.routed.test. A", "www.routed.test. 30 A 10.0.0.7",
			"Filtered: stripped 10.0.0.7: private-use (RFC 1918)\n", "", nil},
		{"a private real address that it may have", "ipdestinationguard {\nmode nft-local\nprivate **.routed.test 10.0.0.0/8\nroute **.routed.test\n}", here,
			"www.routed.test. A", "www.routed.test. 30 A 10.0.0.7", "www.routed.test. 30 IN A 100.96.0.1\n", "100.96.0.1 to this machine\n", []string{"100.96.0.1 > 10.0.0.7"}},
		{"an address of the pool", "ipdestinationguard {\nmode nft-local\nprivate ** 100.64.0.0/10\nroute **.routed.test\n}", here,
			"www.routed.test. A", "www.routed.test. 30 A 100.96.0.7", "Filtered: stripped 100.96.0.7: an address of a route's pool\n", "", nil},
		{"an address of the pool for another name", "ipdestinationguard {\nmode nft-local\nprivate ** 100.64.0.0/10\nroute **.routed.test\n}", here,
			"a.test. AAAA", "a.test. 30 AAAA ::ffff:100.96.0.7", "Filtered: stripped 100.96.0.7: an address of a route's pool\n", "", nil},

		{"a name that opens nothing", "ipdestinationguard {\nmode nft-local\nexcept www.routed.test\nroute **.routed.test\n}", here, "www.routed.test. A", "www.routed.test. 30 A 9.9.9.9",
			"www.routed.test. 30 IN A 9.9.9.9\n", "", nil},
		{"another name that leads to it", "ipdestinationguard {\nmode nft-local\nexcept www.routed.test\nroute **.routed.test\n}", here, "a.test. A", "a.test. 30 CNAME www.routed.test.\nwww.routed.test. 30 A 9.9.9.9",
			"a.test. 30 IN A 100.96.0.1\n", "100.96.0.1 to this machine\n", []string{"100.96.0.1 > 9.9.9.9"}},

		{"a stranger asks a server", local(""), there, "www.routed.test. A", "www.routed.test. 300 A 9.9.9.9",
			"www.routed.test. 300 IN A 9.9.9.9\n", "", nil},
		{"a stranger asks a server, for another name", local(""), there, "a.test. A", "a.test. 300 A 9.9.9.9",
			"a.test. 300 IN A 9.9.9.9\n", "9.9.9.9 to this machine\n", nil},
		{"the gateway asks for itself", "ipdestinationguard {\nmode nft-gateway\nroute **.routed.test\n}", here, "www.routed.test. A", "www.routed.test. 300 A 9.9.9.9",
			"www.routed.test. 300 IN A 9.9.9.9\n", "", nil},
		{"and with scope any", "ipdestinationguard {\nmode nft-gateway\nscope any\nroute **.routed.test\n}", here, "www.routed.test. A", "www.routed.test. 300 A 9.9.9.9",
			"www.routed.test. 300 IN A 9.9.9.9\n", "", nil},
		{"a client with scope any", "ipdestinationguard {\nmode nft-gateway\nscope any\nroute **.routed.test\n}", there, "www.routed.test. A", "www.routed.test. 300 A 9.9.9.9",
			"www.routed.test. 60 IN A 100.96.0.1\n", "100.96.0.1 to everyone\n", []string{"100.96.0.1 > 9.9.9.9"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.directive)
			c, before := r.at(tt.from), metrics(t)["rewritten_total"]
			r.wantText(c.ask(tt.question, tt.answer), tt.want)
			r.wantText(r.grantsText(), tt.grants)
			r.wantMapped(tt.mapped...)
			if n := metrics(t)["rewritten_total"] - before; len(tt.mapped) > 0 && n != 1 {
				t.Errorf("%v answers are counted as rewritten", n)
			}
			if c.Msg.AuthenticatedData {
				t.Error("it calls itself authentic")
			}
		})
	}
}

// An address leaves when the kernel translates it, and not before.
func TestRoutedAnswerWaitsForTheKernel(t *testing.T) {
	r := newRig(t, routedBoth)
	release := r.kernel.Stall()
	done := make(chan string)
	c := r.at("127.0.0.1")
	go func() { done <- c.ask("www.routed.test. A", "www.routed.test. 30 A 9.9.9.9") }()
	select {
	case text := <-done:
		t.Errorf("answered before the kernel knew: %s", text)
	case <-time.After(20 * time.Millisecond):
	}
	release()
	r.wantText(<-done, "www.routed.test. 30 IN A 100.96.0.1\n")
	r.wantMapped("100.96.0.1 > 9.9.9.9")
}

func TestRoutedRefusal(t *testing.T) {
	directive := func(mode, hold, options string) string {
		return "ipdestinationguard {\nmode " + mode + "\nhold " + hold + "\nroute **.routed.test {\n" + options + "\n}\n}"
	}
	for _, tt := range []struct {
		name, options, want string
		trouble             func(*rig)
	}{
		{"the pool is full", "pool 10.9.0.0/30\nslots 2", "SERVFAIL\nOther: all addresses of the pool are in use, or as many as may be (max_mappings)\n",
			func(r *rig) {
				for i := range 2 {
					name := fmt.Sprintf("w%d.routed.test.", i)
					r.wantText(r.at("127.0.0.1").ask(name+" A", name+" 30 A 9.9.9.9"), fmt.Sprintf("%s 30 IN A 10.9.0.%d\n", name, i+1))
				}
			}},
		{"the kernel refuses", "", "SERVFAIL\nOther: as many addresses are mapped as may be (max_mappings)\n",
			func(r *rig) { r.kernel.Refuse(backend.ErrMappings) }},
		{"the kernel is late", "", "SERVFAIL\nNot Ready: the firewall has not confirmed the address in time\n",
			func(r *rig) { // only the kernel: the name has an address already
				r.arm(directive("nft-both", "1m", ""))
				r.at("10.0.0.1").ask("www.routed.test. A", "www.routed.test. 30 A 9.9.9.9")
				r.arm(directive("nft-both", "20ms", ""))
				r.kernel.Stall()
			}},
		{"the book is closed", "", "SERVFAIL\nOther: the book of mapped addresses is closed\n",
			func(r *rig) { r.guard.closeBooks(nil) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, directive("nft-local", "1m", tt.options))
			tt.trouble(r)
			before := r.grantsText()
			r.wantText(r.at("127.0.0.1").ask("www.routed.test. A", "www.routed.test. 30 A 9.9.9.9"), tt.want)
			r.wantText(r.grantsText(), before)
		})
	}
}

// Addresses stay a name's, in whatever order its real ones come, and follow them.
func TestRoutedNameKeepsItsAddresses(t *testing.T) {
	r := newRig(t, routedBoth)
	c := r.at("127.0.0.1")
	ask := func(real ...string) string {
		text := ""
		for _, addr := range real {
			text += "www.routed.test. 30 A " + addr + "\n"
		}
		return c.ask("www.routed.test. A", text)
	}
	r.wantText(ask("9.9.9.1", "9.9.9.2"), "www.routed.test. 30 IN A 100.96.0.1\nwww.routed.test. 30 IN A 100.96.0.2\n")
	transactions := r.kernel.Transactions()
	r.wantText(ask("9.9.9.2", "9.9.9.1"), "www.routed.test. 30 IN A 100.96.0.2\nwww.routed.test. 30 IN A 100.96.0.1\n")
	r.wantTransactions(transactions)
	r.wantText(ask("9.9.9.3"), "www.routed.test. 30 IN A 100.96.0.1\n")
	r.wantMapped("100.96.0.1 > 9.9.9.3", "100.96.0.2 > 9.9.9.3")
}

func TestOnChange(t *testing.T) {
	for change, want := range map[string][]string{"keep": {"9.9.9.1"}, "cut": nil} {
		t.Run(change, func(t *testing.T) {
			r := newRig(t, "ipdestinationguard {\nmode nft-local\nroute **.routed.test {\non_change "+change+"\n}\n}")
			c := r.at("127.0.0.1")
			c.ask("www.routed.test. A", "www.routed.test. 30 A 9.9.9.1")
			mapped := netip.MustParseAddr("100.96.0.1")
			r.kernel.Connect(mapped)
			c.ask("www.routed.test. A", "www.routed.test. 30 A 9.9.9.1\nwww.routed.test. 30 A 9.9.9.2")
			time.Sleep(20 * time.Millisecond)
			if got := r.kernel.Connected(mapped); len(got) != 1 {
				t.Errorf("connected to %v, although the name has the address still", got)
			}
			c.ask("www.routed.test. A", "www.routed.test. 30 A 9.9.9.3")
			want := want
			if change == "keep" {
				time.Sleep(20 * time.Millisecond)
			} else {
				r.eventually("the connection ends", func() bool { return len(r.kernel.Connected(mapped)) == 0 })
			}
			var got []string
			for _, real := range r.kernel.Connected(mapped) {
				got = append(got, real.String())
			}
			if !slices.Equal(got, want) {
				t.Errorf("connected to %v, want %v", got, want)
			}
		})
	}
}

func (r *rig) eventually(what string, holds func() bool) {
	r.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("waited in vain until %s", what)
		}
	}
}

// An IPv6 address that no packet reaches is not given out.
func TestRoutedWithoutIPv6(t *testing.T) {
	r := newRig(t, "ipdestinationguard {\nmode nft-gateway\nroute **.routed.test {\nout wg0\nfwmark 7\n}\n}")
	r.guard.host.leads = func(to netip.Addr, by identity.Way, _ time.Time) bool {
		if by != (identity.Way{Out: "wg0", Mark: 7}) {
			t.Errorf("asked for a way by %+v", by)
		}
		return to == netip.MustParseAddr("2620:fe::9")
	}
	c := r.at("2001:db8::7")
	r.wantText(c.ask("www.routed.test. AAAA", "www.routed.test. 30 AAAA 2620:fe::fe"), "Filtered: www.routed.test has a route: there is no way to 2620:fe::fe from here\n")
	r.wantText(c.ask("www.routed.test. AAAA", "www.routed.test. 30 AAAA 2620:fe::fe\nwww.routed.test. 30 AAAA 2620:fe::9"), "www.routed.test. 30 IN AAAA fd00:2021:1111:8000::1\n")
	r.wantMapped("fd00:2021:1111:8000::1 > 2620:fe::9")
}

// A local program needs a way to the mapped address as well: the kernel looks for one
// before it translates.
func TestRoutedWithoutWayToPool(t *testing.T) {
	r := newRig(t, routedBoth)
	r.guard.host.leads = func(to netip.Addr, _ identity.Way, _ time.Time) bool { return to == netip.MustParseAddr("2620:fe::fe") }
	r.wantText(r.at("::1").ask("www.routed.test. AAAA", "www.routed.test. 30 AAAA 2620:fe::fe"), "Filtered: www.routed.test has a route: there is no way to 2620:fe::fe from here\n")
}

// Whoever answers for an alias must not send what others send to a name to himself.
func TestAliasesDoNotSayWhereNamesLead(t *testing.T) {
	r := newRig(t, routedBoth)
	c := r.at("127.0.0.1")
	r.wantText(c.ask("www.routed.test. A", wwwAnswer), wwwMapped)
	r.wantText(c.ask("a.test. A", "a.test. 30 CNAME www.routed.test.\nwww.routed.test. 30 A 6.6.6.6"), "a.test. 30 IN A 100.96.0.2\n")
	r.wantMapped("100.96.0.1 > 9.9.9.9", "100.96.0.2 > 6.6.6.6")
}

// Who makes up names leaves addresses for others, whoever answers are for.
func TestWhoMakesUpNamesLeavesSome(t *testing.T) {
	for _, tt := range []struct{ options, from string }{
		{"mode nft-gateway", "10.0.0.66"},
		{"mode nft-gateway\nscope any", "10.0.0.66"},
		{"mode nft-both", "127.0.0.1"},
		{"mode nft-both\nscope any", "127.0.0.1"},
		{"mode nft-both\nscope any", "10.0.0.66"},
	} {
		t.Run(strings.ReplaceAll(tt.options, "\n", " ")+" from "+tt.from, func(t *testing.T) {
			r := newRig(t, "ipdestinationguard {\n"+tt.options+"\nroute **.routed.test {\npool 10.9.0.0/27\n}\n}")
			had := func(from, name string) bool {
				return strings.Contains(r.at(from).ask(name+" A", name+" 30 A 9.9.9.9"), " 10.9.0.")
			}
			n := 0
			for i := range 40 {
				if had(tt.from, fmt.Sprintf("n%d.routed.test.", i)) {
					n++
				}
			}
			if n < 10 || n > 20 || !had("10.0.0.1", "www.routed.test.") {
				t.Errorf("one has %d addresses of 30", n)
			}
		})
	}
}

// Names that a route has literally count for nobody: there are no more of them than its line says.
func TestNamesOfALineCountForNobody(t *testing.T) {
	var names []string
	for i := range 28 {
		names = append(names, fmt.Sprintf("n%d.routed.test", i))
	}
	r := newRig(t, "ipdestinationguard {\nmode nft-gateway\nroute "+strings.Join(names, " ")+" {\npool 10.9.0.0/27\n}\n}")
	for i, name := range names {
		r.wantText(r.at("10.0.0.66").ask(name+". A", name+". 300 A 9.9.9.9"), fmt.Sprintf("%s. 60 IN A 10.9.0.%d\n", name, i+1))
	}
}

// What is refused is counted, by why; and a name more than max_mappings is.
func TestRefusedMappingsAreCounted(t *testing.T) {
	for _, tt := range []struct {
		name, counted, want string
		trouble             func(*rig)
	}{
		{"as many are mapped as may be", "full", "all addresses of the pool are in use, or as many as may be (max_mappings)",
			func(r *rig) {
				for i := range 4 {
					name := fmt.Sprintf("w%d.routed.test.", i)
					r.wantText(r.at("127.0.0.1").ask(name+" A", name+" 30 A 9.9.9.9"), fmt.Sprintf("%s 30 IN A 100.96.0.%d\n", name, i+1))
				}
			}},
		{"the kernel refuses", "full", "as many addresses are mapped as may be (max_mappings)", func(r *rig) { r.kernel.Refuse(backend.ErrMappings) }},
		{"the kernel is late", "late", "the firewall has not confirmed the address in time", func(r *rig) { r.kernel.Refuse(backend.ErrLate) }},
		{"the book is closed", "failed", "the book of mapped addresses is closed", func(r *rig) { r.guard.closeBooks(nil) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, "ipdestinationguard {\nmode nft-local\nmax_mappings 4\nroute **.routed.test\n}")
			tt.trouble(r)
			before := metrics(t)
			if got := r.ask(); !strings.Contains(got, "SERVFAIL") || !strings.HasSuffix(got, ": "+tt.want+"\n") {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			now := metrics(t)
			for _, reason := range []string{"full", "late", "failed"} {
				key, want := "mappings_refused_total{"+reason+"}", 0.0
				if reason == tt.counted {
					want = 1
				}
				if got := now[key] - before[key]; got != want {
					t.Errorf("%s: %v more, want %v", key, got, want)
				}
			}
		})
	}
}
