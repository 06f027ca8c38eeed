package nft

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// A standing rule is what tells one that stands in the kernel from all others. (Reading
// whole rules is not for google/nftables v0.3.0, which does not understand all of ours.)
type standing struct {
	handle  uint64 // never given twice
	counter string // as nft prints it; "" without one
}

// rulesOf reads the rules of a table, by chain and in order.
func (s *socket) rulesOf(table string) (map[string][]standing, error) {
	rules := map[string][]standing{}
	attrs := appendString(nil, unix.NFTA_RULE_TABLE, table)
	err := s.request(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, unix.NFPROTO_INET, attrs, func(data []byte) bool {
		var r standing
		var chain, of string
		for typ, value := range attributes(data) {
			switch {
			case typ == unix.NFTA_RULE_TABLE:
				of = cString(value)
			case typ == unix.NFTA_RULE_CHAIN:
				chain = cString(value)
			case typ == unix.NFTA_RULE_HANDLE && len(value) == 8:
				r.handle = binary.BigEndian.Uint64(value)
			case typ == unix.NFTA_RULE_EXPRESSIONS:
				for _, e := range attributes(value) {
					if c := counted(e); c != "" {
						r.counter = c
					}
				}
			}
		}
		if of == table { // kernels before 4.15 hand over all tables
			rules[chain] = append(rules[chain], r)
		}
		return true
	})
	return rules, err
}

// counted is what a counter has counted; "" for other expressions.
func counted(e []byte) string {
	isCounter := false
	var packets, octets uint64
	for typ, value := range attributes(e) {
		switch typ {
		case unix.NFTA_EXPR_NAME:
			isCounter = cString(value) == "counter"
		case unix.NFTA_EXPR_DATA:
			for typ, value := range attributes(value) {
				switch {
				case len(value) != 8:
				case typ == unix.NFTA_COUNTER_PACKETS:
					packets = binary.BigEndian.Uint64(value)
				case typ == unix.NFTA_COUNTER_BYTES:
					octets = binary.BigEndian.Uint64(value)
				}
			}
		}
	}
	if !isCounter {
		return ""
	}
	return fmt.Sprintf("counter packets %d bytes %d", packets, octets)
}
