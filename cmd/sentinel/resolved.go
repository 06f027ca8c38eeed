package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/sentinel/hostdns"
)

// askedByResolved are the nameservers that systemd-resolved would ask without us: those of its configuration, which the
// drop-in file takes the place of, and those of its links.
func (m *machine) askedByResolved() []netip.Addr {
	var b strings.Builder
	for _, addr := range m.configured() {
		fmt.Fprintf(&b, "nameserver %v\n", addr)
	}
	if text, err := hostdns.Text(m.path(uplinks)); err == nil {
		b.WriteString(text)
	}
	return hostdns.Parse(b.String()).Nameservers
}

// configured are the nameservers that somebody else has put into resolved.conf, or a drop-in file.
func (m *machine) configured() (all []netip.Addr) {
	files := []string{"/etc/systemd/resolved.conf"}
	byName := map[string]string{}
	for _, dir := range []string{"/usr/lib", "/usr/local/lib", "/run", "/etc"} { // the last one counts
		found, _ := filepath.Glob(m.path(dir + "/systemd/resolved.conf.d/*.conf")) // errors only on bad patterns
		for _, path := range found {
			byName[filepath.Base(path)] = path
		}
	}
	delete(byName, filepath.Base(dropIn))
	names := make([]string, 0, len(byName))
	for name := range byName {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		files = append(files, strings.TrimPrefix(byName[name], strings.TrimSuffix(m.path("/"), "/")))
	}
	for _, name := range files {
		text, err := hostdns.Text(m.path(name))
		if err != nil {
			continue
		}
		for line := range strings.Lines(text) {
			value, found := strings.CutPrefix(strings.ReplaceAll(strings.TrimSpace(line), " =", "="), "DNS=")
			if !found {
				continue
			}
			if strings.TrimSpace(value) == "" {
				all = nil // so it is said that those from before do not count
			}
			for _, server := range strings.Fields(value) {
				if addr, ok := serverAddr(server); ok {
					all = append(all, addr)
				}
			}
		}
	}
	return all
}

// serverAddr is the address of a server as resolved.conf has it: 192.0.2.53:53%eth0#dns.example.net.
func serverAddr(text string) (netip.Addr, bool) {
	text, _, _ = strings.Cut(text, "#")
	if ap, err := netip.ParseAddrPort(text); err == nil {
		return ap.Addr(), ap.Port() == 53
	}
	addr, err := netip.ParseAddr(strings.Trim(text, "[]"))
	return addr, err == nil
}

// pointResolved has systemd-resolved ask the sentinels, for every name. What it lists as its servers shows whether it
// has read that.
func (m *machine) pointResolved(sentinels []netip.Addr) error {
	wanted := &content{mode: 0o644, uid: os.Geteuid(), gid: os.Getegid(), text: "# By ipdestinationguard-sentinel: it goes when that is stopped.\n" +
		"[Resolve]\nDNS=\nDNS=" + text(sentinels) + "\nFallbackDNS=\nDomains=~.\nDNSOverTLS=no\n"}
	is, err := m.read(dropIn)
	if err != nil {
		return err
	}
	if is.equal(wanted) && (m.resolvedAsks(sentinels) || time.Since(m.reloaded) < reloadEvery) {
		return nil
	}
	if err := os.MkdirAll(m.path(filepath.Dir(dropIn)), 0o755); err != nil {
		return err
	}
	if err := m.put(dropIn, wanted); err != nil {
		return err
	}
	m.between("reload")
	m.reloaded = time.Now()
	return m.reload()
}

// restoreResolved lets systemd-resolved ask what it would.
func (m *machine) restoreResolved() error {
	is, err := m.read(dropIn)
	if err != nil {
		return err
	}
	if is == nil && (!m.resolvedAsks(nil) || time.Since(m.reloaded) < reloadEvery) {
		return nil
	}
	if err := m.remove(dropIn); err != nil {
		return err
	}
	m.between("reload")
	m.reloaded = time.Now()
	return m.reload()
}

// resolvedAsks reports whether systemd-resolved asks these sentinels, or any if none are named.
func (m *machine) resolvedAsks(sentinels []netip.Addr) bool {
	file, err := hostdns.Read(m.path(uplinks))
	if err != nil {
		return false
	}
	if len(sentinels) == 0 {
		return len(file.Sentinels) > 0
	}
	return slices.Equal(file.Sentinels, sentinels)
}

// reloadEvery is how often it is told so, where that does not help.
const reloadEvery = 10 * time.Second

// reloadWithin is how long systemd-resolved may take.
const reloadWithin = 20 * time.Second

// reloadResolved has it read its configuration; older ones have to be started anew for that.
func reloadResolved() error {
	ctx, cancel := context.WithTimeout(context.Background(), reloadWithin)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemctl", "try-reload-or-restart", "systemd-resolved.service").CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemd-resolved does not read its configuration: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
