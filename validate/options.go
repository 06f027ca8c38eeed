//go:build unbound

package validate

import (
	"fmt"
	"time"
)

// maxWaiting is how many answers may wait.
const maxWaiting = 4096

// options are those of unbound.conf(5).
func options(config Config) [][2]string {
	all := [][2]string{
		{"do-not-query-localhost:", "no"}, // the upstream is there
		{"do-ip6:", "no"},
		{"edns-buffer-size:", "16384"}, // loopback cuts nothing up
		{"qname-minimisation:", "no"},
		{"trust-anchor-signaling:", "no"},
		{"unblock-lan-zones:", "yes"},
		{"outgoing-range:", fmt.Sprint(maxWaiting)}, // or one who asks waits for the sockets of others
		{"num-queries-per-thread:", "2048"},
		{"msg-cache-size:", "16m"},
		{"rrset-cache-size:", "32m"},
		{"key-cache-size:", "8m"},
		{"infra-keep-probing:", "yes"},
	}
	for _, zone := range config.Negative {
		all = append(all, [2]string{"domain-insecure:", zone})
	}
	if config.HoldDown > 0 {
		seconds := fmt.Sprint(int(config.HoldDown / time.Second))
		all = append(all, [2]string{"permit-small-holddown:", "yes"}, [2]string{"add-holddown:", seconds}, [2]string{"del-holddown:", seconds})
	}
	return all
}
