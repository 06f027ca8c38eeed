package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// rulesOf reads the handles of a table's rules, by chain and in order. None is given
// twice. (Reading whole rules is not for google/nftables v0.3.0, which does not understand
// all of ours.)
func (s *socket) rulesOf(table string) (map[string][]uint64, error) {
	handles := map[string][]uint64{}
	attrs := appendString(nil, unix.NFTA_RULE_TABLE, table)
	err := s.request(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, unix.NFPROTO_INET, attrs, func(data []byte) bool {
		var handle uint64
		var chain, of string
		for typ, value := range attributes(data) {
			switch {
			case typ == unix.NFTA_RULE_TABLE:
				of = cString(value)
			case typ == unix.NFTA_RULE_CHAIN:
				chain = cString(value)
			case typ == unix.NFTA_RULE_HANDLE && len(value) == 8:
				handle = binary.BigEndian.Uint64(value)
			}
		}
		if of == table { // kernels before 4.15 hand over all tables
			handles[chain] = append(handles[chain], handle)
		}
		return true
	})
	return handles, err
}
