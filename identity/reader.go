package identity

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A reader is the state of the goroutine that hears the kernel.
type reader struct {
	buf  [64 << 10]byte
	now  func() time.Time
	told map[string]time.Time

	port    uint32 // the socket's number
	seq     uint32 // of the last request
	stage   int    // which of the tables is being read; past the last when none is
	tries   int    // of this table
	torn    bool   // it has changed while it was read
	lost    bool   // an event, after the table was asked for
	drained bool   // no message waits

	links ledger[uint32]    // interfaces, by index
	names map[uint32]string // what they are called
}

// tables are read in this order: zones want interfaces.
var tables = []uint16{unix.RTM_GETLINK, unix.RTM_GETADDR, unix.RTM_GETNEIGH}

const (
	readEvery  = time.Minute
	tellEvery  = time.Minute
	retryAfter = time.Second
	maxTries   = 10 // of a table that keeps changing while it is read
)

func (r *reader) init(now func() time.Time, limit int) {
	r.now = now
	r.stage = len(tables)
	r.told = make(map[string]time.Time)
	r.links.init(limit)
	r.names = make(map[uint32]string)
}

func (r *reader) reading() bool { return r.stage < len(tables) }

// readAll reads everything before anybody asks.
func (w *Watcher) readAll(within time.Duration) error {
	if err := w.restart(); err != nil {
		return err
	}
	for end := w.reader.now().Add(within); w.reader.reading() || w.reader.lost; {
		if w.reader.now().After(end) {
			return fmt.Errorf("not read within %v: %w", within, os.ErrDeadlineExceeded)
		}
		if err := w.receive(); err != nil {
			return err
		}
	}
	return nil
}

// run hears the kernel until the watcher is closed.
func (w *Watcher) run() {
	for {
		err := w.receive()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = w.readAgain()
		}
		for err != nil {
			select {
			case <-w.closed:
				return
			default:
			}
			// It should not be. Nothing is known until everything could be read again.
			w.tell(err)
			w.forget()
			select {
			case <-w.closed:
				return
			case <-time.After(retryAfter):
			}
			err = w.restart()
		}
	}
}

// readAgain reads everything anew, unless that is being done.
func (w *Watcher) readAgain() error {
	if w.reader.reading() { // the kernel runs one dump at a time
		return w.events.SetReadDeadline(time.Now().Add(readEvery))
	}
	return w.restart()
}

// restart reads everything anew, from the first table.
func (w *Watcher) restart() error {
	if err := w.events.SetReadDeadline(time.Now().Add(readEvery)); err != nil {
		return err
	}
	r := &w.reader
	r.stage, r.tries, r.lost = 0, 0, false
	return w.request()
}

// request asks for the table of the stage.
func (w *Watcher) request() error {
	r := &w.reader
	r.seq++
	r.torn = false
	b := appendHeader(nil, tables[r.stage], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	switch tables[r.stage] {
	case unix.RTM_GETLINK:
		r.links.begin()
		b = append(b, make([]byte, unix.SizeofIfInfomsg)...)
		const skipStatistics = 1 << 3 // RTEXT_FILTER_SKIP_STATS
		b = appendAttribute(b, unix.IFLA_EXT_MASK, binary.NativeEndian.AppendUint32(nil, skipStatistics))
	case unix.RTM_GETADDR:
		w.own.begin()
		b = append(b, make([]byte, unix.SizeofIfAddrmsg)...)
	case unix.RTM_GETNEIGH:
		w.neighbours.begin()
		b = append(b, make([]byte, unix.SizeofNdMsg)...)
	}
	finishMessage(b, r.seq)
	_, err := w.events.Write(b)
	return err
}

// receive waits for messages, and takes them in.
func (w *Watcher) receive() error {
	r := &w.reader
	var n int
	var readErr error
	err := w.control.Read(func(fd uintptr) bool {
		n, readErr = unix.Read(int(fd), r.buf[:])
		r.drained = readErr == unix.EAGAIN
		return !r.drained || r.lost
	})
	switch {
	case err != nil:
		return err
	case readErr == unix.ENOBUFS:
		// The kernel drops all further events, without a word, until the socket's
		// queue was empty once (NETLINK_S_CONGESTED). What is read before that is
		// already out of date.
		r.lost = true
		w.tell(ErrOverrun)
		return nil
	case r.drained:
		return w.restart()
	case readErr == unix.EINTR:
		return nil
	case readErr != nil:
		return os.NewSyscallError("recvmsg", readErr)
	}
	for h, body := range messages(r.buf[:n]) {
		from := event
		// An event may bear the number of whoever's request has caused it.
		if h.Pid == r.port {
			if from = dump; h.Seq != r.seq || !r.reading() {
				continue // left from a dump that was given up
			}
			r.torn = r.torn || h.Flags&unix.NLM_F_DUMP_INTR != 0
		}
		switch h.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			w.hearLink(h.Type, body, from)
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			w.hearAddress(h.Type, body, from)
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			w.hearNeighbour(h.Type, body, from)
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			if from == dump {
				err = errors.Join(err, w.finish(body))
			}
		}
	}
	if w.own.publish() {
		signal(w.changed)
	}
	return err
}

// finish ends a table, and starts the next one.
func (w *Watcher) finish(body []byte) error {
	r := &w.reader
	// The body of NLMSG_DONE is an error number too, or 0.
	if len(body) >= 4 {
		if errno := -int32(binary.NativeEndian.Uint32(body)); errno > 0 {
			r.stage = len(tables)
			return fmt.Errorf("read a table of the kernel: %w", unix.Errno(errno))
		}
	}
	switch {
	case r.lost:
		r.stage = len(tables) // it starts again when the queue is empty
		return nil
	case r.torn && r.tries < maxTries:
		r.tries++
		return w.request()
	case !r.torn: // or else what was passed over would be taken for gone
		w.sweep(tables[r.stage])
	}
	r.links.end()
	w.own.end()
	w.neighbours.end()
	r.stage++
	r.tries = 0
	if r.reading() {
		return w.request()
	}
	return nil
}

// sweep removes what a table no longer has.
func (w *Watcher) sweep(table uint16) {
	r := &w.reader
	switch table {
	case unix.RTM_GETLINK:
		for index := range r.links.unheard() {
			r.links.strike(index)
			delete(r.names, index)
		}
		w.nameLinks()
	case unix.RTM_GETADDR:
		w.own.sweep()
	case unix.RTM_GETNEIGH:
		w.neighbours.sweep()
	}
}

// forget empties the mirrors.
func (w *Watcher) forget() {
	w.reader.links.begin()
	w.own.begin()
	w.neighbours.begin()
	for _, table := range tables {
		w.sweep(table)
	}
	w.own.publish()
	w.answers.clear()
}

// tell logs an error, unless it was told within the last minute.
func (w *Watcher) tell(err error) {
	r := &w.reader
	now := r.now()
	maps.DeleteFunc(r.told, func(_ string, at time.Time) bool { return now.Sub(at) >= tellEvery })
	if _, recent := r.told[err.Error()]; !recent {
		r.told[err.Error()] = now
		w.log(err)
	}
}
