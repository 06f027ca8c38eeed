package main

import (
	"errors"
	"fmt"
	"io"
)

// errNotPointed makes status end with 1.
var errNotPointed = errors.New("the machine does not ask the sentinels")

// status tells how it is, and changes nothing.
func (m *machine) status(out io.Writer) error {
	v, err := m.look()
	if err != nil {
		return err
	}
	pointed := v.resolv.ours()
	switch {
	case v.resolved:
		pointed = m.resolvedAsks(nil)
		fmt.Fprintf(out, "resolver:     systemd-resolved, which asks %s\n", which(pointed))
	case pointed:
		fmt.Fprintf(out, "resolver:     %s, which names sentinels; what was there before is in %s\n", resolv, kept)
	default:
		fmt.Fprintf(out, "resolver:     %s, which names %s\n", resolv, which(false))
	}
	fmt.Fprintf(out, "nameservers:  %s\n", orNone(text(v.machine.Nameservers)))
	have, err := m.addresses.have()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "addresses:    %d of the sentinels on lo\n", len(have))
	if len(have) == 0 {
		return errNotPointed // who answers there is somebody else
	}
	all, err := m.ask()
	if err != nil {
		fmt.Fprintf(out, "CoreDNS:      %v\n", err)
	}
	for _, s := range all {
		state := "is dead, and gets no answers"
		if s.alive {
			state = "answers"
		}
		fmt.Fprintf(out, "sentinel:     %-15v  for %q, which %s\n", s.addr, s.nameserver, state)
	}
	if !pointed {
		return errNotPointed
	}
	return err
}

func which(sentinels bool) string {
	if sentinels {
		return "the sentinels"
	}
	return "its own nameservers"
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
