package nft

import "github.com/destination-guard/coredns-ip-destination-guard/backend"

// What is refused of routed traffic is counted with what is refused of other traffic on its
// hook.

func (p *path) hook() backend.Hook {
	if p.forward {
		return backend.Forward
	}
	return backend.Output
}

// atOnce is how is refused what leads nowhere.
var atOnce = []rule{
	{"what leads nowhere", []match{isTCP}, rejectReset},
	{"what leads nowhere", nil, rejectNoPort},
}

// judged is what becomes of packets to mapped addresses that are not granted.
func (p *path) judged(chain string) *denial {
	d := newDenial(*p.rules, p.hook())
	d.chain, d.how = chain, append([]rule{unanswered}, atOnce...)
	return &d
}

// atOnce is what becomes of packets that lead nowhere whatever is granted: also in audit.
func (p *path) atOnce() *denial {
	d := newDenial(*p.rules, p.hook())
	d.chain, d.how, d.audit = p.name(chainAtOnce), atOnce, false
	return &d
}

// stray is what becomes of packets that must leave by their route only and have another way: also
// in audit.
func stray(r *backend.Rules, hook backend.Hook, chain string, how verdict) *denial {
	d := newDenial(*r, hook)
	d.chain, d.bound, d.audit = chain, true, false
	d.how = []rule{unanswered, {"has no other way", nil, how}}
	return &d
}

func (p *path) refuseAtOnce(comment string, conditions ...match) []rule {
	return []rule{{comment, conditions, p.atOnce().verdict()}}
}

// optionsChains are the one for packets that may have a route laid down, and that which refuses
// these. In audit, packets that begin connections have been counted before their translation.
func (p *path) optionsChains(o opening) []chain {
	d := newDenial(*p.rules, p.hook())
	if len(p.rules.Routes) == 0 || !p.swift(&o) || !d.audit {
		return []chain{o.optionsChain()}
	}
	c := chain{p.name("laid-down"), nil, append(translated(p.rules, "has been counted", goBack, ctState("new")), rule{laidDown, nil, o.refuse})}
	o.refuse = goTo(c.name)
	return []chain{c, o.optionsChain()}
}

// guards reports whether anybody's packets are guarded on the path.
func (p *path) guards() bool { return [backend.Hooks]bool{p.rules.Local, p.rules.Gateway}[p.hook()] }

// nowhere refuses what others send to a pool, under these conditions. They are not guarded, so
// that is neither counted nor in audit.
func (p *path) nowhere(conditions ...match) (rules []rule) {
	for _, pool := range pools(p.rules.Routes) {
		rules = append(rules, rule{"no mapped address is open to others", append([]match{destinationIn(pool)}, conditions...), goTo(chainNowhere)})
	}
	return rules
}

// nowhereChains are the chain for that, and those of paths that are not guarded.
func nowhereChains(r *backend.Rules) []chain {
	if r.Local && r.Gateway && len(r.Interfaces) == 0 {
		return nil // all are guarded
	}
	chains := []chain{{name: chainNowhere, rules: append([]rule{unanswered}, atOnce...)}}
	for _, p := range []*path{{rules: r}, {rules: r, forward: true}} {
		if !p.guards() {
			chains = append(chains, p.translate())
		}
	}
	return chains
}
