package ipdestinationguard

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/flowlog"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// denied tells people of what is refused, or passes in audit only: why, in the log, as
// metrics, and at the admin socket.
type denied struct {
	guard *guard
	log   *flowlog.Log
	lines *rate.Limiter // of the log

	mu        sync.Mutex // guards what follows
	reasons   map[backend.Flow]judgement
	followers map[chan admin.Denied]bool
}

// A judgement is why a flow was denied, and what is known of who sends it, when it was told
// of last.
type judgement struct {
	reason     why.Reason
	text, name string
	sender     sender
	packet     bool // one has been seen, and not only counted
}

// What reasons people are told beside those of package why.
const (
	belongsNowhere why.Reason = "invalid"
	laidDown       why.Reason = "source_route"
	changed        why.Reason = "changed"
)

// reasons are all of them.
var reasons = append(slices.Clip(why.Refusals), belongsNowhere, laidDown, changed)

const (
	// maxReasons bounds what is known beside the log's own book, which has half of that.
	maxReasons = 1 << 14

	linesPerSecond, linesAtOnce = 5, 100
)

// followDeniedLocked begins to follow what is denied, where the backend counts it.
func (g *guard) followDeniedLocked() {
	denials, ok := g.backend.(backend.Denials)
	if g.denied != nil || !ok {
		return
	}
	d := &denied{guard: g, lines: rate.NewLimiter(linesPerSecond, linesAtOnce), reasons: map[backend.Flow]judgement{}, followers: map[chan admin.Denied]bool{}}
	d.log = flowlog.New(denials, (*deniedObserver)(d), g.now)
	g.denied = d
}

// listen has packets shown by the group that the settings name. Nobody may hold a lock
// that a judgement takes.
func (g *guard) listen(s *settings) {
	g.arming.Lock()
	d := g.denied
	g.arming.Unlock()
	if d == nil {
		return
	}
	if err := d.log.Listen(s.operation.group); err != nil {
		log.Warningf("%s: what is denied is told of some seconds late: NFLOG group %d: %v (nflog_group names another one, or off)", s.place, s.operation.group, err)
	}
}

// deniedObserver is denied as the log of flows sees it.
type deniedObserver denied

var _ flowlog.Observer = (*deniedObserver)(nil)

// Failed implements [flowlog.Observer].
func (o *deniedObserver) Failed(op string, err error) {
	if !o.guard.closed.Load() {
		log.Errorf("What is denied cannot be followed (%s), which is tried again: %v", op, err)
	}
}

// Denied implements [flowlog.Observer].
func (o *deniedObserver) Denied(e flowlog.Event) {
	d := (*denied)(o)
	j := d.judge(&e.Flow)
	d.remember(e.Flow.Flow, j)
	deniedTotal.WithLabelValues(e.Hook.String(), verb(e.Audited), string(j.reason)).Add(float64(e.New.Packets))
	line := d.describe(&e.Flow, j)
	if !d.guard.settings.Load().operation.quiet && d.lines.AllowN(d.guard.now(), 1) {
		log.Info(logLine(&line, e.New))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for f := range d.followers {
		select {
		case f <- line:
		default: // who does not keep up misses some
		}
	}
}

// verb is what has become of a flow, as metrics have it.
func verb(audited bool) string {
	if audited {
		return "audit"
	}
	return "refused"
}

// judge finds out why a flow was denied when its last packet came.
func (d *denied) judge(f *flowlog.Flow) (j judgement) {
	j.packet = f.Packet.Source.IsValid()
	var program *why.Program
	if f.Hook == backend.Output && f.User != backend.NoUser {
		j.sender = d.sender(f)
		program = &why.Program{User: f.User, Unit: j.sender.unit, Cgroups: j.sender.cgroups}
	}
	switch {
	case f.Invalid:
		j.reason, j.text = belongsNowhere, "belongs to no connection that is known: forged, or late, or its answers go another way"
		return j
	case f.Bound:
		j.reason = why.NoWay
		j.name, j.text = d.guard.strayed(f.Addr)
		return j
	case f.Packet.SourceRouted:
		j.reason, j.text = laidDown, "the sender has laid down its route, or may have: it has IP options or a routing header"
		return j
	}
	flow := why.Flow{To: f.Addr, Protocol: f.Protocol, Port: f.Port, Program: program}
	if f.Hook == backend.Forward {
		flow.Forwarded, flow.Client, flow.In = true, f.Client, interfaceName(f.Interface)
		if flow.Link = d.guard.link(f.Client); len(f.Packet.Ether) == 6 {
			flow.Link = backend.LinkScope(f.Interface, [6]byte(f.Packet.Ether))
		}
	}
	k := d.before(f)
	v := k.Explain(&flow)
	if v.Passes {
		v.Reason, v.Text = changed, "would pass now: "+v.Text+" (it came a moment too early, or into a connection of somebody else, or its sender has laid down its route)"
	}
	j.reason, j.text, j.name = v.Reason, v.Text, nameOf(v.Answer)
	return j
}

// before is what was known when a flow's last packet came: what has been answered since
// does not count.
func (d *denied) before(f *flowlog.Flow) *why.Knowledge {
	const clock = 20 * time.Millisecond // how far the kernel's may be from ours
	k := d.guard.knowledge()
	k.Now, k.Stray = f.Last, nil // what strays is of another kind
	all := d.guard.history.Of(f.Addr)
	var earlier []why.Answer
	since := map[backend.Key]bool{}
	for _, a := range all {
		if a.At.After(f.Last.Add(clock)) {
			since[a.Scope.Key(a.Addr)] = true
		} else {
			earlier = append(earlier, a)
		}
	}
	k.Answers = func(netip.Addr) []why.Answer { return earlier }
	k.InForce = func(key backend.Key) (time.Time, bool) {
		if since[key] {
			return time.Time{}, false
		}
		return d.guard.inForce.Lookup(key)
	}
	return k
}

// A sender is who has sent a packet of this machine, as far as it is known.
type sender struct {
	unit, program string
	cgroups       []uint64 // the unit's, those above it, and its own
}

// sender finds out who has sent a packet, if its socket is still there.
func (d *denied) sender(f *flowlog.Flow) (s sender) {
	network := protocolName(f.Protocol)
	askers := d.guard.programs()
	if askers == nil || network != "tcp" && network != "udp" || !f.Packet.Source.IsValid() {
		return s
	}
	asker, err := askers.Find(network, f.Packet.Source, netip.AddrPortFrom(f.Addr, f.Port))
	if err != nil || asker.UID != f.User {
		return s
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := askers.Unit(ctx, asker.Cgroup)
	if err != nil || c.Level == 0 {
		return s
	}
	s.unit, s.cgroups = c.Path, append(cgroupsAbove(c.Path), asker.Cgroup)
	if asker.Cgroup == c.ID {
		s.program = askers.Program(c, asker.UID)
	}
	return s
}

// remember keeps why a flow was denied, as long as the log has the flow.
func (d *denied) remember(f backend.Flow, j judgement) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.reasons) >= maxReasons {
		kept := make(map[backend.Flow]judgement, maxReasons)
		for _, f := range d.log.Flows() {
			if j, ok := d.reasons[f.Flow]; ok {
				kept[f.Flow] = j
			}
		}
		d.reasons = kept
	}
	d.reasons[f] = j
}

// judged is why a flow was denied: as it was told, or if it never was, or a packet says
// more since, as it seems now.
func (d *denied) judged(f *flowlog.Flow) judgement {
	d.mu.Lock()
	j, ok := d.reasons[f.Flow]
	d.mu.Unlock()
	if !ok || f.Packet.Source.IsValid() && !j.packet {
		j = d.judge(f)
		d.remember(f.Flow, j)
	}
	return j
}

// describe is a flow for people.
func (d *denied) describe(f *flowlog.Flow, j judgement) admin.Denied {
	a := admin.Denied{
		First: f.First, Last: f.Last, Hook: f.Hook.String(), Audit: f.Audited, Unit: j.sender.unit, Program: j.sender.program,
		Protocol: protocolName(f.Protocol), Address: f.Addr, Port: f.Port, Packets: f.Packets, Bytes: f.Bytes,
		Reason: string(j.reason), Text: j.text, Name: j.name,
	}
	switch {
	case f.Hook == backend.Forward:
		a.Client, a.Interface = f.Client, interfaceName(f.Interface)
	case f.User == backend.NoUser:
		a.User = "(kernel)"
	default:
		a.User = userName(f.User)
	}
	return a
}

// logLine is a flow as the log has it. Names come from the network: they are quoted.
func logLine(a *admin.Denied, since backend.Count) string {
	var b strings.Builder
	word := func(key, value string) {
		if strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' }) {
			value = strconv.Quote(value) // users call their units and programs as they like
		}
		if value != "" {
			fmt.Fprintf(&b, " %s=%s", key, value)
		}
	}
	b.WriteString("Denied")
	if a.Audit {
		b.WriteString(" (audit: it has passed)")
	}
	b.WriteByte(':')
	word("chain", a.Hook)
	word("interface", a.Interface)
	if a.Client.IsValid() {
		word("client", a.Client.String())
	}
	word("user", a.User)
	word("unit", a.Unit)
	word("program", a.Program)
	word("protocol", a.Protocol)
	word("address", a.Address.String())
	if a.Port != 0 {
		word("port", fmt.Sprint(a.Port))
	}
	fmt.Fprintf(&b, " packets=%d bytes=%d", since.Packets, since.Bytes)
	word("reason", a.Reason)
	if a.Name != "" {
		fmt.Fprintf(&b, " name=%q", a.Name)
	}
	fmt.Fprintf(&b, " why=%q", a.Text)
	return b.String()
}

// close ends it.
func (d *denied) close() {
	if d != nil {
		_ = d.log.Close()
	}
}
