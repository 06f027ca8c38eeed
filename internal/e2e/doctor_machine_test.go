package e2e

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/internal/netlab"
)

// through has another program run the doctor.
func (p *patient) through(name string, args ...string) []string {
	p.Helper()
	cmd := p.guard.Command(name, append(args, guardctlBinary(p.T), "--socket", p.socket, "doctor", "--json", "--root", p.root)...)
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		p.Fatal(err)
	}
	var found []string
	for _, f := range p.findings(cmd.Output()) {
		found = append(found, f.Level+": "+f.Check+": "+f.Text)
	}
	return found
}

// A kernel that says that it is old.
func TestDoctorOfAnOldKernel(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.serve("nft-both")
	found := p.through("setarch", "--uname-2.6")
	if !slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, "failure: kernel: it is Linux 2.6.") }) {
		t.Errorf("found: %q", found)
	}
}

// Without cgroups of version 2, which matters where services are told apart.
func TestDoctorWithoutCgroups(t *testing.T) {
	for options, want := range map[string]string{"scope application": "warning: cgroups: services are told apart by their users only", "scope application uid": "", "scope client": ""} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t)
			p.serve("nft-both", options)
			found := p.through("unshare", "--mount", "--propagation", "private", "sh", "-c", `umount -l -a -t cgroup2 && exec "$0" "$@"`)
			found = slices.DeleteFunc(found, func(f string) bool { return strings.Contains(f, ": kernel: ") })
			if want == "" && len(found) > 0 || want != "" && (len(found) != 1 || !strings.HasPrefix(found[0], want)) {
				t.Errorf("found: %q, want %q", found, want)
			}
		})
	}
}

// The old iptables is at work.
func TestDoctorOfOldIptables(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.serve("nft-both")
	var made error
	p.must(p.guard.Do(func() error {
		made = makeOldFilter()
		return nil
	}))
	if made != nil {
		t.Skipf("this kernel has none: %v", made)
	}
	p.wantFound("warning: other firewalls: the old iptables has a table filter")
}

// makeOldFilter does what "iptables-legacy -L" does: the kernel makes the table for who asks for it.
func makeOldFilter() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const getInfo = 64 // IPT_SO_GET_INFO
	var info [84]byte  // struct ipt_getinfo
	copy(info[:], "filter")
	size := uint32(len(info))
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_IP, getInfo, uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
		return errno
	}
	return nil
}

// Somebody else takes the table, and keeps it.
func TestDoctorOfRulesNotInForce(t *testing.T) {
	if !netlab.Kernel(6, 9) {
		t.Skip("tables with owners need Linux 6.9")
	}
	t.Parallel()
	p := newPatient(t)
	p.noOwner()
	p.serve("nft-both")
	thief := p.steal()
	defer func() { _ = unix.Close(thief) }()
	client := p.asks(p.socket)
	p.eventually("the guard has noticed", func() bool {
		s, err := client.Status(context.Background())
		return err == nil && !s.Enforcing
	})
	found, code := p.found(netlab.As{})
	if len(found) == 0 || !strings.HasPrefix(found[0], "failure: guard: its rules are not in force") || code != exitNo {
		t.Errorf("found: %q, and it ended with %d", found, code)
	}
}

// A client tries more at once than can be listed.
func TestDoctorOfPacketsThatAreNotListed(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.serve("nft-gateway")
	client := p.asks(p.socket)
	conn, err := p.client.ListenPacket("udp4", "192.168.50.2:0")
	p.must(err)
	defer conn.Close()
	sent := 0
	p.eventually("the list is full", func() bool {
		for range 1 << 15 {
			to := netip.AddrFrom4([4]byte{198, 19, byte(sent >> 8), byte(sent)})
			_, _ = conn.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, uint16(9+sent>>16)))) // it is told of refusals
			sent++
		}
		s, err := client.Status(context.Background())
		return err == nil && len(s.Hooks) == 1 && s.Hooks[0].Unlisted.Packets > 0
	})
	p.wantFound("warning: guard: what it forwards: more was denied at once than can be listed: ")
}
