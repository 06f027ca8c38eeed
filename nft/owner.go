package nft

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

// A table may belong to a netlink socket (Linux 5.12): the kernel lets nobody
// else change it, and `nft flush ruleset` passes it by. With persist (6.9) it
// outlives its owner, as an orphan: anybody may change it then, or claim it. Both
// or none: without persist the end of the process would open everything.
const (
	tableOwner   = 2 // NFT_TABLE_F_OWNER
	tablePersist = 4 // NFT_TABLE_F_PERSIST
	tableOwned   = tableOwner | tablePersist

	tableHandleAttr = 4 // NFTA_TABLE_HANDLE
	tableOwnerAttr  = 7 // NFTA_TABLE_OWNER
)

// settle decides how what is present becomes the ruleset: whether it is kept, with
// its grants, or replaced, and the flags of the table. A table that has never had
// an owner cannot be given one. It is replaced if that loses no grants, as with a
// boot-time ruleset, and else goes on without.
func (w *writer) settle(rs ruleset, p present) (keep bool, flags uint32) {
	keep = p.exists && rs.adoptable(p)
	persists := p.flags&tablePersist != 0
	if w.ownership == 0 || keep && p.hasGrants() && !persists {
		return keep, 0
	}
	return keep && persists, w.ownership
}

// newTable returns the message that creates the table, claims it, or wakes it up.
// google/nftables v0.3.0 sends no flags but 0.
func newTable(name string, flags uint32) netlink.Message {
	data := []byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}
	data = appendString(data, unix.NFTA_TABLE_NAME, name)
	return netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE, Flags: netlink.Request | netlink.Create},
		Data:   appendUint32(data, unix.NFTA_TABLE_FLAGS, flags),
	}
}

// flagsOf returns a table's flags, which google/nftables v0.3.0 reads in the wrong
// byte order.
func flagsOf(t *nftables.Table) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, t.Flags))
}

// knowsNoOwners reports whether the kernel has refused a table's flags for what
// they are (EINVAL before Linux 5.12).
func knowsNoOwners(err error, m *netlink.Message) bool {
	return m != nil && m.Header.Type&0xff == unix.NFT_MSG_NEWTABLE &&
		(errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL))
}

// mostCarried is how many grants come back in one transaction with the rules. It
// takes 5 ms, and the send buffer of a container has room for it.
const mostCarried = 4000

// carry adds grants that are to be restored to the batch, and returns them.
func (w *writer) carry(rs ruleset) []expiry.Ended[backend.Key] {
	now := time.Now()
	w.restore = slices.DeleteFunc(w.restore, func(e expiry.Ended[backend.Key]) bool { return e.Until.Sub(now) <= tickOfKernel })
	carried := w.restore[:min(len(w.restore), mostCarried)]
	w.plan.reset()
	for _, e := range carried {
		w.plan.add(e.Key, e.Until.Sub(now))
	}
	for _, set := range w.plan.touched {
		w.batch.addElements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, rs.table, rs.grants[set], w.plan.changes[set].additions)
	}
	return carried
}

// carriedOver enters grants that have come back with the rules.
func (w *writer) carriedOver(grants []expiry.Ended[backend.Key]) {
	for i := range grants {
		e := &grants[i]
		if w.inForce.Restore(*e) {
			w.live.count(&e.Key, 1)
		}
	}
	w.restore = w.restore[len(grants):]
	w.events.Live(w.live.v4, w.live.v6)
}

// lookAround notices that somebody has flushed the ruleset, and our table has
// stood it: of those without an owner none is left.
func (w *writer) lookAround() {
	var free []uint64
	if err := w.socket.request(unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP, unix.NFPROTO_UNSPEC, nil, func(data []byte) bool {
		var handle uint64
		has := false
		for typ, value := range attributes(data) {
			switch {
			case typ == tableOwnerAttr:
				has = true
			case typ == tableHandleAttr && len(value) == 8:
				handle = binary.BigEndian.Uint64(value)
			}
		}
		if !has {
			free = append(free, handle)
		}
		return true
	}); err != nil {
		return // another time
	}
	if w.owned && len(w.free) > 0 && allGone(w.free, free) {
		w.events.Withstood()
	}
	w.free = free
}

func allGone(before, now []uint64) bool {
	return !slices.ContainsFunc(before, func(h uint64) bool { return slices.Contains(now, h) })
}
