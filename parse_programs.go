package ipdestinationguard

import (
	"os/user"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/identity"
)

// addShared reads users and units, which differ in that units have a kind.
func (p *parser) addShared(args []string) error {
	for _, arg := range args {
		if strings.Contains(arg, "/") || slices.Contains(unitKinds, path.Ext(arg)) {
			unit, err := p.unit("shared_resolver", arg)
			if err != nil {
				return err
			}
			p.shared.units = addSorted(p.shared.units, unit.Path)
			continue
		}
		uid, err := p.user("shared_resolver", arg)
		if err != nil {
			return err
		}
		p.shared.users = addSorted(p.shared.users, uid)
	}
	return nil
}

func (p *parser) addUsers(args []string) error {
	for _, arg := range args {
		uid, err := p.user("users", arg)
		if err != nil {
			return err
		}
		p.policy.predicates.Users = addSorted(p.policy.predicates.Users, uid)
	}
	return nil
}

func (p *parser) addUnits(args []string) error {
	for _, arg := range args {
		unit, err := p.unit("units", arg)
		if err != nil {
			return err
		}
		units := &p.policy.predicates.Units
		i, had := slices.BinarySearchFunc(*units, unit, func(u, v backend.Cgroup) int { return strings.Compare(u.Path, v.Path) })
		if !had {
			unit.ID = 0 // until the guard follows it
			*units = slices.Insert(*units, i, unit)
		}
	}
	return nil
}

// user reads a user's name or number.
func (p *parser) user(option, text string) (uint32, error) {
	number := text
	if u, err := user.Lookup(text); err == nil {
		number = u.Uid
	}
	uid, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return 0, p.Errf("%s: there is no user %q on this machine; a user of a container, or of a directory that /etc/passwd does not know, is written as a number", option, text)
	}
	return uint32(uid), nil
}

// unitKinds are those of units that have a cgroup of their own (systemd.unit(5)).
var unitKinds = []string{".service", ".scope", ".slice", ".socket", ".mount", ".swap"}

// unit reads the name of a unit of the system, or the path of a cgroup.
func (p *parser) unit(option, text string) (backend.Cgroup, error) {
	if strings.ContainsAny(text, "*?") {
		return backend.Cgroup{}, p.Errf("%s %q: there are no wildcards; a slice, for example system.slice, stands for all below it", option, text)
	}
	at := text
	if !strings.Contains(at, "/") {
		if !slices.Contains(unitKinds, path.Ext(at)) {
			return backend.Cgroup{}, p.Errf("%s %q: the name of a unit ends with its kind: did you mean %[2]s.service? (What is no unit of systemd is written as the path of its cgroup.)", option, text)
		}
		at = unitPath(at)
	}
	unit, err := identity.UnitAt(at)
	if err != nil {
		return backend.Cgroup{}, p.Errf("%s: %v", option, err)
	}
	if unit.ID == 0 {
		p.warn("%s %s: there is no cgroup %s now. It counts from when there is one, as when a unit of that name starts (systemctl show -p ControlGroup NAME tells where)", option, text, unit.Path)
	}
	return unit, nil
}

// unitPath is where systemd has a unit of the system if nobody has said otherwise: slices
// below those whose names theirs begin with, and instances in a slice for their template
// (systemd.slice(5), systemd.unit(5)).
func unitPath(unit string) string {
	if name, slice := strings.CutSuffix(unit, ".slice"); slice {
		at := ""
		for i := range len(name) {
			if name[i] == '-' {
				at += name[:i] + ".slice/"
			}
		}
		return "/" + at + unit
	}
	if unit == "init.scope" {
		return "/" + unit
	}
	if template, _, instance := strings.Cut(unit, "@"); instance {
		return "/system.slice/system-" + strings.ReplaceAll(template, "-", `\x2d`) + ".slice/" + unit
	}
	return "/system.slice/" + unit
}

// addPorts reads PROTO/PORT and PROTO/PORT-PORT.
func (p *parser) addPorts(list *[]backend.Ports, args []string) error {
	for _, arg := range args {
		protocol, numbers, ok := strings.Cut(arg, "/")
		number, known := backend.Protocols[protocol]
		_, backwards := backend.Protocols[strings.ToLower(numbers)]
		switch {
		case backwards:
			return p.Errf("ports %q: write %s/%s", arg, strings.ToLower(numbers), protocol)
		case known && !ok:
			return p.Errf("ports %q: the port is missing, as in %[1]s/443", arg)
		case !known && ok:
			return p.Errf("ports %q: %q is no protocol with ports: there are tcp, udp, sctp, dccp and udplite", arg, protocol)
		case !known:
			return p.Errf("ports %q: write the protocol first: tcp/%[1]s or udp/%[1]s", arg)
		case strings.Contains(numbers, ","):
			return p.Errf("ports %q: write a blank between several: tcp/443 tcp/8443", arg)
		}
		from, to, isRange := strings.Cut(numbers, "-")
		if !isRange {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 16)
		last, err2 := strconv.ParseUint(to, 10, 16)
		switch {
		case err != nil || err2 != nil:
			return p.Errf("ports %q: %q is not a port (0 to 65535) or a range such as 8000-8010", arg, numbers)
		case first > last:
			return p.Errf("ports %q: the range ends before it begins", arg)
		}
		*list = append(*list, backend.Ports{Protocol: number, First: uint16(first), Last: uint16(last)})
	}
	*list = backend.JoinPorts(*list)
	return nil
}

// addSorted adds what is not there yet.
func addSorted[T interface{ ~uint32 | ~string }](list []T, v T) []T {
	i, had := slices.BinarySearch(list, v)
	if had {
		return list
	}
	return slices.Insert(list, i, v)
}
