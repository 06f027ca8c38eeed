package route

import "sync"

// pages say who has an address. Addresses are given in sequence, so those that stand
// side by side are kept side by side: that needs a sixth of what a map does.
type pages struct {
	mu sync.RWMutex
	at map[[15]byte]*page
}

// page is for addresses that differ in the last octet only.
type page [256]*entry

func (p *pages) get(a ip) *entry {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if at := p.at[[15]byte(a[:15])]; at != nil {
		return at[a[15]]
	}
	return nil
}

func (p *pages) set(a ip, e *entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.at[[15]byte(a[:15])]
	if at == nil {
		at = new(page)
		p.at[[15]byte(a[:15])] = at
	}
	at[a[15]] = e
}

// each visits the addresses that somebody has had.
func (p *pages) each(visit func(ip, *entry)) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for prefix, at := range p.at {
		a := ip(append(prefix[:], 0))
		for i, e := range at {
			if e != nil {
				a[15] = byte(i)
				visit(a, e)
			}
		}
	}
}
