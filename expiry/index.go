package expiry

// index leads from the hashes of keys to nodes: lists of about one node each, linked
// by same. It grows by one list at a time (linear hashing), so that no key that is
// added waits for all the others to be moved, and there is no room to spare, which in
// a map would be half of it.
type index struct {
	heads []uint32 // of the lists; never none
	mask  uint32   // of what counts of a hash: numbers all lists, and some that are to come
	count int      // of nodes
}

// head is where the list of a hash begins. A list that is still to come has its
// nodes in one that is there.
func (x *index) head(hash uint32) *uint32 {
	h := hash & x.mask
	if h >= uint32(len(x.heads)) {
		h &= x.mask >> 1
	}
	return &x.heads[h]
}

// linkLocked puts a node into the list of its hash. The caller holds the shard's lock.
func (t *Table[K]) linkLocked(s *shard, i, hash uint32) {
	x := &s.index
	if x.count++; x.count > len(x.heads) {
		t.growLocked(x)
	}
	head := x.head(hash)
	t.nodes.at(i).same, *head = *head, i
}

// unlinkLocked takes a node out of the list of its hash.
func (t *Table[K]) unlinkLocked(s *shard, i, hash uint32) {
	s.index.count--
	link := s.index.head(hash)
	for *link != i {
		link = &t.nodes.at(*link).same
	}
	*link = t.nodes.at(i).same
}

// growLocked makes the list that comes next.
func (t *Table[K]) growLocked(x *index) {
	next := uint32(len(x.heads))
	if next > x.mask {
		x.mask = x.mask<<1 | 1
	}
	x.heads = append(x.heads, 0)
	for link := &x.heads[next&(x.mask>>1)]; *link != 0; {
		i := *link
		n := t.nodes.at(i)
		if _, hash := t.shard(&n.key); hash&x.mask != next {
			link = &n.same
			continue
		}
		*link = n.same
		n.same, x.heads[next] = x.heads[next], i
	}
}
