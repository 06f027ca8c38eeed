package backend

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Class numbers what packets grants are for, of those that their holders send: see
// [Rules]. 0 is any.
type Class uint8

// Predicates say what packets the grants of a class are for. Their order counts:
// Predicates that are spelled alike are the same.
type Predicates struct {
	Ports []Ports  // where they go; none is anywhere
	Users []uint32 // whose programs on this machine have sent them; none is anybody's
	Units []Cgroup // which programs on this machine have sent them; none is any
}

// Local reports whether only packets that this machine sends can match.
func (p *Predicates) Local() bool { return len(p.Users)+len(p.Units) > 0 }

// String spells the predicates as the Corefile does. Where a cgroup is at the moment
// is not part of it.
func (p *Predicates) String() string {
	var parts []string
	for _, r := range p.Ports {
		parts = append(parts, r.String())
	}
	for _, uid := range p.Users {
		parts = append(parts, fmt.Sprint("user ", uid))
	}
	for _, u := range p.Units {
		parts = append(parts, "unit "+u.Path)
	}
	return strings.Join(parts, ", ")
}

// Ports are ports of one transport protocol.
type Ports struct {
	Protocol    uint8 // as in the IP header: 6 is TCP, 17 is UDP
	First, Last uint16
}

// Protocols are the transport protocols that have ports, by their names in the
// Corefile.
var Protocols = map[string]uint8{"tcp": 6, "udp": 17, "dccp": 33, "sctp": 132, "udplite": 136}

// String spells them as the Corefile does: tcp/443, udp/8000-8010.
func (p Ports) String() string {
	protocol := fmt.Sprint(p.Protocol)
	for name, number := range Protocols {
		if number == p.Protocol {
			protocol = name
		}
	}
	if p.First == p.Last {
		return fmt.Sprintf("%s/%d", protocol, p.First)
	}
	return fmt.Sprintf("%s/%d-%d", protocol, p.First, p.Last)
}

// JoinPorts sorts ranges of ports, and joins those that overlap or touch.
func JoinPorts(all []Ports) (joined []Ports) {
	for _, p := range slices.SortedFunc(slices.Values(all), func(a, b Ports) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.First, b.First))
	}) {
		if n := len(joined); n > 0 && joined[n-1].Protocol == p.Protocol && int(p.First) <= int(joined[n-1].Last)+1 {
			joined[n-1].Last = max(joined[n-1].Last, p.Last)
		} else {
			joined = append(joined, p)
		}
	}
	return joined
}

// Cgroup is a cgroup of version 2.
type Cgroup struct {
	Path  string // below the mount, beginning with a slash
	ID    uint64 // its directory's inode; 0 while there is none
	Level int    // how deep it lies: 1 to MaxLevel; the root, which has 0, cannot be named
}

// Program is who has sent a packet from this machine.
type Program struct {
	Cgroup Cgroup // it, if it has one of its own (an ID); or else
	User   uint32
}
