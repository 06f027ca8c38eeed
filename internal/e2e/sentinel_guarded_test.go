package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// Without CoreDNS, the guard leaves the machine no nameservers, its own neither, and it is told so. Who undoes it ends
// the guard first.
func TestSentinelsOfAGuardThatWasKilled(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.nameserver(1)
	const lease = "nameserver 198.18.53.1\n"
	o.etc("resolv.conf", lease)
	run := o.follow()
	// Others than root have to read the files of both: CoreDNS, as its unit has it, and whoever looks a name up.
	rights := "+net_admin,+net_bind_service"
	o.as = []string{"setpriv", fmt.Sprintf("--reuid=%d", o.user(53)), "--regid=53", "--clear-groups", "--inh-caps=" + rights, "--ambient-caps=" + rights}
	c := o.runCoreDNSWhenItCan(guardedSentinels)
	o.wantPointed(true)
	o.wantAnswerBy(1, atOnce)
	other := o.command("setpriv", fmt.Sprintf("--reuid=%d", o.user(1001)), "--regid=1001", "--clear-groups", "getent", "ahostsv4", "www.example.test")
	if err := other.Run(); err != nil || !strings.HasPrefix(other.Output(), "198.18.1.1 ") {
		t.Errorf("getent of another user: %v, %s", err, other.Output())
	}
	o.kill(c)
	o.wantPointed(false)
	o.eventually("run says that the guard refuses them", func() bool { return strings.Contains(run.Output(), "guardctl disarm") })
	if addr, _ := o.getent("www.example.test"); addr != "none" {
		t.Errorf("beside a guard whose CoreDNS was killed, getent says %s", addr)
	}
	o.ctl(filepath.Join(o.files, "run/ipdestinationguard/admin.sock"), exitOK, "disarm")
	o.wantAnswerBy(1, atOnce)
	o.must(run.Stop())
	if o.resolvConf() != lease || strings.Count(run.Output(), "guardctl disarm") != 1 {
		t.Errorf("resolv.conf:\n%srun wrote:\n%s", o.resolvConf(), run.Output())
	}
}
