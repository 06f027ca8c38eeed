package nft

import (
	"errors"
	"fmt"
	"os"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// refusedMessage returns which of the messages, numbered after first, the kernel
// refused, or nil.
func refusedMessage(err error, msgs []netlink.Message, first uint32) *netlink.Message {
	var refused *kernelError
	if errors.As(err, &refused) {
		if i := int(refused.seq-first) - 1; i >= 0 && i < len(msgs) {
			return &msgs[i]
		}
	}
	return nil
}

// blame says what a message was about that the kernel refused.
func blame(m *netlink.Message) string {
	if m != nil {
		for typ, value := range attributes(m.Data[4:]) {
			switch uint16(m.Header.Type) & 0xff {
			case unix.NFT_MSG_NEWRULE:
				if typ == unix.NFTA_RULE_USERDATA && len(value) > 2 {
					return fmt.Sprintf("the rule for %q", cString(value[2:]))
				}
			case unix.NFT_MSG_NEWSET, unix.NFT_MSG_NEWSETELEM:
				if typ == unix.NFTA_SET_NAME {
					return "set " + cString(value)
				}
			case unix.NFT_MSG_NEWCHAIN:
				if typ == unix.NFTA_CHAIN_NAME {
					return "chain " + cString(value)
				}
			}
		}
	}
	return "the transaction was refused"
}

// explain turns errnos into what an administrator can act on.
func explain(err error) error {
	var taken *takenError
	switch {
	case errors.As(err, &taken):
		return err
	case errors.Is(err, unix.EPERM):
		return &backend.PermissionError{Need: "CAP_NET_ADMIN", Err: err}
	case errors.Is(err, unix.ENFILE):
		return backend.ErrFull
	case errors.Is(err, unix.ERESTART):
		return fmt.Errorf("other programs change their firewall rules without a pause: %w", err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT):
		return &unsupportedError{err, "Linux 5.10 or later with nf_tables, nft_ct, nft_reject_inet"}
	case errors.Is(err, os.ErrNotExist):
		return &missingError{err}
	}
	return err
}

// needs are what of a ruleset some kernels cannot do, and what of the kernel it takes:
// expressions of rules, and types of chains.
var needs = map[string]string{
	"socket": "nft_socket (Linux 5.13 or later with CONFIG_NFT_SOCKET)",
	"fib":    "nft_fib_inet (CONFIG_NFT_FIB_INET)",
	"redir":  "nft_redir (CONFIG_NFT_REDIR)",
	"nat":    "nft_chain_nat (CONFIG_NFT_NAT)",
	"masq":   "nft_masq (CONFIG_NFT_MASQ)",
}

// explainAbout is explain for the refusal of one message of the rules, if it is known
// which.
func explainAbout(m *netlink.Message, err error) error {
	if m == nil || !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EOPNOTSUPP) {
		return explain(err)
	}
	for _, name := range madeOf(m) {
		if need, known := needs[name]; known {
			return &unsupportedError{err, need}
		}
	}
	return explain(err)
}

// madeOf returns the expressions of a rule, or the type of a chain.
func madeOf(m *netlink.Message) (names []string) {
	for typ, value := range attributes(m.Data[4:]) {
		switch what := uint16(m.Header.Type) & 0xff; {
		case what == unix.NFT_MSG_NEWCHAIN && typ == unix.NFTA_CHAIN_TYPE:
			names = append(names, cString(value))
		case what == unix.NFT_MSG_NEWRULE && typ == unix.NFTA_RULE_EXPRESSIONS:
			for _, e := range attributes(value) {
				for typ, value := range attributes(e) {
					if typ == unix.NFTA_EXPR_NAME {
						names = append(names, cString(value))
					}
				}
			}
		}
	}
	return names
}

// unsupportedError means a kernel without what the rules need.
type unsupportedError struct {
	err  error
	need string
}

func (e *unsupportedError) Error() string {
	return fmt.Sprintf("this kernel cannot do it: %v (%s is needed)", e.err, e.need)
}
func (e *unsupportedError) Unwrap() error { return e.err }

// missingError means that something the rules refer to is not there.
type missingError struct{ err error }

func (e *missingError) Error() string {
	return e.err.Error() + ": the table is gone, or the kernel lacks a module (nf_tables, nft_ct, nft_reject_inet)"
}
func (e *missingError) Unwrap() error { return e.err }

// takenError means that the table belongs to somebody else's socket.
type takenError struct{ err error }

func (e *takenError) Error() string {
	return "the table belongs to another process, most likely a second CoreDNS (nft list table shows which): " + e.err.Error()
}
func (e *takenError) Unwrap() error { return e.err }
