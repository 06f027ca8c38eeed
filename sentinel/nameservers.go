package sentinel

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coredns/coredns/plugin/pkg/parse"
	"github.com/coredns/coredns/plugin/pkg/transport"

	"github.com/destination-guard/coredns-ip-destination-guard/sentinel/hostdns"
)

// lookInterval is the least time between two looks at the machine's files.
const lookInterval = time.Second

// nameservers are those of the machine, or those that are given. There is no goroutine that follows the files: whoever
// asks looks, once a second, before anything is forwarded. So what is asked is what the machine has now, and a Corefile
// that is thrown away after all leaves nothing behind.
type nameservers struct {
	given  []string // instead of the machine's
	files  []string // of which the first that names some counts
	config *tls.Config
	warn   func(format string, args ...any)
	start  time.Time

	list   atomic.Pointer[[]*nameserver]
	looked atomic.Int64 // nanoseconds from start to the last look

	mu      sync.Mutex // guards what follows, and changes
	from    []stamp    // of the files at the last look
	missing string     // what was last warned of
	tell    []func([]netip.AddrPort)
	closed  bool
}

// stamp tells a file from what it was before.
type stamp struct {
	device, inode uint64
	size, changed int64
}

// now returns the nameservers, by slot.
func (n *nameservers) now() []*nameserver {
	elapsed := int64(time.Since(n.start))
	if last := n.looked.Load(); len(n.given) == 0 && elapsed-last >= int64(lookInterval) && n.looked.CompareAndSwap(last, elapsed) {
		n.look()
	}
	return *n.list.Load()
}

// look reads what there is to read, if it has changed.
func (n *nameservers) look() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return
	}
	wanted := n.given
	if len(wanted) == 0 {
		from := n.stamps()
		if n.list.Load() != nil && slices.Equal(from, n.from) {
			return
		}
		n.from = from
		var err error
		if wanted, err = n.read(); err != nil {
			if text := err.Error(); text != n.missing {
				n.missing = text
				n.warn("The nameservers of this machine are not known, those from before stay: %s", text)
			}
			if n.list.Load() != nil {
				return
			}
		} else {
			n.missing = ""
		}
	}
	n.changeLocked(wanted)
}

// changeLocked makes these the nameservers. Those that stay are the same as before, with what is known of their health.
func (n *nameservers) changeLocked(wanted []string) {
	var before []*nameserver
	if list := n.list.Load(); list != nil {
		before = *list
	}
	after := make([]*nameserver, 0, len(wanted))
	for _, server := range wanted {
		fresh := newNameserver(server, n.config)
		if i := slices.IndexFunc(before, func(s *nameserver) bool { return s.text == fresh.text }); i >= 0 {
			fresh.close()
			fresh = before[i]
		}
		after = append(after, fresh)
	}
	for _, tell := range n.tell {
		tell(upstream(after))
	}
	n.list.Store(&after)
	for _, s := range before {
		if !slices.Contains(after, s) {
			s.close()
		}
	}
}

// read returns what the first file that names nameservers says.
func (n *nameservers) read() (servers []string, err error) {
	var errs []error
	for _, path := range n.files {
		file, err := hostdns.Read(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			errs = append(errs, fmt.Errorf("there is no %s", path))
		case err != nil:
			errs = append(errs, err)
		case len(file.Nameservers) == 0 && len(file.Sentinels) > 0:
			errs = append(errs, fmt.Errorf("%s names sentinels only", path))
		case len(file.Nameservers) == 0 && file.Stub:
			errs = append(errs, fmt.Errorf("%s names systemd-resolved only", path))
		case len(file.Nameservers) == 0:
			errs = append(errs, fmt.Errorf("%s names none", path))
		default:
			for _, addr := range file.Nameservers {
				servers = append(servers, net.JoinHostPort(addr.String(), transport.Port))
			}
			return servers, nil
		}
	}
	return nil, errors.Join(errs...)
}

func (n *nameservers) stamps() []stamp {
	all := make([]stamp, len(n.files))
	for i, path := range n.files {
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		all[i] = stamp{size: info.Size(), changed: info.ModTime().UnixNano()}
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			all[i].device, all[i].inode = uint64(s.Dev), s.Ino
		}
	}
	return all
}

// close ends all of them.
func (n *nameservers) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	if list := n.list.Load(); list != nil {
		for _, s := range *list {
			s.close()
		}
	}
}

// FollowUpstream has f told what questions are forwarded to, now if it is known, and whenever it has changed: before any
// question is sent there. A plugin that decides what CoreDNS may reach asks for it.
func (h *Handler) FollowUpstream(f func([]netip.AddrPort)) {
	n := h.servers
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tell = append(n.tell, f)
	if list := n.list.Load(); list != nil {
		f(upstream(*list))
	}
}

// Nameservers are those that are asked now, by the sentinels that stand before them.
func (h *Handler) Nameservers() map[netip.Addr]string {
	all := map[netip.Addr]string{}
	for i, s := range h.servers.now() {
		if i < len(h.addresses) {
			all[h.addresses[i]] = s.text
		}
	}
	return all
}

func upstream(list []*nameserver) (all []netip.AddrPort) {
	for _, s := range list {
		_, address := parse.Transport(s.text)
		if ap, err := netip.ParseAddrPort(address); err == nil {
			all = append(all, netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port()))
		}
	}
	return all
}

// text is the list for people.
func (n *nameservers) text() string {
	var all []string
	for _, s := range n.now() {
		all = append(all, s.text)
	}
	return strings.Join(all, " ")
}
