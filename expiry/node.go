package expiry

// node is a key as readers see it.
type node[K comparable] struct {
	entry entry
	same  uint32 // the next one in the index
	key   K
}

// place is where a node stands for the writer.
type place struct {
	next   uint32 // in its slot of the wheel, or in the list of unused ones
	before uint32 // in its slot of the wheel; of the first, the complement of the slot's number
	in     [kinds]membership
}

// nodes are numbered from 1. They come in blocks, so that few are made that are
// not in use, and none ever moves: a reader that has a number from an index may
// look, while the writer makes more. Blocks are not given back but by clearing.
type nodes[K comparable] struct {
	blocks [maxBlocks]*block[K]
	made   uint32
	unused uint32 // head of a list
}

// block keeps apart what readers look at and what the writer changes when it renews
// others.
type block[K comparable] struct {
	nodes  [perBlock]node[K]
	places [perBlock]place
}

const (
	perBlock  = 1024
	maxBlocks = 1 << 14
)

// Most is how many keys a table has room for: 16 million.
const Most = (maxBlocks - 1) * perBlock

func (n *nodes[K]) at(i uint32) *node[K] { return &n.blocks[i/perBlock%maxBlocks].nodes[i%perBlock] }

func (n *nodes[K]) place(i uint32) *place {
	return &n.blocks[i/perBlock%maxBlocks].places[i%perBlock]
}

// take returns a node that is not in use.
func (n *nodes[K]) take() uint32 {
	if i := n.unused; i != 0 {
		n.unused = n.place(i).next
		return i
	}
	n.made++
	if b := &n.blocks[n.made/perBlock]; *b == nil { // the first has no number 0
		*b = new(block[K])
	}
	return n.made
}

// release gives back a node that no reader can find any more.
func (n *nodes[K]) release(i uint32) {
	*n.at(i) = node[K]{}
	n.place(i).next, n.unused = n.unused, i
}
