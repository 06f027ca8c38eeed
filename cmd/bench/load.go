package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// load is questions for a server. It ends after a time or a number of questions,
// whichever comes first.
type load struct {
	from    *netlab.Host
	server  netip.AddrPort
	sockets int // 4 when 0
	window  int // questions in flight, on all sockets
	rate    float64
	ttl     int
	qtype   uint16 // A when 0
	numbers numbers
	lasting time.Duration
	count   uint64

	// mapped expects an address of the pool, whatever the name has.
	mapped bool

	// tolerant is content with what is answered, however little that is.
	tolerant bool

	// probe sends a UDP packet to the address at once when an answer has come.
	probe bool
}

// numbers yields the numbers of names to ask for, in portions.
type numbers func() (first, n uint32)

// again asks for the same names again and again.
func again(first, n uint32) numbers { return func() (uint32, uint32) { return first, n } }

// never asks for each name only once in the life of the program. Addresses come
// again after 16 million names.
func never() (first, n uint32) {
	const portion = 256
	return fresh.Add(portion) - portion, portion
}

var fresh atomic.Uint32

// loadResult is what became of the questions.
type loadResult struct {
	Sent     uint64
	Answered uint64        // with the right address
	Failed   uint64        // otherwise
	Lost     uint64        // not at all, within 3 seconds
	Probes   uint64        // packets sent to an address that was answered
	Elapsed  time.Duration // until the last answer
	latency  *histogram
}

func (r *loadResult) perSecond() float64 {
	return float64(r.Answered) / r.Elapsed.Seconds()
}

func (r *loadResult) check() error {
	if r.Answered == 0 || (r.Failed+r.Lost)*1000 > r.Sent {
		return fmt.Errorf("of %d questions %d were answered, %d failed and %d were lost", r.Sent, r.Answered, r.Failed, r.Lost)
	}
	return nil
}

const lostAfter = 3 * time.Second

// run carries the load out.
func (l load) run() (*loadResult, error) {
	if l.sockets == 0 {
		l.sockets = min(4, max(l.window, 1))
		if l.window == 0 {
			l.sockets = 4
		}
	}
	if l.qtype == 0 {
		l.qtype = 1
	}
	var asked atomic.Uint64
	start := time.Now()
	total := &loadResult{latency: &histogram{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failed error
	for i := range l.sockets {
		fd, err := udpSocket(l.from, noAddress, l.server, receiveTimeout(50_000))
		if err != nil {
			return nil, err
		}
		s := &stream{load: &l, fd: fd, probeFd: -1, asked: &asked, start: start,
			loadResult: loadResult{latency: &histogram{}}, window: share(l.window, l.sockets, i)}
		if l.probe {
			if s.probeFd, err = udpSocket(l.from, noAddress, noAddress); err != nil {
				return nil, err
			}
		}
		wg.Go(func() {
			s.run()
			unix.Close(fd)
			if s.probeFd >= 0 {
				unix.Close(s.probeFd)
			}
			mu.Lock()
			defer mu.Unlock()
			total.Sent += s.Sent
			total.Answered += s.Answered
			total.Failed += s.Failed
			total.Lost += s.Lost
			total.Probes += s.Probes
			total.Elapsed = max(total.Elapsed, s.Elapsed)
			total.latency.merge(s.latency)
		})
	}
	wg.Wait()
	return total, failed
}

func share(n, parts, i int) int { return n*(i+1)/parts - n*i/parts }

// stream is the part of a load that one socket carries.
type stream struct {
	*load
	loadResult
	fd, probeFd int
	window      int
	asked       *atomic.Uint64
	start       time.Time

	next, oldest uint64 // sequence numbers: the low 16 bits are DNS IDs
	flying       int
	at           [1 << 16]int64 // when it was sent, or should have been; 0 when settled
	number       [1 << 16]uint32
	first, left  uint32 // numbers
	out, in      *packets
	packetLen    int
}

const perCall = 32

func (s *stream) run() {
	s.out, s.in = newPackets(perCall, false), newPackets(perCall, false)
	for i := range s.out.bufs {
		s.packetLen = question(s.out.bufs[i], 0, s.ttl, s.qtype)
		s.out.setLen(i, s.packetLen)
	}
	if s.rate > 0 {
		s.offered()
	} else {
		s.closed()
	}
}

func (s *stream) now() int64 { return int64(time.Since(s.start)) + 1 }

// closed keeps a fixed number of questions in flight.
func (s *stream) closed() {
	for {
		now := s.now()
		if s.over(now) {
			if s.flying == 0 {
				return
			}
		} else {
			for s.flying < s.window {
				n := s.send(min(s.window-s.flying, perCall), nil)
				if n == 0 {
					break
				}
			}
			if s.flying == 0 {
				return
			}
		}
		s.receive(unix.MSG_WAITFORONE)
		s.expire()
	}
}

// offered sends at a rate, whatever comes back. Latency counts from when a
// question should have been sent.
func (s *stream) offered() {
	interval := float64(time.Second) * float64(s.sockets) / s.rate
	var due [perCall]int64
	poll := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
	for {
		now := s.now()
		over := s.over(now)
		const grace = 300 * time.Millisecond
		if over && (s.flying == 0 || s.tolerant && now > int64(s.lasting+grace)) {
			return
		}
		n := 0
		if !over {
			for n < perCall {
				t := int64(float64(s.next+uint64(n)) * interval)
				if t > now {
					break
				}
				due[n] = t + 1
				n++
			}
			s.send(n, due[:n])
		}
		if !s.receive(unix.MSG_DONTWAIT) && n < perCall {
			wait := unix.NsecToTimespec(min(max(int64(float64(s.next)*interval)-s.now(), 20_000), 10e6))
			if over {
				wait = unix.NsecToTimespec(10e6)
			}
			_, _ = unix.Ppoll(poll, &wait, nil)
		}
		s.expire()
	}
}

func (s *stream) over(now int64) bool {
	return s.lasting > 0 && now > int64(s.lasting) || s.count > 0 && s.asked.Load() >= s.count
}

func (s *stream) send(n int, due []int64) int {
	if s.count > 0 {
		before := s.asked.Add(uint64(n)) - uint64(n)
		if before >= s.count {
			return 0
		}
		n = int(min(uint64(n), s.count-before))
	}
	if n == 0 {
		return 0
	}
	now := s.now()
	for i := range n {
		if s.left == 0 {
			s.first, s.left = s.numbers()
		}
		number := s.first
		s.first++
		s.left--
		id := uint16(s.next)
		if s.next-s.oldest >= 1<<16-1 {
			s.giveUp()
		}
		s.next++
		s.number[id] = number
		s.at[id] = now
		if due != nil {
			s.at[id] = due[i]
		}
		b := s.out.bufs[i]
		binary.BigEndian.PutUint16(b, id)
		putNumber(b[digitsAt:], number)
	}
	s.flying += n
	s.Sent += uint64(n)
	s.out.send(s.fd, n)
	return n
}

// receive takes what has come and reports whether that was something.
func (s *stream) receive(flags int) bool {
	limit := perCall
	if s.probe {
		limit = 1 // so that no packet is a moment late because of another
	}
	n, err := s.in.receive(s.fd, limit, flags)
	if err != nil || n == 0 {
		return false
	}
	now := s.now()
	for i := range n {
		b := s.in.packet(i)
		if len(b) < 12 {
			continue
		}
		id := binary.BigEndian.Uint16(b)
		if s.at[id] == 0 {
			continue // late: it counts as lost
		}
		if s.right(b, s.number[id]) {
			if s.probe {
				s.sendProbe(s.number[id])
			}
			s.Answered++
			s.latency.add(now - s.at[id])
			s.Elapsed = time.Duration(now)
		} else {
			s.Failed++
		}
		s.at[id] = 0
		s.flying--
	}
	return true
}

// right reports whether b gives the address of the name.
func (s *stream) right(b []byte, number uint32) bool {
	if len(b) < s.packetLen+16 || b[3]&15 != 0 || b[7] != 1 {
		return false
	}
	if s.mapped {
		return b[len(b)-4] == mappedPool
	}
	if s.qtype == 1 {
		return binary.BigEndian.Uint32(b[len(b)-4:]) == address4(number)
	}
	return binary.BigEndian.Uint32(b[len(b)-4:]) == number
}

var probePayload = []byte("probe")

const probePort = 9

func (s *stream) sendProbe(number uint32) {
	to := unix.SockaddrInet4{Port: probePort}
	binary.BigEndian.PutUint32(to.Addr[:], address4(number))
	if unix.Sendto(s.probeFd, probePayload, 0, &to) == nil {
		s.Probes++
	}
}

// expire gives up what is too old.
func (s *stream) expire() {
	now := s.now()
	for s.oldest < s.next {
		at := s.at[uint16(s.oldest)]
		if at != 0 && now-at < int64(lostAfter) {
			return
		}
		s.giveUp()
	}
}

func (s *stream) giveUp() {
	id := uint16(s.oldest)
	s.oldest++
	if s.at[id] != 0 {
		s.at[id] = 0
		s.flying--
		s.Lost++
	}
}
