package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

const (
	tableName = "ipdestinationguard"
	setName4  = "granted4"
)

// kernel: the least that a grant can cost, by the size of the transaction.
func kernel(b *bench) error {
	w, err := newWorld(withRuleset(b.Ours))
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.servers[0].leaveRuleset(); err != nil {
		return err
	}
	for _, size := range []int{1, 10, 100, 1000} {
		h, err := kernelTransaction(w.servers[0].Host, pick(b, 200_000, 50_000)/(size+1)+100, size)
		if err != nil {
			return err
		}
		p50 := micros(h.quantile(0.5))
		b.report.sample("kernel", fmt.Sprint(size), sample{P50: p50, P99: micros(h.quantile(0.99)), Value: p50 / float64(size)})
		b.report.add(row{Name: "kernel", What: fmt.Sprintf("one element in a transaction of %d, p50", size), Unit: "us", Ours: p50 / float64(size),
			Note: fmt.Sprintf("the transaction: p50 %.1f us, p99 %.1f us", p50, micros(h.quantile(0.99)))})
	}
	return nil
}

// kernelTransaction times transactions of some elements, from sendto to the
// kernel's acknowledgement, as raw as they can be, one upon the other.
func kernelTransaction(h *netlab.Host, times, size int) (*histogram, error) {
	t, err := newTransactor(h, size, 2*time.Minute)
	if err != nil {
		return nil, err
	}
	defer t.close()
	hist := &histogram{}
	for range times {
		took, err := t.commit()
		if err != nil {
			return nil, err
		}
		hist.add(int64(took))
	}
	return hist, nil
}

// A transactor adds elements to the set for IPv4 of the guard's table on a host.
type transactor struct {
	fd     int
	buf    []byte
	keys   []int
	answer [1 << 12]byte
	next   func() uint32 // the address for a key
}

func newTransactor(h *netlab.Host, size int, timeout time.Duration) (t *transactor, err error) {
	t = &transactor{next: func() uint32 { return address4(fresh.Add(1)) }}
	t.buf, t.keys = elementBatch(size, timeout)
	err = h.Do(func() (err error) {
		t.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		const size = 4 << 20
		if unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size) != nil {
			_ = unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, size)
		}
		_ = unix.SetsockoptInt(t.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
		return unix.Connect(t.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
	return t, err
}

func (t *transactor) close() { unix.Close(t.fd) }

func (t *transactor) commit() (took time.Duration, err error) {
	for _, at := range t.keys {
		binary.BigEndian.PutUint32(t.buf[at:], t.next())
	}
	start := time.Now()
	if _, err := unix.Write(t.fd, t.buf); err != nil {
		return 0, fmt.Errorf("write to netlink: %w", err)
	}
	n, _, err := unix.Recvfrom(t.fd, t.answer[:], unix.MSG_DONTWAIT)
	took = time.Since(start)
	if err != nil {
		return 0, fmt.Errorf("read from netlink: %w", err)
	}
	if n < 20 || binary.NativeEndian.Uint16(t.answer[4:]) != unix.NLMSG_ERROR {
		return 0, errors.New("no acknowledgement")
	}
	if errno := int32(binary.NativeEndian.Uint32(t.answer[16:])); errno != 0 {
		return 0, fmt.Errorf("transaction: %w", unix.Errno(-errno))
	}
	return took, nil
}

// elementBatch is a transaction in bytes, and where in it the keys are.
func elementBatch(size int, timeout time.Duration) (b []byte, keys []int) {
	ne, be := binary.NativeEndian, binary.BigEndian
	header := func(typ, flags uint16, family byte, resource uint16) int {
		start := len(b)
		b = ne.AppendUint32(b, 0)
		b = ne.AppendUint16(b, typ)
		b = ne.AppendUint16(b, flags)
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, family, unix.NFNETLINK_V0)
		b = be.AppendUint16(b, resource)
		return start
	}
	attr := func(typ uint16) int {
		start := len(b)
		b = ne.AppendUint16(ne.AppendUint16(b, 0), typ)
		return start
	}
	end := func(start int) {
		ne.PutUint16(b[start:], uint16(len(b)-start))
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	closeMessage := func(start int) { ne.PutUint32(b[start:], uint32(len(b)-start)) }

	closeMessage(header(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
	msg := header(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWSETELEM, unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE, unix.NFPROTO_INET, 0)
	for typ, name := range map[uint16]string{unix.NFTA_SET_ELEM_LIST_TABLE: tableName, unix.NFTA_SET_ELEM_LIST_SET: setName4} {
		a := attr(typ)
		b = append(append(b, name...), 0)
		end(a)
	}
	list := attr(unix.NFTA_SET_ELEM_LIST_ELEMENTS | unix.NLA_F_NESTED)
	for range size {
		elem := attr(unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED)
		key := attr(unix.NFTA_SET_ELEM_KEY | unix.NLA_F_NESTED)
		value := attr(unix.NFTA_DATA_VALUE)
		keys = append(keys, len(b))
		b = append(b, 0, 0, 0, 0)
		end(value)
		end(key)
		t := attr(unix.NFTA_SET_ELEM_TIMEOUT)
		b = be.AppendUint64(b, uint64(timeout.Milliseconds()))
		end(t)
		end(elem)
	}
	end(list)
	closeMessage(msg)
	closeMessage(header(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
	return b, keys
}
