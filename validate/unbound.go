//go:build unbound

package validate

/*
#cgo LDFLAGS: -lunbound
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <unbound.h>

// done is a result that has not been fetched yet. Callbacks come inside of ub_process, in the
// one thread that calls it, so the list needs no lock.
struct done {
	struct done *next;
	uintptr_t id;
	int err;
	struct ub_result *result;
};

struct results { struct done *first, **last; };

// The list that ub_process of this thread fills.
static __thread struct results *filling;

static void note(void *id, int err, struct ub_result *result) {
	struct done *d = malloc(sizeof *d);
	if (!d || !filling) {
		free(d);
		ub_resolve_free(result);
		return;
	}
	d->next = NULL, d->id = (uintptr_t)id, d->err = err, d->result = result;
	*filling->last = d;
	filling->last = &d->next;
}

// await waits until there is something at fd, or at stop: then it returns 0.
static int await(int fd, int stop) {
	struct pollfd p[2] = {{fd, POLLIN, 0}, {stop, POLLIN, 0}};
	while (poll(p, 2, -1) < 0)
		;
	return !p[1].revents;
}

static struct done *process(struct ub_ctx *ctx, int *err) {
	struct results all = {NULL, &all.first};
	filling = &all;
	*err = ub_process(ctx);
	filling = NULL;
	return all.first;
}

static int resolve(struct ub_ctx *ctx, const char *name, int type, int class, uintptr_t id) {
	return ub_resolve_async(ctx, name, type, class, (void *)id, note, NULL);
}
*/
import "C"

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"unsafe"

	"github.com/miekg/dns"
)

// Built says whether this program can validate.
const Built = true

// Validator asks libunbound, which works in a thread of its own: whoever waits for one
// answer keeps no thread, and nobody else, from theirs.
type Validator struct {
	ctx       *C.struct_ub_ctx
	forwarder *forwarder
	trusted   []string // zones of anchors
	stopping  *os.File // closing its other end ends collect
	stop      *os.File
	collected sync.WaitGroup

	mu      sync.Mutex
	waiting map[uintptr]place
	held    map[uint64]int // places, by asker
	last    uintptr
	closed  bool
}

// A place is that of one answer that waits.
type place struct {
	result chan<- *Answer
	asker  uint64
}

// New starts a validator.
func New(config Config) (v *Validator, err error) {
	v = &Validator{waiting: map[uintptr]place{}, held: map[uint64]int{}}
	defer func() {
		if err != nil {
			v.Close()
			v = nil
		}
	}()
	anchors, err := seed(config)
	if err != nil {
		return v, err
	}
	if v.forwarder, err = forward(config.Upstream); err != nil {
		return v, fmt.Errorf("libunbound's way to the upstream: %w", err)
	}
	if v.ctx = C.ub_ctx_create(); v.ctx == nil {
		return v, fmt.Errorf("libunbound: out of memory")
	}
	if err = v.set(options(config)); err != nil {
		return v, err
	}
	for _, a := range anchors {
		v.trusted = append(v.trusted, a.zone)
		if err = v.call("anchor "+a.file, func(file *C.char) C.int { return C.ub_ctx_add_ta_autr(v.ctx, file) }, a.file); err != nil {
			return v, err
		}
	}
	at := v.forwarder.addr()
	if err = v.call("upstream", func(addr *C.char) C.int { return C.ub_ctx_set_fwd(v.ctx, addr) }, fmt.Sprintf("%v@%d", at.Addr(), at.Port())); err != nil {
		return v, err
	}
	if err = problem("threads", C.ub_ctx_async(v.ctx, 1)); err != nil {
		return v, err
	}
	// What follows fixes the configuration. Unbound answers for these zones by itself, NXDOMAIN
	// mostly, unless told not to; they are the upstream's business.
	for _, zone := range []string{"test.", "onion.", "invalid.", "home.arpa."} {
		if err = v.call("zone "+zone, func(zone *C.char) C.int { return C.ub_ctx_zone_remove(v.ctx, zone) }, zone); err != nil {
			return v, err
		}
	}
	if v.stop, v.stopping, err = os.Pipe(); err != nil {
		return v, err
	}
	v.collected.Go(v.collect)
	return v, nil
}

func (v *Validator) set(options [][2]string) error {
	for _, o := range options {
		name := C.CString(o[0])
		err := v.call(o[0]+" "+o[1], func(value *C.char) C.int { return C.ub_ctx_set_option(v.ctx, name, value) }, o[1])
		C.free(unsafe.Pointer(name))
		if err != nil {
			return err
		}
	}
	return nil
}

// call calls a function of libunbound with a text.
func (v *Validator) call(what string, f func(*C.char) C.int, text string) error {
	c := C.CString(text)
	defer C.free(unsafe.Pointer(c))
	return problem(what, f(c))
}

func problem(what string, code C.int) error {
	if code == 0 {
		return nil
	}
	return fmt.Errorf("libunbound: %s: %s", what, C.GoString(C.ub_strerror(code)))
}

// Validate returns when the answer to a question is known and has been judged.
//
// asker is a hash of who asks. None has more places to wait in than there are still free: who asks for what never
// comes has half of them at most, the next one a quarter.
func (v *Validator) Validate(ctx context.Context, q dns.Question, asker uint64) (*Answer, error) {
	result := make(chan *Answer, 1)
	v.mu.Lock()
	switch {
	case v.closed:
		v.mu.Unlock()
		return nil, ErrClosed
	case v.held[asker] >= maxWaiting-len(v.waiting):
		v.mu.Unlock()
		return nil, ErrBusy
	}
	v.last++
	id := v.last
	v.waiting[id] = place{result, asker}
	v.held[asker]++
	name := C.CString(q.Name)
	err := problem("ask", C.resolve(v.ctx, name, C.int(q.Qtype), C.int(q.Qclass), C.uintptr_t(id)))
	C.free(unsafe.Pointer(name))
	if err != nil {
		v.leaveLocked(id)
	}
	v.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case a := <-result:
		return a, nil
	case <-ctx.Done():
		// It stays in waiting: libunbound works on, and that is bounded too.
		return nil, context.Cause(ctx)
	}
}

// collect hands out results as they come.
func (v *Validator) collect() {
	fd := C.ub_fd(v.ctx)
	for C.await(fd, C.int(v.stop.Fd())) != 0 {
		var code C.int
		for d := C.process(v.ctx, &code); d != nil; {
			v.hand(uintptr(d.id), v.answer(d.err, d.result))
			next := d.next
			C.ub_resolve_free(d.result)
			C.free(unsafe.Pointer(d))
			d = next
		}
	}
}

func (v *Validator) hand(id uintptr, a *Answer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p, waits := v.waiting[id]; waits {
		p.result <- a
		v.leaveLocked(id)
	}
}

// leaveLocked gives back a place.
func (v *Validator) leaveLocked(id uintptr) {
	asker := v.waiting[id].asker
	delete(v.waiting, id)
	if v.held[asker]--; v.held[asker] == 0 {
		delete(v.held, asker)
	}
}

// answer reads a result. Bogus ones come with data and rcode 0: they are judged first.
func (v *Validator) answer(code C.int, r *C.struct_ub_result) *Answer {
	if err := problem("answer", code); err != nil {
		return unknown(err.Error())
	}
	switch {
	case r == nil:
		return unknown("libunbound has no answer")
	case r.bogus != 0:
		why := readable(C.GoString(r.why_bogus))
		return &Answer{Verdict: Bogus, Why: why, Code: codeOf(why)}
	case r.rcode != dns.RcodeSuccess && r.rcode != dns.RcodeNameError, r.answer_packet == nil:
		return unknown("the upstream has no answer to it, or to a question for its keys (" + dns.RcodeToString[int(r.rcode)] + ")")
	}
	m := new(dns.Msg)
	if err := m.Unpack(C.GoBytes(r.answer_packet, r.answer_len)); err != nil {
		return unknown("libunbound's answer cannot be read: " + err.Error())
	}
	if r.secure != 0 {
		return &Answer{Verdict: Secure, Msg: m}
	}
	// What no anchor is for looks like what is proven to be unsigned.
	for _, name := range namesIn(m) {
		if !v.trusts(name) {
			return unknown("no trust anchor is for " + name)
		}
	}
	return &Answer{Verdict: Insecure, Msg: m}
}

// trusts reports whether there is an anchor at a name or above it.
func (v *Validator) trusts(name string) bool {
	for _, zone := range v.trusted {
		if dns.IsSubDomain(zone, strings.ToLower(name)) {
			return true
		}
	}
	return false
}

// Close ends the validator. Who waits for it hears that it is closed.
func (v *Validator) Close() {
	v.mu.Lock()
	was := v.closed
	v.closed = true
	v.mu.Unlock()
	if was {
		return
	}
	if v.stopping != nil {
		_ = v.stopping.Close()
		v.collected.Wait()
		_ = v.stop.Close()
	}
	if v.forwarder != nil {
		v.forwarder.close() // before libunbound, or that would wait for it
	}
	if v.ctx != nil {
		C.ub_ctx_delete(v.ctx)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, p := range v.waiting {
		p.result <- unknown(ErrClosed.Error())
		v.leaveLocked(id)
	}
}
