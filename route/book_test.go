package route

import (
	"context"
	"net/netip"
	"path/filepath"
	"testing"
	"time"
)

func TestSmoke(t *testing.T) {
	path := filepath.Join(t.TempDir(), "book")
	r := newRouter()
	b, err := Open(path, r, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	rt := &Route{Name: "a", Pools: []netip.Prefix{netip.MustParsePrefix("100.96.0.0/11")}, Slots: 4}
	reals := []netip.Addr{netip.MustParseAddr("1.1.1.1"), netip.MustParseAddr("1.1.1.2")}
	for range 3 {
		ans, err := b.Assign(context.Background(), rt, "Example.org.", 0, reals, time.Second)
		t.Log(ans, err, r.mapped)
	}
	b.Close()
	b, err = Open(path, r, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	t.Log(b.Assign(context.Background(), rt, "Example.org.", 0, reals, time.Second))
	t.Log(b.Len())
	_, err = Open(path, r, time.Now)
	t.Log(err)
	t.Log(b.NameOf(netip.MustParseAddr("100.96.0.1")))
}
