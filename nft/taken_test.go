package nft

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/backend/backendtest"
)

// seize takes the table away from everybody but the socket that it returns. (A
// table with an owner, Linux 5.12, ends with its socket.)
func seize(t *testing.T, table string) *socket {
	t.Helper()
	s, err := openSocket()
	if err != nil {
		t.Fatal(err)
	}
	var b batch
	b.begin(0)
	b.open(unix.NFT_MSG_DELTABLE, 0)
	b.buf = appendString(b.buf, unix.NFTA_TABLE_NAME, table)
	b.closeMessage(b.last)
	b.open(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
	b.buf = appendString(b.buf, unix.NFTA_TABLE_NAME, table)
	b.buf = appendUint32(b.buf, unix.NFTA_TABLE_FLAGS, tableOwner)
	b.closeMessage(b.last)
	if err := s.transact(&b); err != nil {
		s.close()
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
			t.Skip("tables have no owners before Linux 5.12")
		}
		t.Fatal(err)
	}
	return s
}

// Somebody who makes the table his own is told of, and as soon as we may again,
// everything is back.
func TestTableTakenAndRegained(t *testing.T) {
	g := openOwnerless(t)
	until := time.Now().Add(time.Hour)
	g.grant(until, 0, 10)
	thief := seize(t, backendtest.Rules().Table)
	t.Cleanup(thief.close)

	grants := backendtest.Grants(until, backendtest.Addrs(10, 10)...)
	var err error
	backendtest.Eventually(t, "a grant is refused", func() bool {
		err = g.Grant(t.Context(), grants, time.Minute)
		return err != nil
	})
	var taken *takenError
	if !errors.As(err, &taken) {
		t.Errorf("got %v, want that the table is somebody else's", err)
	}
	if g.relied(0, 20) || g.enforcing() {
		t.Errorf("something is relied upon still: %v", g.lines)
	}
	if err := g.Check(backendtest.Rules()); !errors.As(err, &taken) {
		t.Errorf("check: %v", err)
	}

	thief.close()
	backendtest.Eventually(t, "it works again", func() bool { return g.Grant(t.Context(), grants, time.Minute) == nil })
	if !g.enforcing() {
		t.Error(g.lines)
	}
	backendtest.Eventually(t, "all grants are back", func() bool { return g.keeps(until, 0, 20) })
	g.accounts()
}

// A backend that may not remove its table says so, and ends all the same.
func TestTableTakenAtClose(t *testing.T) {
	g := openOwnerless(t)
	thief := seize(t, backendtest.Rules().Table)
	t.Cleanup(thief.close)
	var taken *takenError
	if err := g.Close(backend.Remove); !errors.As(err, &taken) {
		t.Errorf("close: %v", err)
	}
	if err := g.Grant(t.Context(), nil, time.Minute); !errors.Is(err, backend.ErrClosed) {
		t.Errorf("grant: %v", err)
	}
}
