package hostdns

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestParse(t *testing.T) {
	long := "search " + strings.Repeat("a", maxLine)
	for _, c := range []struct {
		name, text string
		servers    string
		sentinels  string
		stub       bool
		settings   []string
	}{
		{name: "empty"},
		{name: "as DHCP writes it", text: "# by dhclient\ndomain lan\nsearch lan corp.example\nnameserver 10.0.0.1\nnameserver\t2001:db8::1\noptions edns0 trust-ad\n",
			servers: "10.0.0.1 2001:db8::1", settings: []string{"domain lan", "search lan corp.example", "options edns0 trust-ad"}},
		{name: "a zone", text: "nameserver fe80::1%eth0\n", servers: "fe80::1%eth0"},
		{name: "comments", text: "nameserver 10.0.0.1 # the router\nnameserver 10.0.0.2;x\n#nameserver 10.0.0.3\n;nameserver 10.0.0.4\n", servers: "10.0.0.1 10.0.0.2"},
		{name: "carriage returns and no end of line", text: "nameserver 10.0.0.1\r\nnameserver 10.0.0.2", servers: "10.0.0.1 10.0.0.2"},
		{name: "a keyword begins the line", text: " nameserver 10.0.0.1\nnameservers 10.0.0.2\nnameserver10.0.0.3\n"},
		{name: "twice", text: "nameserver 10.0.0.1\nnameserver 10.0.0.1\nnameserver ::ffff:10.0.0.1\n", servers: "10.0.0.1"},
		{name: "the stub of systemd-resolved", text: "nameserver 127.0.0.53\noptions edns0\n", stub: true, settings: []string{"options edns0"}},
		{name: "a resolver of the machine itself", text: "nameserver 127.0.0.1\nnameserver ::1\n", servers: "127.0.0.1 ::1"},
		{name: "sentinels are no nameservers", text: "nameserver 100.100.111.1\nnameserver 10.0.0.1\nnameserver fd00:2021:1111:8000:100:100:111:ff\n",
			servers: "10.0.0.1", sentinels: "100.100.111.1 fd00:2021:1111:8000:100:100:111:ff"},
		{name: "nor are those written as IPv6", text: "nameserver ::ffff:100.100.111.1\n", sentinels: "100.100.111.1"},
		{name: "addresses of nobody", text: "nameserver 0.0.0.0\nnameserver ::\nnameserver 255.255.255.255\nnameserver 224.0.0.251\nnameserver ff02::fb\n"},
		{name: "no addresses", text: "nameserver example.com\nnameserver\nnameserver 10.0.0.1/24\nnameserver 10.1\nnameserver ../../etc/shadow\nnameserver fe80::1%\x1b[2J\n"},
		{name: "more than an address", text: "nameserver   10.0.0.1 10.0.0.2\n", servers: "10.0.0.1"},
		{name: "more than there are slots", text: "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4\nnameserver 10.0.0.5\n" +
			"nameserver 10.0.0.6\nnameserver 10.0.0.7\nnameserver 10.0.0.8\nnameserver 10.0.0.9\n",
			servers: "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6 10.0.0.7 10.0.0.8"},
		{name: "what a terminal would obey", text: "search \x1b[2Jlan\nsearch l\x00an\noptions ndots:2\n", settings: []string{"options ndots:2"}},
		{name: "a long line", text: long + "\nnameserver 10.0.0.1\n", servers: "10.0.0.1"},
		{name: "no text at all", text: "\x7fELF\x00\x00nameserver 10.0.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := Parse(c.text)
			if got := words(f.Nameservers); got != c.servers {
				t.Errorf("nameservers %q, want %q", got, c.servers)
			}
			if got := words(f.Sentinels); got != c.sentinels {
				t.Errorf("sentinels %q, want %q", got, c.sentinels)
			}
			if f.Stub != c.stub || !slices.Equal(f.Settings, c.settings) {
				t.Errorf("stub %v, settings %q", f.Stub, f.Settings)
			}
			if again := Parse(f.String()); words(again.Nameservers) != c.servers || !slices.Equal(again.Settings, c.settings) {
				t.Errorf("it is not what it is written as: %q", f.String())
			}
		})
	}
}

func words(addrs []netip.Addr) string {
	var all []string
	for _, a := range addrs {
		all = append(all, a.String())
	}
	return strings.Join(all, " ")
}

// Whoever can put something at the place of a file must not make us wait or fill the memory.
func TestReadIsBounded(t *testing.T) {
	dir := t.TempDir()
	pipe, large, loop := filepath.Join(dir, "pipe"), filepath.Join(dir, "large"), filepath.Join(dir, "loop")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(large, []byte(strings.Repeat("nameserver 10.0.0.1\n", maxFile/20+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, large, loop, dir, "/dev/zero", "/dev/tty", filepath.Join(dir, "none")} {
		if _, err := Read(path); err == nil {
			t.Errorf("%s is read", path)
		}
	}
}

func TestAddresses(t *testing.T) {
	for network, want := range map[netip.Prefix][2]string{
		IPv4: {"100.100.111.1", "100.100.111.8"},
		IPv6: {"fd00:2021:1111:8000:100:100:111:1", "fd00:2021:1111:8000:100:100:111:8"},
	} {
		all := Addresses(network)
		if all[0].String() != want[0] || all[Slots-1].String() != want[1] {
			t.Errorf("%v: %v", network, all)
		}
		for _, a := range all {
			if !IsSentinel(a) || Askable(a) {
				t.Errorf("%v is no sentinel, or can be asked as a nameserver", a)
			}
		}
	}
	for _, other := range []string{"100.100.112.1", "100.100.110.255", "fd00:2021:1111:8000:100:100:110:1", "127.0.0.1", "::1"} {
		if IsSentinel(netip.MustParseAddr(other)) {
			t.Errorf("%s is a sentinel", other)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("nameserver 10.0.0.1\nsearch lan\n")
	f.Add("nameserver fe80::1%eth0 # x\noptions\tedns0")
	f.Fuzz(func(t *testing.T, text string) {
		file := Parse(text)
		if len(file.Nameservers) > Slots || len(file.Sentinels) > 2*Slots {
			t.Errorf("too many: %v", file)
		}
		for _, addr := range file.Nameservers {
			if !Askable(addr) {
				t.Errorf("%v cannot be asked", addr)
			}
		}
		if again := Parse(file.String()); words(again.Nameservers) != words(file.Nameservers) {
			t.Errorf("%q gives %q", text, file)
		}
	})
}
