// Command demo shows what the guard does, with the real CoreDNS and real
// packets, between hosts in network namespaces of their own.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

func main() {
	coredns := flag.String("coredns", "./coredns", "the binary to run")
	flag.Parse()
	if err := demo(*coredns); err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

func demo(coredns string) error {
	if _, err := os.Stat(coredns); err != nil {
		return fmt.Errorf("%w: make build makes it, make demo does both", err)
	}
	if err := netlab.Isolate(); err != nil {
		return err
	}
	return tell(&story{out: os.Stdout, colour: isTerminal(os.Stdout)}, coredns)
}

// tell tells all of it, and stops at the first step that does not go as told.
func tell(s *story, coredns string) error {
	s.say("Every connection below is a real one, made now. The hosts are network " +
		"namespaces: nothing of this machine is touched.")
	if err := guardedHost(s, coredns); err != nil {
		return err
	}
	if err := guardedNetwork(s, coredns); err != nil {
		return err
	}
	s.say(fmt.Sprintf("All %d steps went as told.", s.steps))
	return nil
}
