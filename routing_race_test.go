package ipdestinationguard

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// An address that is told while another book takes over is not another name's afterwards.
func TestAnswersWhileAnotherBookTakesOver(t *testing.T) {
	for range 10 {
		r := newRig(t, routedBoth)
		told := map[string]string{} // names, by address
		var mu sync.Mutex
		var asking sync.WaitGroup
		done := make(chan struct{})
		tell := func(c *client, name string) {
			if f := strings.Fields(c.ask(name+" A", name+" 30 A 9.9.9.9")); len(f) == 5 {
				mu.Lock()
				told[f[4]] += name + " "
				mu.Unlock()
			}
		}
		for k := range 4 {
			c := r.at(fmt.Sprint("10.0.0.", 2+k))
			asking.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-done:
						return
					default:
						tell(c, fmt.Sprintf("n%d-%d.routed.test.", k, i))
					}
				}
			})
		}
		r.arm("ipdestinationguard {\nmode nft-both\nroute **.routed.test {\nstate " + filepath.Join(t.TempDir(), "other.db") + "\n}\n}")
		close(done)
		asking.Wait()
		for i := range 2*len(told) + 10 {
			tell(r.at("10.0.0.9"), fmt.Sprintf("m%d.routed.test.", i))
		}
		for addr, names := range told {
			if len(strings.Fields(names)) > 1 {
				t.Errorf("%s is of %s", addr, names)
			}
		}
	}
}
