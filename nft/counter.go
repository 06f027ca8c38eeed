package nft

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// A counter is one with a name. It goes on counting over reloads, when rules are made
// anew, and over the end of the process.
type counter struct{ name, comment string }

const objectUserData = 8 // NFTA_OBJ_USERDATA (Linux 5.10; earlier ones take no notice)

// compile returns the message that makes the counter, if it is not there.
func (c *counter) compile(table *nftables.Table) ([]netlink.Message, error) {
	msgs, err := compose(func(conn *nftables.Conn) error { conn.AddObj(c.object(table)); return nil })
	if err != nil {
		return nil, err
	}
	comment := userdata.AppendString(nil, userdata.TypeComment, fit(c.comment))
	msgs[0].Data = appendAttribute(msgs[0].Data, objectUserData, comment)
	return msgs, nil
}

func (c *counter) object(table *nftables.Table) nftables.Obj {
	return &nftables.NamedObj{Table: table, Name: c.name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}}
}

// counters reads all counters with names that stand in a table. (google/nftables v0.3.0
// fails where there is an object of a type that it does not know.)
func (s *socket) counters(table string) (map[string]backend.Count, error) {
	counts := map[string]backend.Count{}
	attrs := appendString(nil, unix.NFTA_OBJ_TABLE, table)
	attrs = appendUint32(attrs, unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
	err := s.request(unix.NFT_MSG_GETOBJ, unix.NLM_F_DUMP, unix.NFPROTO_INET, attrs, func(data []byte) bool {
		var name, in string
		var typ uint32
		var count backend.Count
		for attr, value := range attributes(data) {
			switch {
			case attr == unix.NFTA_OBJ_TABLE:
				in = cString(value)
			case attr == unix.NFTA_OBJ_NAME:
				name = cString(value)
			case attr == unix.NFTA_OBJ_TYPE && len(value) == 4:
				typ = binary.BigEndian.Uint32(value)
			case attr == unix.NFTA_OBJ_DATA:
				count = parseCount(value)
			}
		}
		if in == table && typ == unix.NFT_OBJECT_COUNTER {
			counts[name] = count
		}
		return true
	})
	return counts, err
}

// parseCount reads what a counter holds.
func parseCount(data []byte) (c backend.Count) {
	for typ, value := range attributes(data) {
		switch {
		case typ == unix.NFTA_COUNTER_PACKETS && len(value) == 8:
			c.Packets = binary.BigEndian.Uint64(value)
		case typ == unix.NFTA_COUNTER_BYTES && len(value) == 8:
			c.Bytes = binary.BigEndian.Uint64(value)
		}
	}
	return c
}
