package route

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

func TestFresh(t *testing.T) {
	d := newDesk(t)
	if db := d.store.db; db.NoSync || db.NoGrowSync {
		t.Error("what it has told may not be on the disk") // as no crash of this process shows
	}
	id := d.ID()
	if !slices.Equal(d.Strange(), everything) || len(id) != 16 || strings.Trim(id, "0123456789abcdef") != "" {
		t.Errorf("strange %v, id %q", d.Strange(), id)
	}
	d.restart()
	if !slices.Equal(d.Strange(), everything) {
		t.Error("it is not fresh any more, though nobody has said so")
	}
	for range 2 {
		if err := d.Settled(); err != nil || d.Strange() != nil {
			t.Error(d.Strange(), err)
		}
	}
	d.restart()
	if d.Strange() != nil || d.ID() != id {
		t.Errorf("after a restart: strange %v, id %q instead of %q", d.Strange(), d.ID(), id)
	}
	other := newDesk(t)
	if other.ID() == id {
		t.Error("two books have the same id")
	}
	if left, _ := filepath.Glob(d.path + "*"); len(left) != 1 {
		t.Errorf("files: %v", left)
	}
	if info, err := os.Stat(d.path); err != nil || info.Mode() != 0o600 {
		t.Error(info.Mode(), err)
	}
}

func TestOpenFails(t *testing.T) {
	open := func(path string) error {
		b, err := Open(path, newRouter(), time.Now)
		if err == nil {
			b.Close()
		}
		return err
	}
	d := newDesk(t)
	if err := open(d.path); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("%s is in use, by process %d (", d.path, os.Getpid())) {
		t.Errorf("while it is open: %v", err)
	}
	if err := open(filepath.Join(d.path+"-dir", "book")); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), d.path+"-dir") {
		t.Errorf("without its folder: %v", err)
	}
	if err := open(filepath.Dir(d.path)); err == nil {
		t.Error("a folder is a book")
	}

	d.taken(routed("r", 4, "10.0.0.0/8", "fd00::/64"), "a", 300, "192.0.2.1 192.0.2.2")
	d.restart()
	d.Book.Close()
	whole, err := os.ReadFile(d.path)
	if err != nil {
		t.Fatal(err)
	}
	had := files(t)
	sure := func(name string, file []byte) {
		t.Run(name, func(t *testing.T) {
			err := os.WriteFile(d.path, file, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			err = open(d.path)
			if !errors.Is(err, ErrCorrupt) || !strings.HasPrefix(err.Error(), d.path+": ") {
				t.Errorf("got %v, want %v", err, ErrCorrupt)
			}
			if now, err := os.ReadFile(d.path); err != nil || !bytes.Equal(now, file) {
				t.Errorf("the file has changed, or %v", err)
			}
			if now := files(t); now != had {
				t.Errorf("%d files are open, there were %d", now, had)
			}
		})
	}
	sure("empty", nil)
	sure("one byte", []byte{0})
	sure("something else", bytes.Repeat([]byte("something else\n"), 10_000))
	sure("zeros", make([]byte, len(whole)))
	for _, size := range []int{100, 4096, 8192, 8193, 3 * 4096, 4 * 4096, len(whole) / 2} {
		sure(fmt.Sprint("cut to ", size, " of ", len(whole)), whole[:size])
	}
	sure("another bolt file", func() []byte {
		path := filepath.Join(t.TempDir(), "other")
		db, err := bolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		db.Close()
		file, _ := os.ReadFile(path)
		return file
	}())
	for _, text := range []string{"r\x00a17", "r\x00a290"} {
		changed := bytes.ReplaceAll(whole, []byte(text), []byte(strings.ToUpper(text)))
		if bytes.Equal(changed, whole) {
			t.Fatalf("%q is not in the file", text)
		}
		sure(fmt.Sprintf("%q is another name", text), changed)
	}
}

// files counts the open files.
func files(t *testing.T) int {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// Whatever happens to the bytes of a file, it is opened as it was in all that matters, or
// not at all.
func TestDamagedFiles(t *testing.T) {
	d := newDesk(t)
	r := routed("r", 4, "10.0.0.0/8", "fd00::/64")
	d.Settled()
	d.taken(r, "a", 300, "192.0.2.1 192.0.2.2")
	d.tidy(long)
	d.Book.Close()
	whole, err := os.ReadFile(d.path)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	opened, refused := 0, 0
	for range 500 {
		file := bytes.Clone(whole)
		switch random.IntN(4) {
		case 0: // bits
			for range 1 + random.IntN(20) {
				file[random.IntN(len(file))] ^= 1 << random.IntN(8)
			}
		case 1: // a page of nothing
			clear(file[random.IntN(len(file)/4096)*4096:][:4096])
		case 2: // two pages exchanged
			a, b := file[random.IntN(len(file)/4096)*4096:][:4096], file[random.IntN(len(file)/4096)*4096:][:4096]
			was := bytes.Clone(a)
			copy(a, b)
			copy(b, was)
		case 3: // rubbish
			at := random.IntN(len(file))
			for i := range file[at:min(len(file), at+512)] {
				file[at+i] = byte(random.Uint32())
			}
		}
		if err := os.WriteFile(d.path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := Open(d.path, d.router, func() time.Time { return d.time })
		if err != nil {
			refused++
			continue
		}
		opened++
		d.Book = b
		if b.Strange() != nil {
			t.Fatal("a damaged file is taken for a new one")
		}
		for i := range 300 {
			a, err := b.Assign(context.Background(), r, fmt.Sprint("a", i), "", 0, addrs("192.0.2.1 192.0.2.2"), time.Minute)
			if err != nil || text(a.Mapped) != fmt.Sprintf("10.0.%d.%d 10.0.%d.%d", (2*i+1)/256, (2*i+1)%256, (2*i+2)/256, (2*i+2)%256) {
				t.Fatalf("a%d is %v, %v", i, a, err)
			}
		}
		b.Close()
	}
	t.Logf("%d opened, %d refused", opened, refused)
	if opened < 10 || refused < 100 {
		t.Errorf("%d opened, %d refused", opened, refused)
	}
}

// A record of how an address was used may be without the name that has the route, as books
// had it first; and it is damaged if that is longer than any name.
func TestRecordsOfUse(t *testing.T) {
	r := routed("r", 1, "10.0.0.0/8")
	for _, tt := range []struct {
		by     string
		opened bool
	}{{"", true}, {"b.org", true}, {strings.Repeat("b", maxKey+1), false}} {
		d := newDesk(t)
		d.ask(r, "a.org", "192.0.2.1")
		err := d.store.do(t.Context(), func(tx *bolt.Tx) error {
			return putUse(tx, 0, addrs("10.0.0.1")[0].As16(), d.time, addrs("192.0.2.1")[0].As16(), tt.by)
		})
		if err != nil {
			t.Fatal(err)
		}
		was := d.Book
		was.store.close() // and does not write its own
		again, err := Open(d.path, d.router, func() time.Time { return d.time })
		if (err == nil) != tt.opened || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("with %q: %v", tt.by, err)
		}
		if err == nil {
			d.Book = again
			d.want(d.entry("4r\x00a.org").by, tt.by)
		}
	}
}
