package nft

// A packet whose sender has laid down its route goes elsewhere than it says: what looks at
// it sees the address of this machine, and so does connection tracking, which takes it for a
// part of whatever its sender talks about with this machine. So these are refused before
// anything is let through, live connections included.

const (
	laidDown     = "no route that the sender has laid down"
	chainOptions = "options-"
)

// straight refuses them. Most packets are of IPv4 and have no options: all others are sent to
// the chain that looks at them.
func (o *opening) straight() []rule {
	return []rule{{"may have a route laid down", []match{notBare}, jump(chainOptions + o.chain)}}
}

// optionsChain is that chain. Where IPv6 has a routing header, there is nothing else to look
// at. To find one option of IPv4, the kernel reads all of them, by stricter rules than it
// forwards by: a source route on its second hop breaks them, and then it finds none. So what
// lets such a packet through is an option that it has found.
func (o *opening) optionsChain() chain {
	const harmless = "records its way, or has routers look at it"
	return chain{name: chainOptions + o.chain, rules: []rule{
		{laidDown, []match{routingHeader}, o.refuse},
		{"IPv6 has no other way to do so", []match{ipVersion6}, goBack},
		{laidDown, []match{lsrr}, o.refuse},
		{laidDown, []match{ssrr}, o.refuse},
		loopback(goBack), // over which only root could send what cannot be read
		{harmless, []match{recordRoute}, goBack},
		{harmless, []match{routerAlert}, goBack},
		{"options that cannot be read", nil, o.refuse},
	}}
}

// unanswered drops what has options. An error would go back by the route that they lay down.
var unanswered = rule{laidDown, []match{hasOptions}, drop}
