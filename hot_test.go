package ipdestinationguard

import (
	"context"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// hotAnswer returns what gives an answer whose grants are in force.
func hotAnswer(tb testing.TB, records ...string) func() {
	question, answer := benchMessages(tb, records...)
	next := plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, _ *dns.Msg) (int, error) {
		return dns.RcodeSuccess, w.WriteMsg(answer)
	})
	now := time.Now() // and it stands still: later, the grant would be renewed
	g := newGuard(func(t *backend.InForce, _ backend.Observer) backend.Backend { return benchFirewall{inForce: t} }, alone, func() time.Time { return now })
	benchArm(g)
	h := &Handler{Next: next, guard: g, policy: &defaultPolicy}
	ctx := context.Background()
	serve := func() {
		if rcode, err := h.ServeDNS(ctx, benchWriter{}, question); rcode != dns.RcodeSuccess || err != nil {
			panic(err)
		}
	}
	serve()
	g.backend = nil // it is not asked any more
	return serve
}

// An answer has its share of a block of queries, and nothing else.
func TestHotAnswerAllocatesNothing(t *testing.T) {
	for _, a := range benchAnswers {
		if n := testing.AllocsPerRun(1000, hotAnswer(t, a.records...)); n > 0 {
			t.Errorf("%s: %v allocations", a.name, n)
		}
	}
}

// lastWriter is benchWriter, and keeps the last answer, for this machine's own question.
type lastWriter struct {
	benchWriter
	last **dns.Msg
}

func (w lastWriter) WriteMsg(m *dns.Msg) error { *w.last = m; return nil }

// A thread that may make no other system calls than the runtime's own, and is
// told so by the kernel, gives hot answers.
func TestHotAnswerMakesNoSystemCall(t *testing.T) {
	withoutSystemCalls(t, hotAnswer(t, benchAnswers[1].records...))
}

// Nor does an answer with mapped addresses.
func TestHotRoutedAnswerMakesNoSystemCall(t *testing.T) {
	now := time.Now()
	g, p := benchRouted(t, func() time.Time { return now }, "**.example.org")
	question, answer := benchMessages(t, benchAnswers[1].records...)
	var got *dns.Msg
	h := &Handler{guard: g, policy: p, Next: plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, _ *dns.Msg) (int, error) {
		return dns.RcodeSuccess, w.WriteMsg(answer)
	})}
	serve := func() {
		if rcode, err := h.ServeDNS(context.Background(), lastWriter{last: &got}, question); rcode != dns.RcodeSuccess || err != nil {
			panic(err)
		}
	}
	serve()
	if n := len(got.Answer); n != 4 || got.Answer[0].(*dns.A).A.String() != "100.96.0.1" {
		t.Fatalf("got\n%v", got)
	}
	withoutSystemCalls(t, serve)
}

func withoutSystemCalls(t *testing.T, serve func()) {
	failed := make(chan any)
	go func() {
		defer func() { failed <- recover() }()
		runtime.LockOSThread() // the thread ends with the goroutine
		refuseSystemCalls(t)
		if err := unix.Access("/", unix.R_OK); err != unix.EDOM {
			t.Errorf("system calls are not refused: %v", err)
		}
		for range 10_000 {
			serve()
		}
	}()
	if err := <-failed; err != nil {
		t.Error(err)
	}
}

// refuseSystemCalls has the kernel end the process if this thread makes a system
// call that the runtime does not make for itself; faccessat only fails, with EDOM.
func refuseSystemCalls(t *testing.T) {
	const number = 0 // offset in struct seccomp_data
	allowed := []uint32{
		unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MADVISE,
		unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_TGKILL, unix.SYS_GETPID,
		unix.SYS_CLONE, unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_EPOLL_PWAIT, unix.SYS_PRCTL,
	}
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number}}
	answer := func(call, action uint32) {
		filter = append(filter,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action})
	}
	answer(unix.SYS_FACCESSAT, unix.SECCOMP_RET_ERRNO|uint32(unix.EDOM))
	for _, call := range allowed {
		answer(call, unix.SECCOMP_RET_ALLOW)
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		t.Errorf("no filter for system calls: %v", err)
	}
}
