package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
	"github.com/destination-guard/coredns-ip-destination-guard/nft"
)

// scene is what can happen in the world, each a step of the story.
type scene struct {
	*story
	*world
	conns    []net.Conn // open ones, the oldest first
	answered time.Time  // when the last answer came
}

func newScene(s *story) (*scene, error) {
	w, err := newWorld()
	return &scene{story: s, world: w}, err
}

func (sc *scene) close() error {
	for _, c := range sc.conns {
		_ = c.Close() // whatever its peer thinks of it
	}
	return sc.lab.Close()
}

const (
	patience     = 5 * time.Second // of the people of the story
	startsWithin = 10 * time.Second

	// outlived is when the grant of an answer is over: TTL, margin, half a
	// second that it may last longer, and a little for us.
	outlived = (ttl+margin)*time.Second + 700*time.Millisecond
)

// startGuard runs CoreDNS and waits until the rules are in force. The time of the
// story begins then.
func (sc *scene) startGuard(coredns, corefile string) {
	if sc.err != nil {
		return
	}
	c := sc.guard.Command(coredns, "-conf", "stdin")
	c.Stdin = strings.NewReader(corefile)
	if sc.err = c.Start(); sc.err != nil {
		return
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }() // at the latest when the lab is closed
	deadline := time.After(startsWithin)
	for sc.err == nil && !strings.Contains(c.Output(), "In force: ") {
		select {
		case err := <-ended:
			sc.err = fmt.Errorf("CoreDNS has ended: %w\n%s", err, c.Output())
		case <-deadline:
			sc.err = fmt.Errorf("CoreDNS has put no rules in force within %v:\n%s", startsWithin, c.Output())
		case <-time.After(5 * time.Millisecond):
		}
	}
	sc.start = time.Now()
}

// refused: a connection is refused, and the program is told so in the given way.
func (sc *scene) refused(what string, from *netlab.Host, addr string, how syscall.Errno) {
	sc.step(what, func() (outcome, error) {
		start := time.Now()
		conn, err := dial(from, "tcp", addr, port)
		switch {
		case err == nil:
			return outcome{}, errors.Join(errors.New("it is open"), conn.Close())
		case !errors.Is(err, how):
			return outcome{}, fmt.Errorf("it fails otherwise: %w", err)
		}
		return isRefused(fmt.Sprintf("%q, after %s", how, since(start))), nil
	})
}

// open: a connection comes about, and stays.
func (sc *scene) open(what string, from *netlab.Host, addr string) {
	sc.step(what, func() (outcome, error) {
		start := time.Now()
		conn, err := dial(from, "tcp", addr, port)
		if err != nil {
			return outcome{}, err
		}
		connected := since(start)
		sc.conns = append(sc.conns, conn)
		return isOpen(fmt.Sprintf(`connected after %s, "hello" came back`, connected)), talk(conn, "hello")
	})
}

// stillTalks: the oldest connection is as it was.
func (sc *scene) stillTalks(what string) {
	sc.step(what, func() (outcome, error) {
		return isOpen(`"still here?" came back`), talk(sc.conns[0], "still here?")
	})
}

// lookUp: a server gives the shop's addresses, one of each type.
func (sc *scene) lookUp(what string, from *netlab.Host, server string, qtypes ...uint16) {
	sc.step(what, func() (outcome, error) {
		start := time.Now()
		var addrs []string
		for _, qtype := range qtypes {
			reply, err := ask(from, "udp", server, shop, qtype)
			if err != nil {
				return outcome{}, err
			}
			for _, rr := range reply.Answer {
				addrs = append(addrs, dns.Field(rr, 1))
			}
		}
		if len(addrs) != len(qtypes) {
			return outcome{}, fmt.Errorf("the answer has %d addresses, not %d", len(addrs), len(qtypes))
		}
		sc.answered = time.Now()
		return told("answer", fmt.Sprintf("%s; TTL %d s; after %s", strings.Join(addrs, ", "), ttl, since(start))), nil
	})
}

// strangerRefused: a question to the intruder's own resolver goes nowhere.
func (sc *scene) strangerRefused(what string, from *netlab.Host, network string, how syscall.Errno) {
	sc.step(what, func() (outcome, error) {
		_, err := ask(from, network, stranger, evil, dns.TypeA)
		switch {
		case err == nil || sc.overheard.Load() > 0:
			return outcome{}, errors.New("the question has got out")
		case !errors.Is(err, how):
			return outcome{}, fmt.Errorf("it fails otherwise: %w", err)
		}
		return isRefused(fmt.Sprintf("%q; no question has got there", how)), nil
	})
}

// outlive: what the last answer has opened is shut again.
func (sc *scene) outlive() {
	what := fmt.Sprintf("Time passes: TTL %d s, margin %d s, up to half a second more.", ttl, margin)
	sc.step(what, func() (outcome, error) {
		start := time.Now()
		time.Sleep(time.Until(sc.answered.Add(outlived)))
		return told("waited", since(start)), nil
	})
}

// counted: the world has seen the connections that are told to be open, no other.
func (sc *scene) counted(what string) {
	sc.step(what, func() (outcome, error) {
		if got := sc.world.world.Accepted(); got != uint64(len(sc.conns)) {
			return outcome{}, fmt.Errorf("it is %d, not %d", got, len(sc.conns))
		}
		return told("count", fmt.Sprintf("%d, those that were open", len(sc.conns))), nil
	})
}

// rules returns the given parts of what nft list table prints on the guard.
func (sc *scene) rules(rules backend.Rules, parts ...string) (text string) {
	var table strings.Builder
	if sc.err == nil {
		sc.err = sc.guard.Do(func() error { return nft.Print(&table, rules) })
	}
	for _, part := range parts {
		if _, rest, found := strings.Cut(table.String(), "\n\t"+part+" {\n"); found {
			inside, _, _ := strings.Cut(rest, "\n\t}\n")
			text += "\t" + part + " {\n" + inside + "\n\t}\n"
		}
	}
	return text
}

func dial(from *netlab.Host, network, addr string, port int) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return from.Dial(ctx, network, net.JoinHostPort(addr, fmt.Sprint(port)))
}

// talk says a word and waits until it comes back.
func talk(conn net.Conn, word string) error {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte(word)); err != nil {
		return err
	}
	back := make([]byte, len(word))
	n, err := conn.Read(back)
	if err == nil && string(back[:n]) != word {
		err = fmt.Errorf("said %q, got %q", word, back[:n])
	}
	return err
}

func ask(from *netlab.Host, network, server, name string, qtype uint16) (*dns.Msg, error) {
	conn, err := dial(from, network, server, 53)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	client := dns.Client{Net: network, Timeout: patience}
	reply, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(name, qtype), &dns.Conn{Conn: conn})
	if err == nil && reply.Rcode != dns.RcodeSuccess {
		err = fmt.Errorf("the answer is %s", dns.RcodeToString[reply.Rcode])
	}
	return reply, err
}

// since says how long ago something was.
func since(start time.Time) string {
	d := time.Since(start)
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
