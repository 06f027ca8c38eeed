package ipdestinationguard

// policy is what one server block says of its names and of the answers to them;
// settings are what all blocks have in common.
type policy struct {
	canary bool // browsers are told to stay with this resolver

	place    string   // file:line of the directive
	warnings []string // each with its place
}

var defaultPolicy = policy{canary: true}
