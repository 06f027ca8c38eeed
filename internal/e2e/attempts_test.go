package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// What attackers do. Each attempt returns how it ended, or nothing where its IP
// version knows no such thing.

// own is the attacker's own address.
func (a *attacker) own() string {
	switch {
	case a.Host == a.guard && is4(a.to):
		return guard4
	case a.Host == a.guard:
		return guard6
	case is4(a.to):
		return client4
	}
	return client6
}

// upon is the same attempt upon another address.
func (a *attacker) upon(addr string) *attacker {
	other := *a
	other.to = addr
	return &other
}

// came counts the packets that the guard has let through to the address, from some
// source or any.
func (a *attacker) came(sources ...string) int {
	return a.wire.seen(func(p packet) bool {
		return p.destination.Unmap().String() == a.to && (sources == nil || slices.Contains(sources, p.source.String()))
	})
}

// to has an attempt made upon well-known addresses.
func to(ipv4, ipv6 string, f func(*attacker) string) func(*attacker) string {
	return func(a *attacker) string {
		if is4(a.to) {
			return f(a.upon(ipv4))
		}
		return f(a.upon(ipv6))
	}
}

// each has an attempt made upon several addresses.
func each(f func(*attacker) string, addrs ...string) func(*attacker) string {
	return func(a *attacker) (all string) {
		for _, addr := range addrs {
			if netip.MustParseAddr(addr).Is4() != is4(a.to) {
				continue
			}
			switch end := f(a.upon(addr)); {
			case all == "":
				all = end
			case all != end:
				return fmt.Sprintf("%s, but %s: %s", all, addr, end)
			}
		}
		return all
	}
}

// patience is how long he waits for what most likely never comes, or surely does.
func (a *attacker) patience() time.Duration {
	if a.guarded {
		return 300 * time.Millisecond
	}
	return 20 * time.Second
}

// dials connects to a port, or sends to it and waits for an answer.
func dials(network string, port int) func(*attacker) string {
	return func(a *attacker) string {
		ctx, cancel := context.WithTimeout(context.Background(), a.patience())
		defer cancel()
		conn, err := a.Dial(ctx, network, net.JoinHostPort(a.to, strconv.Itoa(port)))
		if err != nil {
			return a.outcome(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(a.patience()))
		if port == 53 {
			_, _, err = new(dns.Client).ExchangeWithConnContext(ctx, new(dns.Msg).SetQuestion("test.", dns.TypeA), &dns.Conn{Conn: conn})
		} else if _, err = conn.Write([]byte("ping")); err == nil {
			_, err = conn.Read(make([]byte, 4))
		}
		return a.outcome(err)
	}
}

// outcome says how a connection went. If the peer's machine says that nobody listens,
// the way to it is open.
func (a *attacker) outcome(err error) string {
	end := isRefused
	switch {
	case err == nil, errors.Is(err, syscall.ECONNREFUSED):
		end = isOpen
	case refused(err), errors.Is(err, syscall.ENETUNREACH),
		errors.Is(err, syscall.EINPROGRESS), errors.Is(err, syscall.EAGAIN): // the latter are timeouts
	default:
		end = err.Error()
	}
	if a.guarded && end != isOpen && a.ofOwn().came() > 0 {
		end += ", but packets arrive"
	}
	return end
}

// ofOwn is a, or an attempt upon nothing where others may go as well.
func (a *attacker) ofOwn() *attacker {
	if addr := netip.MustParseAddr(a.to); !unlisted4.Contains(addr) && !unlisted6.Contains(addr) {
		return a.upon("")
	}
	return a
}

// opens connects a socket of any kind, with four bytes to be echoed.
func opens(kind, protocol int, prepare func(fd int) error) func(*attacker) string {
	return func(a *attacker) string {
		addr := netip.MustParseAddr(a.to)
		if protocol == unix.IPPROTO_ICMP {
			return a.outcome(ping(a.Host, addr, a.patience()))
		}
		domain, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: addr.As16(), Port: echoPort})
		if addr.Is4() {
			domain, to = unix.AF_INET, &unix.SockaddrInet4{Addr: addr.As4(), Port: echoPort}
		}
		return a.outcome(a.Do(func() error { return connectSocket(domain, kind, protocol, to, []byte("ping"), a.patience(), prepare) }))
	}
}

// ping does it as users can: see letPing.
func ping(from *netlab.Host, addr netip.Addr, patience time.Duration) error {
	return from.Do(func() error {
		if addr.Is4() {
			return connectSocket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP, &unix.SockaddrInet4{Addr: addr.As4()}, []byte{8, 0, 0, 0, 0, 0, 0, 1}, patience, nil)
		}
		return connectSocket(unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, &unix.SockaddrInet6{Addr: addr.As16()}, []byte{echoRequest, 0, 0, 0, 0, 0, 0, 1}, patience, nil)
	})
}

// letPing lets who is of group 0 ping without being root, as most systems let everybody.
func (w *world) letPing() {
	w.Helper()
	for _, h := range []*netlab.Host{w.guard, w.client} {
		w.must(h.Sysctl("net/ipv4/ping_group_range", "0 0"))
	}
}

func connectSocket(domain, kind, protocol int, to unix.Sockaddr, word []byte, patience time.Duration, prepare func(fd int) error) error {
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(patience.Nanoseconds())
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
	if prepare != nil && err == nil {
		err = prepare(fd)
	}
	if err == nil {
		err = unix.Connect(fd, to)
	}
	if err == nil {
		_, err = unix.Write(fd, word)
	}
	if err == nil {
		_, err = unix.Read(fd, make([]byte, 8))
	}
	return err
}

// dialsMapped connects to ::ffff:192.0.2.1, which to the kernel is 192.0.2.1.
func dialsMapped(a *attacker) string {
	addr := netip.MustParseAddr(a.to)
	if !addr.Is4() {
		return ""
	}
	to := &unix.SockaddrInet6{Addr: addr.As16(), Port: echoPort}
	return a.outcome(a.Do(func() error {
		return connectSocket(unix.AF_INET6, unix.SOCK_STREAM, 0, to, []byte("ping"), a.patience(), nil)
	}))
}

// viaLoopback leaves by loopback, which any program may say of a socket once.
func viaLoopback(fd int) error { return unix.BindToDevice(fd, "lo") }

// afterReset sends what may belong to a connection that is older than the guard, has
// it reset by the peer, and then makes a new one with the same ports.
func afterReset(a *attacker) string {
	const port = 4001
	if err := a.send(newTCP(a.own(), a.to, port, echoPort, ack)); err != nil {
		return err.Error()
	}
	reset := func(p packet) bool {
		return p.source.String() == a.to && p.protocol == unix.IPPROTO_TCP && p.payload[13]&rst != 0
	}
	for deadline := time.Now().Add(5 * time.Second); a.wire.count(reset) == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	end := ""
	for range 3 {
		err := a.Do(func() error {
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(a.own()), Port: port}, Timeout: a.patience()}
			conn, err := dialer.Dial("tcp", net.JoinHostPort(a.to, strconv.Itoa(echoPort)))
			if err != nil {
				return err
			}
			defer conn.Close()
			return errors.Join(echo(conn), conn.(*net.TCPConn).SetLinger(0))
		})
		if end = isRefused; err == nil {
			return isOpen
		} else if !refused(err) {
			return err.Error()
		}
	}
	return end
}

// send sends packets of the attacker's making: from the guard itself by a raw socket,
// through the gateway by the link.
func (a *attacker) send(packets ...packet) error {
	var frames [][]byte
	for _, p := range packets {
		if a.Host != a.guard {
			frames = append(frames, p.frame(a.gateway, a.hw))
		} else if err := send(a.Host, a.ifname, p); err != nil && !errors.Is(err, unix.EPERM) { // which is the guard's
			return err
		}
	}
	return a.Inject(a.ifname, frames...)
}

// sends sends packets to the address, and says whether they come out of the guard.
func sends(forge func(source, to string) []packet) func(*attacker) string {
	return forges(func(a *attacker) []packet { return forge(a.own(), a.to) })
}

func forges(forge func(*attacker) []packet) func(*attacker) string {
	return func(a *attacker) string {
		all := forge(a)
		if all == nil {
			return ""
		}
		return a.arrival(len(all), func() error { return a.send(all...) })
	}
}

// frames is forges for what is not only of IP.
func frames(forge func(*attacker, packet) []byte) func(*attacker) string {
	return func(a *attacker) string {
		frame := forge(a, newUDP(a.own(), a.to, 4000, echoPort))
		return a.arrival(1, func() error { return a.Inject(a.ifname, frame) })
	}
}

// arrival says how many of n packets come out of the guard for the address.
func (a *attacker) arrival(n int, send func() error) string {
	mine := func(p packet) bool {
		return p.destination.String() == a.to && (a.Host == a.guard) != slices.Contains([]string{client4, client6}, p.source.String())
	}
	before := a.wire.seen(mine)
	if err := send(); err != nil {
		return err.Error()
	}
	came := a.wire.seen(mine) - before
	for deadline := time.Now().Add(20 * time.Second); !a.guarded && came < n && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
		came = a.wire.count(mine) - before
	}
	switch {
	case came == 0:
		return isLost
	case came < n:
		return inPart
	}
	return arrives
}

// one makes a forge of what forges one packet.
func one(forge func(source, to string) packet) func(source, to string) []packet {
	return func(source, to string) []packet { return []packet{forge(source, to)} }
}

// onlyIPv4 keeps a forge from IPv6.
func onlyIPv4(forge func(source, to string) []packet) func(source, to string) []packet {
	return func(source, to string) []packet {
		if !is4(to) {
			return nil
		}
		return forge(source, to)
	}
}

// onlyIPv6 keeps it from IPv4.
func onlyIPv6(forge func(source, to string) []packet) func(source, to string) []packet {
	return func(source, to string) []packet {
		if is4(to) {
			return nil
		}
		return forge(source, to)
	}
}

func tcpWith(flags byte) func(source, to string) []packet {
	return func(source, to string) []packet { return []packet{newTCP(source, to, 4000, echoPort, flags)} }
}

func udpFrom(from, port uint16) func(source, to string) []packet {
	return func(source, to string) []packet { return []packet{newUDP(source, to, from, port)} }
}

func everyProtocol(source, to string) (all []packet) {
	for protocol := range 256 {
		all = append(all, packet{source: netip.MustParseAddr(source), destination: netip.MustParseAddr(to), hops: 64, protocol: byte(protocol), payload: make([]byte, 40)})
	}
	return all
}

// longUDP has enough in it to be cut.
func longUDP(source, to string) packet {
	return newUDP(source, to, 4000, echoPort, make([]byte, 32)...)
}

// fragments cuts a packet in two, and sends them in some order.
func fragments(at int, order ...int) func(source, to string) []packet {
	if order == nil {
		order = []int{0, 1}
	}
	return func(source, to string) (all []packet) {
		two := cut(longUDP(source, to), at)
		for _, i := range order {
			all = append(all, two[i])
		}
		return all
	}
}

func fragmentedSYN(source, to string) []packet {
	return cut(newTCP(source, to, 4000, echoPort, syn), 8)
}

func overlapping(source, to string) []packet {
	return []packet{cut(longUDP(source, to), 24)[0], cut(longUDP(source, to), 16)[1]}
}

func atomicFragment(source, to string) []packet {
	return onlyIPv6(func(source, to string) []packet {
		p := cut(longUDP(source, to), 8)[0]
		whole := longUDP(source, to)
		p.payload = append(p.payload[:8:8], whole.payload...)
		p.payload[3] = 0 // no more of them
		return []packet{p}
	})(source, to)
}

// givenSends sends to an address that is open, but not for the packets in question.
func givenSends(forge func(source, to string) []packet) func(*attacker) string {
	return func(a *attacker) string {
		if a.guarded {
			if err := a.resolve(a.Host, a.resolver(a.to), a.to, 60); err != nil {
				return err.Error()
			}
		}
		return sends(forge)(a)
	}
}

// zoneSends is givenSends for what the attacker's own zone gives.
func zoneSends(forge func(source, to string) []packet) func(*attacker) string {
	return func(a *attacker) string {
		if a.guarded {
			if m, err := a.exchange("udp", a.question(a.given())); err != nil || len(m.Answer) != 1 {
				return fmt.Sprintf("no address: %v %v", m, err)
			}
		}
		return sends(forge)(a)
	}
}

// otherPorts are others than TCP port 443, some behind something, and what has no ports.
func otherPorts(source, to string) (all []packet) {
	all = append(fragments(16)(source, to), newTCP(source, to, 443, 444, syn), newUDP(source, to, 443, 443), newSCTP(source, to), newICMP(source, to))
	all = append(append(all, cut(newTCP(source, to, 443, 80, syn), 8)...), cut(newUDP(source, to, 443, 443, make([]byte, 40)...), 16)...)
	p := newTCP(source, to, 443, 80, syn)
	if is4(to) {
		p.options = []byte{1, 1, 1, 1}
		return append(all, p)
	}
	all = append(all, behindHeaders(p, unix.IPPROTO_HOPOPTS, unix.IPPROTO_DSTOPTS))
	return append(all, cut(behindHeaders(p, unix.IPPROTO_DSTOPTS, unix.IPPROTO_DSTOPTS), 16)...)
}

// hidden are questions to a resolver whose ports do not stand in each fragment, or in
// none before IPv6's second.
func hidden(source, to string) (all []packet) {
	question := newUDP(source, to, 4000, 53, make([]byte, 40)...)
	all = append(cut(question, 8), cut(newTCP(source, to, 4000, 853, syn), 8)...)
	if !is4(to) {
		all = append(all, cut(behindHeaders(question, unix.IPPROTO_DSTOPTS, unix.IPPROTO_DSTOPTS), 16)...)
	}
	return all
}

// hiddenBehind has something in front of the ports.
func hiddenBehind(source, to string) (all []packet) {
	for _, p := range []packet{newUDP(source, to, 4000, 53), newTCP(source, to, 4000, 53, syn), newTCP(source, to, 4000, 853, syn)} {
		if is4(to) {
			p.options = []byte{1, 1, 1, 1, 7, 7, 4, 0, 0, 0, 0, 0}
		} else {
			p = behindHeaders(p, unix.IPPROTO_HOPOPTS, unix.IPPROTO_DSTOPTS)
		}
		all = append(all, p)
	}
	return all
}

// withOptions has one of each in front.
func withOptions(source, to string) []packet {
	return onlyIPv4(func(source, to string) (all []packet) {
		for _, options := range []string{
			"\x01\x01\x01\x01",                                 // nothing
			"\x07\x07\x04\x00\x00\x00\x00\x00",                 // record route
			"\x44\x0c\x05\x00\x00\x00\x00\x00\x00\x00\x00\x00", // timestamp
			"\x94\x04\x00\x00",                                 // router alert
			"\x82\x0b\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", // security
		} {
			p := newTCP(source, to, 4000, echoPort, syn)
			p.options = []byte(options)
			all = append(all, p)
		}
		return all
	})(source, to)
}

// withHeaders has some in front.
func withHeaders(source, to string) []packet {
	return onlyIPv6(func(source, to string) (all []packet) {
		const hop, destination = unix.IPPROTO_HOPOPTS, unix.IPPROTO_DSTOPTS
		for _, p := range []packet{newTCP(source, to, 4000, echoPort, syn), newUDP(source, to, 4000, echoPort)} {
			all = append(all, behindHeaders(p, hop), behindHeaders(p, destination), behindHeaders(p, hop, destination),
				behindHeaders(p, destination, destination, destination, destination, destination, destination))
		}
		return all
	})(source, to)
}

// indifferent are packets whose checksum does not count the destination: the kernel
// finds nothing wrong with them where that is yet to change.
func indifferent(source, to string) []packet {
	udp := newUDP(source, to, 4000, echoPort)
	udp.payload[6], udp.payload[7] = 0, 0
	return []packet{udp, newSCTP(source, to)}
}

// sourceRoute goes to the gateway, and on to the address (RFC 791, loose).
func sourceRoute(a *attacker) (all []packet) {
	if !is4(a.to) {
		return nil
	}
	for _, p := range indifferent(a.own(), a.to) {
		p.destination = netip.MustParseAddr(gateway4)
		p.options = slices.Concat([]byte{0x83, 7, 4}, netip.MustParseAddr(a.to).AsSlice(), []byte{0})
		all = append(all, p)
	}
	return all
}

// sourceRouteOnItsWay has come by another router, as it says, or has another option in front:
// the kernel goes by it all the same, but where it looks for options, it finds fault with it.
func sourceRouteOnItsWay(a *attacker) (all []packet) {
	if !is4(a.to) {
		return nil
	}
	to := netip.MustParseAddr(a.to).AsSlice()
	for _, options := range [][]byte{
		slices.Concat([]byte{0x83, 11, 8, 10, 9, 9, 9}, to, []byte{0}),
		slices.Concat([]byte{0x82, 4, 0, 0, 1, 0x83, 7, 4}, to),
		slices.Concat([]byte{1, 0x82, 4, 0, 0, 0x83, 11, 8, 10, 9, 9, 9}, to),
	} {
		for _, p := range indifferent(a.own(), a.to) {
			p.destination, p.options = netip.MustParseAddr(gateway4), options
			all = append(all, p)
		}
	}
	return all
}

// alongLive asks the gateway, which answers, and goes on with packets that look the same and
// have a route laid down: connection tracking takes them for more of the same.
func alongLive(a *attacker) string {
	gateway, question := a.resolver6, new(dns.Msg).SetQuestion("along.live.test.", dns.TypeTXT)
	if is4(a.to) {
		gateway = a.resolver4
	}
	packed, err := question.Pack()
	if err == nil {
		err = a.send(newUDP(a.own(), gateway, 4002, 53, packed...), newICMP(a.own(), gateway))
	}
	if err != nil {
		return err.Error()
	}
	time.Sleep(500 * time.Millisecond) // for the answers
	return forges(func(*attacker) []packet {
		udp, ping := newUDP(a.own(), gateway, 4002, 53), newICMP(a.own(), gateway)
		udp.payload[6], udp.payload[7] = 0, 0
		to := netip.MustParseAddr(a.to).AsSlice()
		if is4(a.to) {
			udp.options = slices.Concat([]byte{0x83, 7, 4}, to, []byte{0})
			ping.options = udp.options
			return []packet{udp, ping}
		}
		udp.payload = slices.Concat([]byte{udp.protocol, 4, 4, 1, 1, 0, 0, 0}, to, udp.destination.AsSlice(), udp.payload)
		udp.protocol = unix.IPPROTO_ROUTING
		return []packet{udp}
	})(a)
}

// routingHeaders do the same for IPv6, those for which the kernel is not set up too.
func routingHeaders(a *attacker) (all []packet) {
	for _, kind := range []byte{0, 2, 3} {
		all = append(all, viaGateway6(a, slices.Concat([]byte{0, 2, kind, 1, 0, 0, 0, 0}, netip.MustParseAddr(a.to).AsSlice()))...)
	}
	return all
}

// segmentRoute is RFC 8754's.
func segmentRoute(a *attacker) []packet {
	return viaGateway6(a, slices.Concat([]byte{0, 4, 4, 1, 1, 0, 0, 0},
		netip.MustParseAddr(a.to).AsSlice(), netip.MustParseAddr(gateway6).AsSlice()))
}

func viaGateway6(a *attacker, header []byte) (all []packet) {
	if is4(a.to) {
		return nil
	}
	for _, p := range indifferent(a.own(), a.to) {
		p.destination = netip.MustParseAddr(gateway6)
		p.payload = slices.Concat([]byte{p.protocol}, header[1:], p.payload)
		p.protocol = unix.IPPROTO_ROUTING
		all = append(all, p)
	}
	return all
}

// tunnels have a packet within one to the gateway.
func tunnels(a *attacker) (all []packet) {
	inner := newUDP(a.own(), a.to, 4000, echoPort)
	_, _, header := inner.header()
	kind, ether := byte(unix.IPPROTO_IPIP), []byte{0, 0, 0x08, 0x00}
	if !is4(a.to) {
		kind, ether = unix.IPPROTO_IPV6, []byte{0, 0, 0x86, 0xdd}
	}
	for _, outer := range [][2]string{{client4, gateway4}, {client6, gateway6}} {
		p := newUDP(outer[0], outer[1], 1, 1)
		p.protocol, p.payload = kind, slices.Concat(header, inner.payload)
		gre := p
		gre.protocol, gre.payload = unix.IPPROTO_GRE, slices.Concat(ether, p.payload)
		all = append(all, p, gre)
	}
	return all
}

// relatedErrors says to the address what only the peer of a live connection should
// hear. The kernel knows the connection.
func relatedErrors(a *attacker) string {
	peer := a.addr6(240)
	if is4(a.to) {
		peer = a.addr4(240)
	}
	if a.guarded {
		if err := a.resolve(a.Host, a.resolver(peer), peer, 60); err != nil {
			return err.Error()
		}
	}
	conn, err := a.dial(a.Host, "tcp", peer)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	port := uint16(conn.LocalAddr().(*net.TCPAddr).Port)
	return forges(func(a *attacker) (all []packet) {
		for _, inner := range []packet{newTCP(a.own(), peer, port, echoPort, ack), newTCP(peer, a.own(), echoPort, port, ack)} {
			_, _, header := inner.header()
			kinds, protocol := []byte{3, 4, 5, 11, 12}, byte(unix.IPPROTO_ICMP)
			if !is4(a.to) {
				kinds, protocol = []byte{1, 2, 3, 4}, unix.IPPROTO_ICMPV6
			}
			for _, kind := range kinds {
				all = append(all, newPacket(a.own(), a.to, 64, protocol, slices.Concat([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, header, inner.payload), 2))
			}
		}
		return all
	})(a)
}

func sendsFrom(ipv4, ipv6 string) func(*attacker) string {
	return func(a *attacker) string {
		source := ipv6
		if is4(a.to) {
			source = ipv4
		}
		return a.arrivalFrom(source, newUDP(source, a.to, 4000, echoPort))
	}
}

// arrivalFrom is arrival for a packet in somebody else's name.
func (a *attacker) arrivalFrom(source string, p packet) string {
	if err := a.send(p); err != nil {
		return err.Error()
	}
	mine := func(p packet) bool { return p.destination.String() == a.to && p.source.String() == source }
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		switch {
		case a.wire.seen(mine) > 0:
			return arrives
		case a.guarded || time.Now().After(deadline):
			return isLost
		}
	}
}

func tagged(a *attacker, p packet) []byte {
	frame := p.frame(a.gateway, a.hw)
	return slices.Concat(frame[:12], []byte{0x81, 0, 0xe0, 0}, frame[12:])
}

var everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func toEverybody(a *attacker, p packet) []byte { return p.frame(everybody, a.hw) }
func toGroup(a *attacker, p packet) []byte {
	return p.frame(net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}, a.hw)
}
func fromEverybody(a *attacker, p packet) []byte { return p.frame(a.gateway, everybody) }

func dhcpAlikes(source, to string) (all []packet) {
	ports := [][2]uint16{{546, 547}, {547, 546}, {546, 53}, {68, 67}}
	if is4(to) {
		ports = [][2]uint16{{68, 53}, {67, 67}, {67, 68}, {68, 68}, {53, 67}}
	}
	for _, p := range ports {
		all = append(all, newUDP(source, to, p[0], p[1]))
	}
	return all
}

func dhcpOverTCP(source, to string) []packet { return []packet{newTCP(source, to, 68, 67, syn)} }

var (
	mld = []byte{mldQuery, mldReport, mldDone, mld2}
	nd  = []byte{routerSolicitation, routerAdvert, neighbourSolicitation, neighbourAdv, redirect}
)

func icmpv6s(hops byte, kinds ...[]byte) func(source, to string) []packet {
	return onlyIPv6(func(source, to string) (all []packet) {
		for _, kind := range slices.Concat(kinds...) {
			all = append(all, newICMPv6(source, to, hops, kind))
		}
		return all
	})
}
