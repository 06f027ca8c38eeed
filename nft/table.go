package nft

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/destination-guard/coredns-ip-destination-guard/backend"
	"github.com/destination-guard/coredns-ip-destination-guard/expiry"
)

// check lets the kernel try the rules without carrying them out.
func (w *writer) check(r backend.Rules) error {
	if err := w.connect(); err != nil {
		return err
	}
	_, _, err := w.commitRules(newRuleset(r), r.Table, true)
	return err
}

// open puts rules in force. Where others are in force already, it goes by a
// bridge: first the old rules with all that either list allows, then the new
// ones. In one transaction the kernel (6.18) shows new rules, and each set's new
// ranges, at moments of their own, and in between would refuse what is allowed
// before and after.
func (w *writer) open(r backend.Rules) error {
	switch {
	case w.opened && r.Table != w.rules.Table:
		return fmt.Errorf("the table cannot be renamed from %q to %q while running", w.rules.Table, r.Table)
	case !w.opened || w.broken != nil:
		return w.arm(r)
	}
	old, bridge := w.rules, w.rules
	bridge.Allowed = slices.Concat(old.Allowed, r.Allowed)
	bridge.AllowedLocal = slices.Concat(old.AllowedLocal, r.AllowedLocal)
	bridge.AllowedGateway = slices.Concat(old.AllowedGateway, r.AllowedGateway)
	err := w.arm(bridge)
	if err == nil {
		err = w.arm(r)
	}
	if err != nil {
		w.rules = old
		w.reopen() // nothing is left half changed
	}
	return err
}

// arm puts rules in force in one transaction, and again until it is certain that
// they are what stands in the kernel.
func (w *writer) arm(r backend.Rules) error {
	if err := w.connect(); err != nil {
		return err
	}
	rs, first := newRuleset(r), !w.opened
	w.forget(r)
	var stood present
	lost := false
	for try, end := 0, time.Now().Add(patience); ; try++ {
		before, adopted, err := w.commitRules(rs, r.Table, false)
		if err != nil {
			return err
		}
		if try == 0 {
			stood = before
		}
		lost = lost || !adopted
		w.rules, w.opened, w.broken = r, true, nil
		if w.remember() || time.Now().After(end) {
			break
		}
	}
	switch {
	case first && !lost && stood.hasGrants(r):
		go w.adopt(r)
	case lost || !w.holdsGrants():
		w.putBackGrants()
	}
	w.events.Enforcing(true)
	return nil
}

// forget takes grants out of the table whose sets the rules do not have any more,
// before they are gone.
func (w *writer) forget(r backend.Rules) {
	var stay [sets]bool
	for _, s := range grantSetsFor(r) {
		stay[s.index()] = true
	}
	if stay == w.declared {
		return
	}
	for k := range w.inForce.All() {
		if !stay[setOf(k)] && w.inForce.Delete(k) {
			w.count(k, -1)
		}
	}
	gone := func(e expiry.Ended[backend.Key]) bool { return !stay[setOf(e.Key)] }
	w.due, w.restore = slices.DeleteFunc(w.due, gone), slices.DeleteFunc(w.restore, gone)
	w.declared = stay
}

// commitRules turns what stands in the kernel into rs. It returns what stood
// there, and whether its grants live on.
func (w *writer) commitRules(rs ruleset, table string, dryRun bool) (before present, adopted bool, err error) {
	for end := time.Now().Add(patience); ; {
		last := time.Now().After(end)
		before, err = w.tryRules(rs, table, dryRun, last)
		if !errors.Is(err, unix.ERESTART) || last { // somebody else came between
			break
		}
	}
	if err != nil {
		return before, false, fmt.Errorf("table inet %s: %w", table, err)
	}
	return before, before.exists && rs.adoptable(before), nil
}

// patience is how long rules are tried again while others keep changing theirs,
// as container engines do when they start.
const patience = time.Second

// tryRules fails with ERESTART if somebody else changes a ruleset meanwhile,
// unless it is forced: then what was read may be out of date.
func (w *writer) tryRules(rs ruleset, table string, dryRun, forced bool) (before present, err error) {
	generation, err := w.socket.generation()
	if err != nil {
		return before, fmt.Errorf("reading: %w", explain(err))
	}
	before, err = readTable(table)
	switch {
	case errors.Is(err, unix.ENOENT): // deleted between two requests
		return before, unix.ERESTART
	case err != nil:
		return before, fmt.Errorf("reading: %w", explain(err))
	case forced:
		generation = 0
	}
	msgs, err := rs.compile(before, !w.opened)
	if err != nil {
		return before, err
	}
	w.batch.begin(generation)
	w.batch.add(msgs)
	w.batch.dryRun = dryRun
	first := w.socket.seq
	if err := w.socket.transact(&w.batch); err != nil {
		return before, fmt.Errorf("%s: %w", blame(err, msgs, first), explain(err))
	}
	if !dryRun {
		w.generation = next(generation)
	}
	return before, nil
}

// blame says which of the messages, numbered after first, the kernel refused.
func blame(err error, msgs []netlink.Message, first uint32) string {
	var refused *kernelError
	if errors.As(err, &refused) {
		if i := int(refused.seq-first) - 1; i >= 0 && i < len(msgs) {
			for typ, value := range attributes(msgs[i].Data[4:]) {
				switch uint16(msgs[i].Header.Type) & 0xff {
				case unix.NFT_MSG_NEWRULE:
					if typ == unix.NFTA_RULE_USERDATA && len(value) > 2 {
						return fmt.Sprintf("the rule for %q", cString(value[2:]))
					}
				case unix.NFT_MSG_NEWSET, unix.NFT_MSG_NEWSETELEM:
					if typ == unix.NFTA_SET_NAME {
						return "set " + cString(value)
					}
				case unix.NFT_MSG_NEWCHAIN:
					if typ == unix.NFTA_CHAIN_NAME {
						return "chain " + cString(value)
					}
				}
			}
		}
	}
	return "the transaction was refused"
}

// remember notes what stands in the kernel now, to notice when somebody else
// changes it, and reports whether it is what we have just put there: if the
// generation is another already, it may be somebody else's.
func (w *writer) remember() bool {
	p, err := readTable(w.rules.Table)
	if err == nil {
		var g uint32
		if g, err = w.socket.generation(); err == nil && g == w.generation {
			w.installed, w.suspect = &p, false
			return true
		}
	}
	w.installed, w.suspect = nil, true
	return false
}

// close ends the writer, and removes the table if so wanted.
func (w *writer) close(leave backend.Leave) error {
	close(w.stop)
	opened := w.opened
	w.opened = false
	defer func() {
		if w.socket != nil {
			w.socket.close()
		}
	}()
	w.events.Enforcing(false)
	if leave == backend.Keep || !opened {
		return nil
	}
	if err := w.connect(); err != nil {
		return err
	}
	msgs, err := deleteTable(w.rules.Table)
	if err != nil {
		return err
	}
	w.batch.begin(0)
	w.batch.add(msgs)
	if err := w.socket.transact(&w.batch); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing table inet %s: %w", w.rules.Table, explain(err))
	}
	return nil
}

func (w *writer) connect() (err error) {
	if w.socket == nil {
		w.socket, err = openSocket()
	}
	return explain(err)
}

// readTimeout bounds the wait for an answer of the kernel that got lost.
const readTimeout = 2 * time.Second

// readTable reads the outline of our table, and of no other.
func readTable(name string) (present, error) {
	p := present{sets: map[string]*nftables.Set{}, chains: map[string]*nftables.Chain{}, rules: map[string][]uint64{}, fixed: map[string][]string{}}
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return c.SetDeadline(time.Now().Add(readTimeout))
	}))
	if err != nil {
		return p, err
	}
	defer func() { _ = c.CloseLasting() }()
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return p, err
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == name })
	if i < 0 {
		return p, nil
	}
	p.exists = true
	table := tables[i]
	p.flags = table.Flags
	sets, err := c.GetSets(table)
	if err != nil {
		return p, err
	}
	for _, s := range sets {
		p.sets[s.Name] = s
		if s.HasTimeout || s.Anonymous {
			continue // they change by themselves, or never
		}
		elements, err := c.GetSetElements(s)
		if err != nil {
			return p, err
		}
		var all []string
		for _, e := range elements {
			all = append(all, fmt.Sprint(e.Key, e.IntervalEnd))
		}
		slices.Sort(all)
		p.fixed[s.Name] = all
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return p, err
	}
	for _, ch := range chains {
		if ch.Table.Name != name {
			continue
		}
		p.chains[ch.Name] = ch
		rules, err := c.GetRules(table, ch)
		if err != nil {
			return p, err
		}
		for _, r := range rules {
			p.rules[ch.Name] = append(p.rules[ch.Name], r.Handle)
		}
	}
	return p, nil
}

// same reports whether p and q have the same sets, chains and rules, and the
// same in sets that only we change. The kernel gives no handle twice, so a rule
// that was replaced differs.
func (p present) same(q present) bool {
	return p.exists == q.exists && p.flags == q.flags && sameKeys(p.sets, q.sets) &&
		maps.EqualFunc(p.chains, q.chains, func(a, b *nftables.Chain) bool { return drops(a) == drops(b) }) &&
		maps.EqualFunc(p.rules, q.rules, slices.Equal[[]uint64]) &&
		maps.EqualFunc(p.fixed, q.fixed, slices.Equal[[]string])
}

// drops reports whether the chain's policy is to drop.
func drops(c *nftables.Chain) bool {
	return c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
}

func sameKeys[V any](a, b map[string]V) bool {
	return maps.EqualFunc(a, b, func(V, V) bool { return true })
}
