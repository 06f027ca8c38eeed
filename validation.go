package ipdestinationguard

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	dnsrequest "github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	"golang.org/x/time/rate"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/names"
	"github.com/destination-guard/coredns-ip-destination-guard/validate"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// A validator finds out whether an answer is signed as it has to be.
type validator interface {
	Validate(ctx context.Context, q dns.Question, asker uint64) (*validate.Answer, error)
	Close()
}

// newValidator starts one.
var newValidator = func(c validate.Config) (validator, error) {
	v, err := validate.New(c)
	if err != nil {
		return nil, err // and no validator that is nil and is not
	}
	return v, nil
}

// maxValidation is how long an answer waits: by then, clients have gone.
const maxValidation = 8 * time.Second

// validation is what a server block has validated here.
type validation struct {
	zones, negative []string
	names, except   *names.List // the same
	config          validate.Config
	place           string

	mu     sync.Mutex
	v      validator // nil until somebody asks
	askers askers    // nil if they cannot be told
	closed bool

	bad rate.Sometimes // for the log
}

// concerns reports whether answers for a name are validated.
func (v *validation) concerns(name string) bool { return v.names.Match(name) && !v.except.Match(name) }

// open returns the validator, which the first question starts: a generation of server
// blocks that never serves, since a later plugin fails, is never told that it is over.
func (v *validation) open() (validator, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.closed:
		return nil, validate.ErrClosed
	case v.v != nil:
		return v.v, nil
	}
	var err error
	if v.askers, err = thisHost.askers(); err != nil {
		log.Warningf("%s: other programs of this machine can ask the upstream by the port that validation asks at: %v", v.place, err)
	}
	config := v.config
	config.Upstream = v.ours(config.Upstream)
	v.v, err = newValidator(config)
	return v.v, err
}

// ours answers only what this very CoreDNS asks, as far as it can be told from other
// programs: the upstream is open to nobody else.
func (v *validation) ours(upstream dns.Handler) dns.Handler {
	me, _ := self()
	return dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		if v.askers != nil {
			asker, err := v.askers.Find(w.RemoteAddr().Network(), addrPortOf(w.RemoteAddr()), addrPortOf(w.LocalAddr()))
			if err != nil || asker.UID != me.User || me.Cgroup.ID != 0 && asker.Cgroup != me.Cgroup.ID {
				_ = w.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeRefused))
				return
			}
		}
		upstream.ServeDNS(w, r)
	})
}

func (v *validation) close() {
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	if v.v != nil {
		v.v.Close()
	}
	if v.askers != nil {
		v.askers.Close()
	}
}

// judge returns the answer to a question as it has been validated.
func (v *validation) judge(ctx context.Context, q dns.Question, asker uint64) (*validate.Answer, error) {
	validator, err := v.open()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, maxValidation, errors.New("it took too long to validate the answer"))
	defer cancel()
	return validator.Validate(ctx, q, asker)
}

var errNotOfInternet = &unproven{dns.ExtendedErrorCodeDNSSECIndeterminate,
	"there are addresses in the answer to what is no question of the internet, and only those are validated here"}

// validated returns the answer that may be given instead of m: the very one that was
// validated, since another could come by another way; or why there is none.
func (q *query) validated(v *validation, m *dns.Msg, scope backend.Scope) (*dns.Msg, error) {
	// The rest of an extended code is not seen by clients without EDNS, nor when it is looked
	// at what the answer opens.
	if rcode := m.Rcode & 0xf; rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError {
		return m, nil
	}
	if q.request.Opcode != dns.OpcodeQuery || q.question.Qclass != dns.ClassINET {
		if targets, err := readAnswer(q.question, m, nil); err != nil || len(targets) > 0 {
			return nil, errNotOfInternet
		}
		return m, nil
	}
	a, err := v.judge(q.Context, q.question, q.asker(scope))
	if err != nil {
		return nil, &unproven{dns.ExtendedErrorCodeDNSSECIndeterminate, err.Error()}
	}
	answersValidated.WithLabelValues(a.Verdict.String()).Inc()
	switch {
	case a.Verdict == validate.Secure, a.Verdict == validate.Insecure && !q.handler.policy.dnssec.signed:
		return q.as(a), nil
	case a.Verdict == validate.Insecure:
		return nil, &unproven{dns.ExtendedErrorCodeRRSIGsMissing, "nobody has signed this name, and only signed ones may be used here (require signed)"}
	}
	v.bad.Do(func() {
		advice, name := "", why.Plain(q.question.Name)
		if a.Verdict == validate.Bogus {
			advice = fmt.Sprintf(". If the name is your own network's, dnssec validate (%s) needs the line: negative_anchor %s (or its zone)", v.place, name)
		}
		log.Warningf("The answer for %s is withheld: %s: %q%s", name, a.Verdict, a.Why, advice)
	})
	return nil, &unproven{a.Code, a.Verdict.String() + ": " + a.Why}
}

// asker is a hash of who may have a share of what there is for all, as of the places that validation has: also where
// grants are everybody's, clients are told apart. This machine has 0, unless its applications are told apart.
func (q *query) asker(scope backend.Scope) uint64 {
	g := q.handler.guard
	if scope.Holder.Many() || scope.Holder == nobody.Holder {
		if addr, local := g.asker(g.settings.Load(), q, q.request); !local {
			scope = g.remote(addr)
		}
	}
	return g.share(scope)
}

// as is a validated answer as the client gets it.
func (q *query) as(a *validate.Answer) *dns.Msg {
	out := new(dns.Msg).SetReply(q.request)
	out.Question = []dns.Question{q.question}
	out.Rcode, out.RecursionAvailable = a.Msg.Rcode, true
	out.AuthenticatedData = a.Verdict == validate.Secure
	unwanted := func(dns.RR) bool { return false }
	if !wantsSignatures(q.request) && q.question.Qtype != dns.TypeANY {
		unwanted = func(rr dns.RR) bool {
			switch rrtype := rr.Header().Rrtype; rrtype {
			case dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNSEC3:
				return rrtype != q.question.Qtype
			}
			return false
		}
	}
	out.Answer = without(a.Msg.Answer, unwanted)
	out.Ns = without(a.Msg.Ns, unwanted)
	out.Extra = without(a.Msg.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT || unwanted(rr) })
	return out
}

// check finds whom the validator asks, and makes the files with the keys that it trusts.
func (v *validation) check(block *dnsserver.Config) error {
	if v == nil {
		return nil
	}
	var upstream plugin.Handler
	for _, name := range []string{"grpc", "forward"} {
		if h := block.Handler(name); h != nil {
			upstream = h
		}
	}
	if upstream == nil {
		return fmt.Errorf("%s: dnssec validate: there is nobody to ask for keys: it takes a line forward . (or grpc .) in this server block", v.place)
	}
	v.config.Upstream = asking(upstream)
	if err := v.config.Prepare(); err != nil {
		return fmt.Errorf("%s: dnssec validate: %w", v.place, err)
	}
	return nil
}

// asking is the plugin that asks the upstream, as the validator sees it: past the cache,
// as that has its own, and past acl and rewrite, as its questions are no client's. It
// answers always: silence would count against the upstream for minutes.
func asking(upstream plugin.Handler) dns.Handler {
	return dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		w = dnsrequest.NewScrubWriter(r, w)
		rcode, err := upstream.ServeDNS(context.WithValue(context.Background(), dnsserver.LoopKey{}, 0), w, r)
		if !plugin.ClientWrite(rcode) {
			log.Debugf("Asking for what validation takes, %s %s: %v", r.Question[0].Name, dns.TypeToString[r.Question[0].Qtype], err)
			_ = w.WriteMsg(new(dns.Msg).SetRcode(r, rcode))
		}
	})
}

// addValidation reads `dnssec validate [ZONE...] [{ anchor FILE; negative_anchor ZONE...;
// state FOLDER }]`.
func (p *parser) addValidation(zones []string) error {
	if !validate.Built {
		return p.Errf("dnssec validate: %v", validate.ErrNotBuilt)
	}
	if p.policy.validation != nil {
		return p.Errf("dnssec validate is given twice, first at %s: name all zones in one line", p.policy.validation.place)
	}
	v := &validation{place: here(p.Controller), bad: rate.Sometimes{First: 1, Interval: logInterval}}
	p.policy.validation = v
	if len(zones) == 0 {
		zones = []string{"."}
	}
	if err := p.addZones("dnssec validate", &v.zones, zones); err != nil {
		return err
	}
	if !p.NextArg() { // nothing but { can be left
		return p.settleValidation()
	}
	for p.Next() && p.Val() != "}" {
		option := p.Val()
		args := p.RemainingArgs()
		if len(args) == 0 {
			return p.Errf("dnssec validate: %s needs a value", option)
		}
		switch option {
		case "anchor":
			for _, file := range args {
				v.config.Anchors = append(v.config.Anchors, p.rooted(file))
			}
			if err := validate.Anchors(v.config.Anchors); err != nil {
				return p.Errf("dnssec validate: anchor: %v", err)
			}
		case "negative_anchor":
			if err := p.addZones("negative_anchor", &v.negative, args); err != nil {
				return err
			}
		case "state":
			folder, err := p.only("state", args)
			if err != nil {
				return err
			}
			v.config.State = p.rooted(folder)
		default:
			return p.unknown(option, inValidation, v.place)
		}
	}
	return p.settleValidation()
}

func (p *parser) settleValidation() (err error) {
	v := p.policy.validation
	if v.names, err = namesIn(v.zones); err != nil {
		return p.Errf("dnssec validate: %v", err)
	}
	if v.except, err = namesIn(v.negative); err != nil {
		return p.Errf("negative_anchor: %v", err)
	}
	v.config.Negative = v.negative
	if v.config.State == "" {
		// As systemd has it for StateDirectory=; else where CoreDNS was started.
		v.config.State, _, _ = strings.Cut(os.Getenv("STATE_DIRECTORY"), ":")
	}
	return nil
}
