package e2e

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// An atlas is an authority whose names change while it answers, as those of the
// internet do. Names that it has not are somebody's that do not exist.
type atlas struct {
	mu      sync.Mutex // guards what follows
	records map[string][]dns.RR
	rcodes  map[string]int
	turning bool
	turns   int
}

const atlasPort = 5300

// atlas starts one in the world, on atlasPort, over UDP and TCP.
func (w *world) atlas() *atlas {
	w.Helper()
	a := newAtlas()
	w.must(w.world.ServeDNS(atlasPort, a))
	return a
}

// atlasUpstream is how a server block asks it. A test's own failures are not to be
// taken for those of the upstream.
func atlasUpstream() string {
	return fmt.Sprintf("forward . %s:%d {\n\tmax_fails 0\n\t}", resolver4, atlasPort)
}

// under is a Corefile that asks it.
func (a *atlas) under(corefile string) string {
	return strings.Replace(corefile, "forward . "+resolver4+"\n", atlasUpstream()+"\n", 1)
}

func newAtlas() *atlas {
	return &atlas{records: map[string][]dns.RR{}, rcodes: map[string]int{}}
}

// secured answers over TLS as well, on port 853.
func (w *world) secured(a *atlas, certificate tls.Certificate) {
	w.Helper()
	ln, err := w.world.Listen("tcp", ":853")
	w.must(err)
	server := &dns.Server{Listener: tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{certificate}}), Handler: a}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.ActivateAndServe() }()
	w.Cleanup(func() { ln.Close(); <-ended })
}

// canonical is a name in small letters, and as it is written when it comes from a packet.
func canonical(name string) string {
	var wire [256]byte
	if n, err := dns.PackDomainName(name, wire[:], 0, nil, false); err == nil {
		name, _, _ = dns.UnpackDomainName(wire[:n], 0)
	}
	return dns.CanonicalName(name)
}

// set gives a name its records, "60 A 192.0.2.1", in place of those it had. Without
// any it is there and has none; a record of another name stands with that name first.
func (a *atlas) set(name string, records ...string) {
	var all []dns.RR
	for _, text := range records {
		rr, err := dns.NewRR(name + " " + text)
		if err != nil {
			panic(err)
		}
		all = append(all, rr)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.records[canonical(name)] = all
	delete(a.rcodes, canonical(name))
}

// addrs is set with addresses, whose records have a TTL.
func (a *atlas) addrs(name string, ttl int, addrs ...string) {
	var records []string
	for _, addr := range addrs {
		kind := "AAAA"
		if is4(addr) {
			kind = "A"
		}
		records = append(records, fmt.Sprintf("%d %s %s", ttl, kind, addr))
	}
	a.set(name, records...)
}

// fail has all questions for a name answered with a code, and nothing else.
func (a *atlas) fail(name string, rcode int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rcodes[canonical(name)] = rcode
}

// turn has each answer begin with another of the name's addresses.
func (a *atlas) turn() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.turning = true
}

// ServeDNS implements dns.Handler.
func (a *atlas) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	m := new(dns.Msg).SetReply(query)
	m.RecursionAvailable = true
	size := dns.MinMsgSize
	if opt := query.IsEdns0(); opt != nil {
		size = max(size, int(opt.UDPSize()))
		m.SetEdns0(opt.UDPSize(), opt.Do())
	}
	a.mu.Lock()
	a.answer(m, query.Question[0])
	a.mu.Unlock()
	if w.RemoteAddr().Network() == "udp" {
		m.Truncate(size)
	}
	_ = w.WriteMsg(m) // the client has gone, or will ask again
}

func (a *atlas) answer(m *dns.Msg, q dns.Question) {
	owner := canonical(q.Name)
	for range 16 { // aliases
		if rcode, ok := a.rcodes[owner]; ok {
			m.Rcode = rcode
			return
		}
		records, ok := a.records[owner]
		if !ok {
			m.Rcode = dns.RcodeNameError
			return
		}
		alias := ""
		var found []dns.RR
		for _, rr := range records {
			rr = dns.Copy(rr)
			if strings.EqualFold(owner, q.Name) {
				rr.Header().Name = q.Name // as it was written
			}
			cname, isAlias := rr.(*dns.CNAME)
			switch {
			case isAlias && q.Qtype != dns.TypeCNAME:
				m.Answer, alias = append(m.Answer, rr), canonical(cname.Target)
			case rr.Header().Rrtype == q.Qtype:
				found = append(found, rr)
			}
		}
		if a.turning && len(found) > 0 {
			a.turns++
			n := a.turns % len(found)
			found = slices.Concat(found[n:], found[:n])
		}
		m.Answer = append(m.Answer, found...)
		if alias == "" {
			return
		}
		owner = alias
	}
}
