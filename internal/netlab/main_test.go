package netlab

import (
	"fmt"
	"os"
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"
)

// testProgramEnv makes the test binary one of the programs below, for tests of what cannot be seen
// from inside: the processes around Isolate.
const testProgramEnv = "NETLAB_TEST_PROGRAM"

func TestMain(m *testing.M) {
	program, ok := map[string]func() int{
		"exit":   func() int { return 7 },
		"signal": untilSIGUSR1,
		"die":    func() int { _ = unix.Kill(os.Getpid(), unix.SIGKILL); select {} },

		"hidden cgroups":    withoutCgroups,
		"read-only cgroups": withReadOnlyCgroups,
		"die with cgroup":   dieWithCgroup,
	}[os.Getenv(testProgramEnv)]
	if !ok {
		program = m.Run
	}
	Main(program)
}

func untilSIGUSR1() int {
	got := make(chan os.Signal, 1)
	signal.Notify(got, unix.SIGUSR1)
	fmt.Println(os.Getpid())
	<-got
	return 9
}

// must stops a test at the first step of its set-up which fails.
func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func newLab(t testing.TB) *Lab {
	t.Helper()
	lab, err := New()
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	return lab
}

func newTestHost(t testing.TB, lab *Lab, name string) *Host {
	t.Helper()
	h, err := lab.Host(name)
	must(t, err)
	return h
}

// newPair makes two hosts with one link: a has 192.0.2.1 and 2001:db8::1, b has .2 and ::2.
func newPair(t testing.TB, lab *Lab) (a, b *Host) {
	t.Helper()
	a, b = newTestHost(t, lab, "a"), newTestHost(t, lab, "b")
	must(t,
		lab.Link(a, "toB", b, "toA"),
		a.Addr("toB", "192.0.2.1/24"), a.Addr("toB", "2001:db8::1/64"),
		b.Addr("toA", "192.0.2.2/24"), b.Addr("toA", "2001:db8::2/64"),
	)
	return a, b
}

// newRouted makes client - router - server, where the server is all of 198.18.0.0/15 and 2001:db8:f::/48.
func newRouted(t testing.TB, lab *Lab) (client, router, server *Host) {
	t.Helper()
	client, router, server = newTestHost(t, lab, "client"), newTestHost(t, lab, "router"), newTestHost(t, lab, "server")
	must(t,
		lab.Link(client, "up", router, "lan"),
		lab.Link(router, "wan", server, "eth0"),
		client.Addr("up", "10.0.0.2/24"), client.Addr("up", "fd00::2/64"),
		router.Addr("lan", "10.0.0.1/24"), router.Addr("lan", "fd00::1/64"),
		router.Addr("wan", "192.0.2.1/24"), router.Addr("wan", "2001:db8::1/64"),
		server.Addr("eth0", "192.0.2.2/24"), server.Addr("eth0", "2001:db8::2/64"),
		client.Route("0.0.0.0/0", "10.0.0.1"), client.Route("::/0", "fd00::1"),
		router.Route("198.18.0.0/15", "192.0.2.2"), router.Route("2001:db8:f::/48", "2001:db8::2"),
		server.Route("0.0.0.0/0", "192.0.2.1"), server.Route("::/0", "2001:db8::1"),
		server.Local("198.18.0.0/15"), server.Local("2001:db8:f::/48"),
		router.Forward(),
	)
	return client, router, server
}
