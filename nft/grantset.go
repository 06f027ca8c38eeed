package nft

import (
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// A grantSet is a set of grants of one kind of holder for one IP version. What
// says who holds a grant, if anything does, comes first in its key.
type grantSet struct {
	name, comment string
	holder        backend.Holder
	ipv4          bool
	who           *field
}

// A field says who has sent a packet.
type field struct {
	text  string // as nft spells it
	key   nftables.SetDatatype
	size  int                               // bytes that count; the kernel pads to four
	load  expr.Any                          // into the first register
	check []expr.Any                        // before it is loaded
	near  bool                              // only if the packet was not forwarded before
	id    func(*backend.Scope) []byte       // what the kernel compares with
	scope func(id []byte) (s backend.Scope) // the other way
	print func(id []byte) string            // as nft prints it
}

const sets = 2 * int(backend.Holders)

var grantSets = func() (all [sets]grantSet) {
	for holder, s := range [...]struct {
		name, comment string
		who           [2]*field // IPv4, IPv6
	}{
		backend.Everyone: {name: setGranted, comment: "addresses that DNS answers have opened"},
		backend.Machine:  {name: "granted-local", comment: "opened by DNS answers to this machine"},
		backend.User:     {name: "granted-user", comment: "opened by DNS answers to that user's programs"},
		backend.Unit:     {name: "granted-unit", comment: "opened by DNS answers to that cgroup's programs"},
		backend.Client:   {"granted-client", "opened by a DNS answer to that client", [2]*field{&source4, &source6}},
		backend.Link:     {"granted-link", "opened by a DNS answer to the client with that Ethernet address", [2]*field{&etherSource, &etherSource}},
	} {
		for i, ipv4 := range []bool{true, false} {
			all[2*holder+i] = grantSet{forVersion(s.name, ipv4), s.comment, backend.Holder(holder), ipv4, s.who[i]}
		}
	}
	return all
}()

// setOf is the index of the set that a grant stands in.
func setOf(k backend.Key) int {
	if k.Is4() {
		return 2 * int(k.Holder)
	}
	return 2*int(k.Holder) + 1
}

// grantSetsFor returns the sets of grants that the rules have.
func grantSetsFor(r backend.Rules) (have []*grantSet) {
	for i := range grantSets {
		if r.Know(backend.Scope{Holder: grantSets[i].holder}) {
			have = append(have, &grantSets[i])
		}
	}
	return have
}

var (
	source4 = field{
		text: "ip saddr", key: nftables.TypeIPAddr, size: 4, load: payload(expr.PayloadBaseNetworkHeader, 12, 4),
		id:    func(s *backend.Scope) []byte { return s.ID[12:] },
		scope: func(id []byte) backend.Scope { return backend.ClientScope(netip.AddrFrom4([4]byte(id))) },
		print: addrText,
	}
	source6 = field{
		text: "ip6 saddr", key: nftables.TypeIP6Addr, size: 16, load: payload(expr.PayloadBaseNetworkHeader, 8, 16),
		id:    func(s *backend.Scope) []byte { return s.ID[:] },
		scope: func(id []byte) backend.Scope { return backend.ClientScope(netip.AddrFrom16([16]byte(id))) },
		print: addrText,
	}
	etherSource = field{
		near: true,
		text: "ether saddr", key: nftables.TypeEtherAddr, size: 6, load: payload(expr.PayloadBaseLLHeader, 6, 6),
		check: []expr.Any{load(expr.MetaKeyIIFTYPE), is(1, 0)}, // ARPHRD_ETHER
		id:    func(s *backend.Scope) []byte { return s.ID[4:10] },
		scope: func(id []byte) backend.Scope { return backend.LinkScope(0, [6]byte(id)) },
		print: func(id []byte) string { return net.HardwareAddr(id).String() },
	}
)

func addrText(b []byte) string {
	addr, _ := netip.AddrFromSlice(b)
	return addr.String()
}

// key is the type of the set's keys.
func (s *grantSet) key() nftables.SetDatatype {
	to := nftables.TypeIP6Addr
	if s.ipv4 {
		to = nftables.TypeIPAddr
	}
	if s.who == nil {
		return to
	}
	return nftables.MustConcatSetType(s.who.key, to)
}

// appendKey writes k as the kernel compares it.
func (s *grantSet) appendKey(b []byte, k *backend.Key) []byte {
	if s.who != nil {
		b = pad(append(b, s.who.id(&k.Scope)...))
	}
	if s.ipv4 {
		return append(b, k.IP[12:]...)
	}
	return append(b, k.IP[:]...)
}

// parseKey reads what appendKey writes.
func (s *grantSet) parseKey(b []byte) (k backend.Key, ok bool) {
	who, addr := s.split(b)
	ip, ok := netip.AddrFromSlice(addr)
	if !ok || ip.Is4() != s.ipv4 || s.who != nil && len(who) != s.who.size {
		return k, false
	}
	scope := backend.Scope{Holder: s.holder}
	if s.who != nil {
		scope = s.who.scope(who)
	}
	return scope.Key(ip), true
}

func (s *grantSet) split(key []byte) (who, addr []byte) {
	if s.who == nil {
		return nil, key
	}
	start := align(s.who.size)
	if len(key) < start {
		return nil, nil
	}
	return key[:s.who.size], key[start:]
}

// keyText is a key as nft prints it.
func (s *grantSet) keyText(key []byte) string {
	who, addr := s.split(key)
	if s.who == nil {
		return addrText(addr)
	}
	return s.who.print(who) + " . " + addrText(addr)
}

// match is the condition that the packet's sender holds a grant for where it goes.
func (s *grantSet) match() match {
	name, exprs, to := "ip6 daddr", isIPv6, destination6
	if s.ipv4 {
		name, exprs, to = "ip daddr", isIPv4, destination4
	}
	lookup := &expr.Lookup{SourceRegister: register, SetName: s.name}
	if s.who == nil {
		return match{text: name + " @" + s.name, exprs: append(exprs[:2:2], to, lookup)}
	}
	// The address goes into the first free register of four bytes.
	next := *to.(*expr.Payload)
	next.DestRegister = firstRegister32 + uint32(align(s.who.size)/4)
	text := s.who.text + " . " + name + " @" + s.name
	all := slices.Clone(exprs)
	if s.who.near {
		source, set := source6, forVersion(setOnLink, s.ipv4)
		if s.ipv4 {
			source = source4
		}
		all = append(all, source.load, &expr.Lookup{SourceRegister: register, SetName: set})
		text = source.text + " @" + set + " " + text
	}
	all = append(append(all, s.who.check...), s.who.load, &next, lookup)
	return match{text: text, exprs: all}
}

// firstRegister32 is NFT_REG32_00, the first four bytes of register 1.
const firstRegister32 = 8
