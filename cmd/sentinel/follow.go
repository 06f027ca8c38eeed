package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/sentinel/hostdns"
)

const (
	// lookEvery is how soon a change of the machine's nameservers is followed.
	lookEvery = 500 * time.Millisecond

	// askEvery is how often CoreDNS is asked whether it is there.
	askEvery = 2 * time.Second

	// forgive is how long CoreDNS may not answer, while it is restarted, before the machine gets its nameservers back.
	forgive = 5 * time.Second
)

// progress is what is known from one step to the next. Nothing of it has to survive.
type progress struct {
	asked    time.Time
	answered time.Time
	servers  []netip.Addr // the machine's, at the last step
	in       []netip.Addr // sentinels in use
	err      error        // why there are none
	pointed  bool
}

// step brings the machine one step nearer to what it should be. It decides by what it finds, and not by what it did.
func (m *machine) step(p *progress, now time.Time) error {
	if err := m.addresses.add(); err != nil {
		return err
	}
	v, err := m.look()
	if err != nil {
		return err
	}
	if !v.resolv.ours() && !v.resolved && m.unsettled(now) {
		p.err = fmt.Errorf("somebody writes %s at this moment", resolv)
		return nil
	}
	changed := !slices.Equal(v.machine.Nameservers, p.servers)
	if len(v.machine.Nameservers) > 0 { // a network that has gone takes none along
		text := (&hostdns.File{Nameservers: v.machine.Nameservers}).String()
		if err := m.put(list, &content{text: text, mode: 0o644, uid: os.Geteuid(), gid: os.Getegid()}); err != nil {
			return err
		}
		p.servers = v.machine.Nameservers
	}
	if changed || now.Sub(p.asked) >= askEvery {
		p.asked = now
		all, err := m.ask()
		p.err = err
		if err == nil {
			p.answered = now
			p.in = addrsOf(all)
		}
	}
	switch {
	case p.err == nil && len(p.in) > 0:
		return m.pointTo(v, p)
	case p.err == nil:
		p.err = errors.New("CoreDNS answers, and has no nameservers yet")
	case len(p.in) > 0 && now.Sub(p.answered) < forgive:
		return m.pointTo(v, p) // what somebody else has written meanwhile as well
	}
	p.in, p.pointed = nil, false
	return m.release(p.err)
}

func (m *machine) pointTo(v view, p *progress) (err error) {
	if v.resolved {
		err = errors.Join(m.pointResolved(p.in), m.restore())
	} else {
		err = errors.Join(m.point(v, p.in), m.restoreResolved())
	}
	if err == nil && !p.pointed {
		p.pointed = true
		m.log("The machine asks the sentinels %s; its own nameservers are %s", text(p.in), orNone(text(p.servers)))
	}
	return err
}

// release lets the machine have its own nameservers, and says so if it has not had them.
func (m *machine) release(why error) error {
	v, errLook := m.look()
	drop, errRead := m.read(dropIn)
	err := errors.Join(m.restore(), m.restoreResolved())
	if errLook != nil || errRead != nil || err != nil || !v.resolv.ours() && drop == nil {
		return err
	}
	servers := v.machine.Nameservers
	m.log("The machine has its own nameservers back (%s): %v", orNone(text(servers)), why)
	if !m.answers(servers) {
		m.log("None of them answers, so no names resolve. While a guard is in force, it lets only CoreDNS ask them: start CoreDNS, or end the guard with guardctl disarm")
	}
	return nil
}

var errTold = errors.New("as it has been told")

// up points the machine at the sentinels once.
func (m *machine) up(ctx context.Context, wait time.Duration) error {
	if err := m.begin(); err != nil {
		return err
	}
	defer m.end()
	var p progress
	for started := time.Now(); ; {
		now := time.Now()
		p.asked = time.Time{}
		if err := m.step(&p, now); err != nil {
			return errors.Join(err, m.release(err))
		}
		if p.pointed {
			return nil
		}
		if now.Sub(started) >= wait {
			return fmt.Errorf("%w. lo has the addresses of the sentinels now: start CoreDNS with sentinel in its Corefile, and do this again", p.err)
		}
		if !sleep(ctx, lookEvery) {
			return errors.Join(ctx.Err(), m.release(errTold))
		}
	}
}

// down undoes all of it: first the machine has a resolver again, then the sentinels go.
func (m *machine) down() error {
	if err := m.begin(); err != nil {
		return err
	}
	defer m.end()
	return m.undo()
}

func (m *machine) undo() error {
	if err := m.release(errTold); err != nil {
		return err
	}
	return errors.Join(m.remove(list), m.remove(kept), m.addresses.remove())
}

// run follows until it is told to end.
func (m *machine) run(ctx context.Context) error {
	if err := m.begin(); err != nil {
		return err
	}
	defer m.end()
	var p progress
	var told string
	for ready := false; ; {
		err := m.step(&p, time.Now())
		if err != nil && err.Error() != told {
			m.log("%v. It is tried again", err)
		}
		if told = ""; err != nil {
			told = err.Error()
		}
		if !ready && err == nil {
			ready = true // CoreDNS may start now
			if err := notify("READY=1"); err != nil {
				m.log("systemd cannot be told: %v", err)
			}
		}
		if !sleep(ctx, lookEvery) {
			return m.undo()
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// notify tells systemd (sd_notify(3)), if it wants to know.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}
