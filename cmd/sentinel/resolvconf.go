package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/sentinel/hostdns"
)

// view is what a look at resolv.conf finds.
type view struct {
	resolv   *content // itself; nil if there is none
	before   *content // what was there before ours; nil if that is not kept
	resolved bool     // it leads to systemd-resolved, which is told of the sentinels then

	machine *hostdns.File // what the machine would have without us
}

// settle is how long a file that somebody writes is left alone. Not everybody puts it in its place in one step.
const settle = 300 * time.Millisecond

// unsettled reports whether somebody else may be at work at resolv.conf.
func (m *machine) unsettled(now time.Time) bool {
	info, err := os.Lstat(m.path(resolv))
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	age := now.Sub(info.ModTime())
	return age >= 0 && age < settle
}

// look finds out how it is.
func (m *machine) look() (v view, err error) {
	if v.resolv, err = m.read(resolv); err != nil {
		return v, err
	}
	v.before = v.resolv
	if v.resolv.ours() {
		if v.before, err = m.read(kept); err != nil {
			return v, err
		}
	}
	v.machine = new(hostdns.File)
	switch {
	case v.before == nil:
	case v.before.link:
		end, err := m.follow(filepath.Dir(resolv), v.before.text)
		if err != nil {
			break // what it leads to is not there yet, or no more
		}
		v.resolved = end == stub
		if file, err := hostdns.Read(m.path(end)); err == nil {
			v.machine = file
		}
	default:
		v.machine = hostdns.Parse(v.before.text)
	}
	v.resolved = v.resolved || v.machine.Stub && len(v.machine.Nameservers) == 0
	if v.resolved {
		v.machine.Nameservers = m.askedByResolved()
	}
	return v, nil
}

// point has resolv.conf name the sentinels. What it says otherwise stays: how names are completed, and options.
func (m *machine) point(v view, sentinels []netip.Addr) error {
	if v.resolv == nil {
		return fmt.Errorf("there is no %s: make one, with the nameservers of this machine", resolv)
	}
	if !v.resolv.ours() {
		if err := m.put(kept, v.resolv); err != nil {
			return err
		}
	}
	wanted := &content{text: mark + (&hostdns.File{Nameservers: sentinels, Settings: v.machine.Settings}).String(),
		mode: 0o644, uid: os.Geteuid(), gid: os.Getegid()}
	if v.resolv.equal(wanted) {
		return nil
	}
	out, err := m.exchange(wanted)
	if err != nil {
		return err
	}
	if out != nil && !out.ours() {
		if err := m.put(kept, out); err != nil {
			return err
		}
	}
	return m.remove(fresh)
}

// restore gives resolv.conf back, if it is ours.
func (m *machine) restore() error {
	now, err := m.read(resolv)
	if err != nil || !now.ours() {
		return err
	}
	before, err := m.keptOrNearly(now)
	if err != nil {
		return err
	}
	out, err := m.exchange(before)
	if err != nil {
		return err
	}
	if out != nil && !out.ours() {
		// Somebody has written it in this moment.
		return m.takeBack()
	}
	return m.remove(fresh)
}

// keptOrNearly is what was there before, or what comes next to that where somebody has deleted it.
func (m *machine) keptOrNearly(now *content) (*content, error) {
	before, err := m.read(kept)
	if err != nil || before != nil && !before.ours() {
		return before, err
	}
	file, err := hostdns.Read(m.path(list))
	if err != nil || len(file.Nameservers) == 0 {
		return nil, fmt.Errorf("%s names sentinels, and what was there before is gone from %s: write %s anew, with the nameservers of this machine", resolv, kept, resolv)
	}
	file.Settings = hostdns.Parse(now.text).Settings
	return &content{text: file.String(), mode: 0o644, uid: now.uid, gid: now.gid}, nil
}

// takeBack puts what has come out of resolv.conf, in an exchange, in its place again.
func (m *machine) takeBack() error {
	m.between("take back")
	if err := os.Rename(m.path(fresh), m.path(resolv)); err != nil {
		return err
	}
	return syncFolder(m.path(resolv))
}

// recover ends what a process that was killed has left undone. Files at their places are whole, whenever that was; only
// what is at fresh can be worth something: what somebody else wrote in the moment of an exchange.
func (m *machine) recover() error {
	for _, name := range []string{fresh, kept, list, dropIn} {
		if err := m.remove(part(name)); err != nil {
			return err
		}
	}
	left, err := m.read(fresh)
	if err != nil || left == nil {
		return err
	}
	now, err := m.read(resolv)
	if err != nil {
		return err
	}
	before, err := m.read(kept)
	if err != nil {
		return err
	}
	switch {
	case left.ours() || left.equal(before):
	case now.ours():
		if err := m.put(kept, left); err != nil {
			return err
		}
	case now.equal(before):
		return m.takeBack()
	}
	return m.remove(fresh)
}

// text is a list of addresses for people and for resolved.conf.
func text(addrs []netip.Addr) string {
	all := make([]string, 0, len(addrs))
	for _, a := range addrs {
		all = append(all, a.String())
	}
	return strings.Join(all, " ")
}
