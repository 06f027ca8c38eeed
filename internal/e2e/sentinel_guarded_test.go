package e2e

import (
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
	run := o.command(sentinelBinary(t), "run")
	o.must(run.Start())
	c := o.runCoreDNSWhenItCan(guardedSentinels)
	o.wantPointed(true)
	o.wantAnswerBy(1, atOnce)
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
