package identity

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel is believed, but nothing that it could say breaks us.
func FuzzMessages(f *testing.F) {
	neigh := append(make([]byte, unix.SizeofNdMsg), 8, 0, unix.NDA_DST, 0, 192, 0, 2, 1)
	neigh[0] = unix.AF_INET
	b := append(appendHeader(nil, unix.RTM_NEWNEIGH, 0), neigh...)
	finishMessage(b, 1)
	f.Add(b)
	f.Add(append(b, b[:20]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := &Watcher{
			neighbours: newMirror(4),
			log:        func(error) {},
		}
		w.own.init(4)
		w.reader.init(time.Now, 4)
		for h, body := range messages(b) {
			w.hearLink(h.Type, body, event)
			w.hearAddress(h.Type, body, dump)
			w.hearNeighbour(h.Type, body, event)
			_, _ = parseSocket(body)
			_ = errnoOf(body)
		}
		if len(w.own.heard) > 4 || len(w.neighbours.heard) > 4 || len(w.reader.names) > 4 {
			t.Error("no bound")
		}
	})
}
