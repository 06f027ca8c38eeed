package hostdns

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
)

// maxFile and maxLine bound what is read: a DHCP server has its say in it, and so has who forges one.
const (
	maxFile = 64 << 10
	maxLine = 1 << 10
)

// File is what a resolv.conf says.
type File struct {
	// Nameservers that questions can be sent to, in their order, each once, at most Slots. Sentinels are none.
	Nameservers []netip.Addr

	// Sentinels that it names instead.
	Sentinels []netip.Addr

	// Stub says that it names systemd-resolved, which asks others.
	Stub bool

	// Settings are its other lines that mean something, as they are: domain, search, sortlist, options.
	Settings []string
}

// Read reads a resolv.conf. Whatever is at its place, it does not wait, and reads no more than maxFile.
func Read(path string) (*File, error) {
	text, err := Text(path)
	if err != nil {
		return nil, err
	}
	return Parse(text), nil
}

// Text is what a small file says. What is no file, but a pipe or a device, is an error.
func Text(path string) (string, error) {
	// Looked at before it is opened: to open some devices does something.
	if info, err := os.Stat(path); err != nil {
		return "", err
	} else if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no file but %v", path, info.Mode().Type())
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no file but %v", path, info.Mode().Type())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if len(text) > maxFile {
		return "", fmt.Errorf("%s has more than %d bytes, which is no resolv.conf", path, maxFile)
	}
	return string(text), nil
}

// Parse reads the text of a resolv.conf as glibc does: a keyword begins the line. What it does not understand it
// passes over, since one bad line must not cost the machine its nameservers.
func Parse(text string) *File {
	f := new(File)
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \t\r\n")
		if len(line) > maxLine {
			continue
		}
		keyword, value, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
		switch keyword {
		case "nameserver":
			value = strings.TrimLeft(value, " ")
			if end := strings.IndexAny(value, "#; "); end >= 0 {
				value = value[:end]
			}
			if addr, err := netip.ParseAddr(value); err == nil && printable(addr.Zone()) {
				f.add(addr)
			}
		case "domain", "search", "sortlist", "options":
			if printable(line) {
				f.Settings = append(f.Settings, line)
			}
		}
	}
	return f
}

// The addresses that systemd-resolved listens on. (The second does not synthesise.)
var stubs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 53}), netip.AddrFrom4([4]byte{127, 0, 0, 54})}

func (f *File) add(addr netip.Addr) {
	addr = addr.Unmap()
	switch {
	case IsSentinel(addr):
		if !slices.Contains(f.Sentinels, addr) && len(f.Sentinels) < 2*Slots {
			f.Sentinels = append(f.Sentinels, addr)
		}
	case slices.Contains(stubs, addr):
		f.Stub = true
	case Askable(addr) && !slices.Contains(f.Nameservers, addr) && len(f.Nameservers) < Slots:
		f.Nameservers = append(f.Nameservers, addr)
	}
}

// Askable reports whether an address can be a nameserver's: one machine's, and no sentinel's, or a question would go
// round in circles.
func Askable(addr netip.Addr) bool {
	return addr.IsValid() && !addr.IsUnspecified() && !addr.IsMulticast() && !IsSentinel(addr) &&
		addr != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func printable(line string) bool {
	return !strings.ContainsFunc(line, func(r rune) bool { return (r < ' ' || r > '~') && r != '\t' })
}

// String is a resolv.conf that says the same, without sentinels.
func (f *File) String() string {
	var b strings.Builder
	for _, addr := range f.Nameservers {
		fmt.Fprintf(&b, "nameserver %v\n", addr)
	}
	for _, line := range f.Settings {
		b.WriteString(line + "\n")
	}
	return b.String()
}
