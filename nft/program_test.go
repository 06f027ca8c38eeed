package nft

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// programEnv makes the test binary a program that sends packets, so that they can
// come from another user or cgroup: "reach" or "send", a network and an address.
const programEnv = "NFT_TEST_PROGRAM"

func program() int {
	arg := strings.Fields(os.Getenv(programEnv))
	if arg[0] == "send" {
		fmt.Println(send(arg[1], arg[2], os.Stdin))
		return 0
	}
	dial := func(network, addr string) (net.Conn, error) {
		return net.DialTimeout(network, addr, patienceOf(arg[0] == "reach"))
	}
	if err := reach(dial, arg[1], arg[2]); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// reach says something to an echo server and hears it again.
func reach(dial func(network, addr string) (net.Conn, error), network, addr string) error {
	conn, err := dial(network, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	return echo(conn)
}

// patienceOf is how long a connection may take that should come about, or should
// not: TCP over IPv6 looks at a refusal after a second only.
func patienceOf(want bool) time.Duration {
	if want {
		return 5 * time.Second
	}
	return 200 * time.Millisecond
}

func echo(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

// send sends datagrams to whom they bore, as fast as it can, until stop ends. It
// returns how many, and how many the firewall has refused.
func send(network, addr string, stop io.Reader) (sent, refused int) {
	conn, err := net.Dial(network, addr)
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	done := make(chan struct{})
	go func() { _, _ = io.ReadAll(stop); close(done) }()
	for {
		select {
		case <-done:
			return sent, refused
		default:
		}
		for range 50 {
			if _, err := conn.Write([]byte("x")); err != nil {
				refused++
			}
			sent++
		}
	}
}

// A runner is who runs a program.
type runner struct {
	uid    uint32
	cgroup string // its directory; "" is ours
}

// noCgroup is the directory of those that cannot be made.
const noCgroup = "none"

// exists reports whether there can be such a runner: an ordinary user's tests do without.
func (r runner) exists(t *testing.T) bool {
	t.Helper()
	if !isUser(r.uid) || r.cgroup == noCgroup {
		t.Logf("without user %d in cgroup %q", r.uid, r.cgroup)
		return false
	}
	return true
}

func (r runner) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{programEnv + "=" + strings.Join(args, " "), "GORACE=atexit_sleep_ms=0"} // which is 1 s
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if int(r.uid) != os.Geteuid() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: r.uid}
	}
	if r.cgroup != "" {
		dir, err := os.Open(r.cgroup)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dir.Close() })
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	return cmd
}

// isUser reports whether we can be this user: in the namespace of an ordinary one,
// there is no other.
func isUser(uid uint32) bool {
	var first, outside, n uint32
	text, _ := os.ReadFile("/proc/self/uid_map")
	_, err := fmt.Sscan(string(text), &first, &outside, &n)
	return err == nil && uid >= first && uid-first < n
}

// reaches fails the test unless the program reaches an address, or does not.
func (r runner) reaches(t *testing.T, want bool, network string, addrs ...string) {
	t.Helper()
	if !r.exists(t) {
		return
	}
	how := "try"
	if want {
		how = "reach"
	}
	for _, addr := range addrs {
		out, err := r.command(t, how, network, addr).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if reached := err == nil; reached != want {
			t.Errorf("user %d in cgroup %q to %s over %s: %v: %s", r.uid, r.cgroup, addr, network, reached, out)
		}
	}
}

// whileSending does something while the program sends to an address, and fails the
// test if anything of it is refused.
func (r runner) whileSending(t *testing.T, addr string, do func()) {
	t.Helper()
	if !r.exists(t) {
		return
	}
	cmd := r.command(t, "send", "udp", addr)
	stop, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	do()
	stop.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	var sent, refused int
	if _, err := fmt.Sscan(out.String(), &sent, &refused); err != nil || sent == 0 || refused > 0 {
		t.Errorf("%s: %d sent, %d refused (%v): %s", addr, sent, refused, err, out.String())
	}
	t.Logf("%s: %d sent", addr, sent)
}

// cgroup makes a cgroup (version 2), with all above it. Where it cannot, it invents one.
func cgroup(t *testing.T, path string) (dir string, c backend.Cgroup) {
	t.Helper()
	path = filepath.Join(fmt.Sprint("nft-test-", os.Getpid()), path)
	parts := strings.Split(path, "/")
	c = backend.Cgroup{Path: "/" + path, ID: 1<<40 + uint64(len(path)), Level: len(parts)}
	root := cgroupMount(t)
	dir = filepath.Join(root, path)
	for i := range parts {
		at := filepath.Join(append([]string{root}, parts[:i+1]...)...)
		if err := os.Mkdir(at, 0o755); err == nil {
			t.Cleanup(func() { _ = os.Remove(at) })
		} else if !errors.Is(err, os.ErrExist) {
			t.Log("cgroups cannot be made: ", err)
			return noCgroup, c
		}
	}
	c.ID = inode(t, dir)
	return dir, c
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		t.Fatal(err)
	}
	return s.Ino
}

func cgroupMount(t *testing.T) string {
	t.Helper()
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		mount, kind, _ := strings.Cut(lines.Text(), " - ")
		if strings.HasPrefix(kind, "cgroup2 ") {
			return strings.Fields(mount)[4]
		}
	}
	return "/dev/null" // where none can be made
}
