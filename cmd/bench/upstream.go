package main

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// Names are n<8 hex digits>.<TTL>.bench. and have an address each: the number,
// in 11.0.0.0/8 for an A question and in 2a10::/96 for an AAAA question: addresses
// as the internet has, which are granted to every name.
const (
	digitsAt   = 12 + 1 + 1 // in a packet
	digits     = 8
	addresses  = 1 << 24
	nameSuffix = "\x05bench\x00"
)

func address4(number uint32) uint32 { return 11<<24 | number%addresses }

var prefix6 = [12]byte{0x2a, 0x10}

// question writes the question for a number into b and returns its length.
func question(b []byte, number uint32, ttl int, qtype uint16) int {
	b = append(b[:0], 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0) // RD
	b = append(b, 1+digits, 'n')
	b = append(b, "00000000"...)
	putNumber(b[digitsAt:], number)
	text := strconv.Itoa(ttl)
	b = append(b, byte(len(text)))
	b = append(b, text...)
	b = append(b, nameSuffix...)
	b = binary.BigEndian.AppendUint16(b, qtype)
	b = append(b, 0, 1)
	return len(b)
}

func putNumber(b []byte, number uint32) {
	const hex = "0123456789abcdef"
	for i := digits - 1; i >= 0; i-- {
		b[i] = hex[number&15]
		number >>= 4
	}
}

func getNumber(b []byte) (number uint32, ok bool) {
	for _, c := range b[:digits] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		number = number<<4 | uint32(c)
	}
	return number, true
}

// answer turns a question into its answer, in place, and returns its length: 0
// for what is no question.
func answer(b []byte, size int) int {
	if size < digitsAt+digits+2 || binary.BigEndian.Uint16(b[4:]) != 1 {
		return 0
	}
	number, known := getNumber(b[digitsAt:])
	rest := b[digitsAt+digits : size]
	end := bytes.IndexByte(rest, 0)
	if end < 0 || len(rest) < end+5 {
		return 0
	}
	qtype := binary.BigEndian.Uint16(rest[end+1:])
	ttl, err := strconv.Atoi(string(rest[1:min(1+int(rest[0]), len(rest))]))
	known = known && err == nil && b[12] == 1+digits
	at := digitsAt + digits + end + 5

	flags := b[2:4]
	flags[0] = flags[0]&1 | 0x84 // answer, authoritative
	flags[1] = 0
	clear(b[6:12])
	if !known {
		flags[1] = 3 // there is no such name
		return at
	}
	var data [16]byte
	length := 16
	switch qtype {
	case 1:
		length = 4
		binary.BigEndian.PutUint32(data[:], address4(number))
	case 28:
		copy(data[:], prefix6[:])
		binary.BigEndian.PutUint32(data[12:], number)
	default:
		return at
	}
	b[7] = 1
	out := append(b[:at], 0xc0, 12)
	out = binary.BigEndian.AppendUint16(out, qtype)
	out = append(out, 0, 1)
	out = binary.BigEndian.AppendUint32(out, uint32(ttl))
	out = binary.BigEndian.AppendUint16(out, uint16(length))
	return len(append(out, data[:length]...))
}

// responder answers DNS on port 53 of every address of a host, as fast as the
// kernel hands out packets.
type responder struct {
	stop atomic.Bool
	fds  []int
	wg   sync.WaitGroup
}

func startResponder(h *netlab.Host, threads int) (*responder, error) {
	r := &responder{}
	for range threads {
		fd, err := udpSocket(h, netip.MustParseAddrPort("0.0.0.0:53"), noAddress, reusePort, receiveTimeout(100_000))
		if err != nil {
			r.close()
			return nil, err
		}
		r.fds = append(r.fds, fd)
		r.wg.Go(func() { r.serve(fd) })
	}
	return r, nil
}

func (r *responder) serve(fd int) {
	in := newPackets(64, true)
	for !r.stop.Load() {
		n, err := in.receive(fd, 64, unix.MSG_WAITFORONE)
		if err != nil {
			continue
		}
		for i := range n {
			in.setLen(i, answer(in.bufs[i], int(in.msgs[i].len)))
		}
		in.send(fd, n)
	}
}

func (r *responder) close() {
	r.stop.Store(true)
	r.wg.Wait()
	for _, fd := range r.fds {
		unix.Close(fd)
	}
}
