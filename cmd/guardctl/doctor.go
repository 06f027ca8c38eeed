package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// level is how bad a finding is.
type level string

const (
	fine    level = "ok"
	warning level = "warning"
	failure level = "failure"
	unknown level = "skipped"
)

// A finding is what one check has found, and what is to be done about it.
type finding struct {
	Check  string `json:"check"`
	Level  level  `json:"level"`
	Text   string `json:"text"`
	Advice string `json:"advice,omitempty"`
}

// doctor looks at this machine.
type doctor struct {
	ctx    context.Context
	root   string // where its files are
	socket string
	status *admin.Status // nil if the guard does not answer
	own    []netip.Addr

	blocks    admin.Blocks
	blocksErr error

	check    string // the one at work
	findings []finding
}

// A check looks at one thing.
type check struct {
	name string
	run  func(*doctor)
}

// checks are all of them, in the order in which a packet would come by what they look at.
var checks = []check{
	{"guard", (*doctor).guard},
	{"capabilities", (*doctor).capabilities},
	{"kernel", (*doctor).kernel},
	{"features", (*doctor).features},
	{"resolv.conf", (*doctor).resolvConf},
	{"nsswitch.conf", (*doctor).nsswitch},
	{"resolvers between", (*doctor).between},
	{"answers", (*doctor).answers},
	{"upstream", (*doctor).upstream},
	{"cgroups", (*doctor).cgroups},
	{"forwarding", (*doctor).forwarding},
	{"forged sources", (*doctor).forged},
	{"source routes", (*doctor).sourceRoutes},
	{"connection tracking", (*doctor).conntrack},
	{"other firewalls", (*doctor).firewalls},
}

func (g *guardctl) doctorCommand() *cobra.Command {
	var root string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps the guard from working, and say what to do",
		Long: `Look at the guard, the kernel, the resolver configuration, other resolvers, upstream, forwarding,
connection tracking and other firewalls, and say of each thing that is wrong what to do about it.
Run it as root, or it has to skip some. The exit code is 3 if there is a failure.`,
		Args: cobra.NoArgs,
		RunE: works(func(cmd *cobra.Command, _ []string) error {
			d := &doctor{ctx: cmd.Context(), root: root, socket: g.socket, own: ownAddresses(), findings: []finding{}}
			guard := g.ask()
			s, err := guard.Status(cmd.Context())
			if err == nil {
				d.status = &s
				d.blocks, d.blocksErr = guard.Blocks(cmd.Context())
			}
			for _, c := range checks {
				d.check = c.name
				if c.name == "guard" && err != nil {
					d.unreachable(err)
					continue
				}
				c.run(d)
			}
			if err := g.show(struct {
				Findings []finding `json:"findings"`
			}{d.findings}, d.write); err != nil {
				return err
			}
			if slices.ContainsFunc(d.findings, func(f finding) bool { return f.Level == failure }) {
				return errNo
			}
			return nil
		}),
	}
	cmd.Flags().StringVar(&root, "root", "/", "where etc, run and proc are found, but for what the network has of its own")
	_ = cmd.Flags().MarkHidden("root")
	return cmd
}

// say notes a finding.
func (d *doctor) say(l level, advice, format string, args ...any) {
	d.findings = append(d.findings, finding{d.check, l, fmt.Sprintf(format, args...), advice})
}

func (d *doctor) write(w io.Writer) {
	for _, f := range d.findings {
		fmt.Fprintf(w, "%-8s %s: %s\n", f.Level, f.Check, plain(f.Text))
		if f.Advice != "" {
			fmt.Fprintf(w, "         -> %s\n", plain(f.Advice))
		}
	}
}

// read is the text of a file of this machine, or nothing if there is none.
func (d *doctor) read(path string) (text string, ok bool) {
	b, err := os.ReadFile(filepath.Join(d.root, path))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			d.say(unknown, "be root", "%s cannot be read: %v", path, err)
		}
		return "", false
	}
	return string(b), true
}

// sysctl is a setting of this network, or nothing if there is none.
func sysctl(name string) string {
	b, err := os.ReadFile("/proc/sys/net/" + name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// guards reports whether a hook is guarded, as far as it is known.
func (d *doctor) guards(hook string) bool {
	return d.status != nil && slices.ContainsFunc(d.status.Hooks, func(h admin.Hook) bool { return h.Name == hook })
}

// unguarded reports whether only others' traffic is guarded, and says so: then it does not
// matter here whom this machine's own programs ask.
func (d *doctor) unguarded() bool {
	if !d.guards("forward") || d.guards("output") {
		return false
	}
	d.say(fine, "", "what this machine itself sends is not guarded (mode %s): its own programs may ask whom they like", d.status.Mode)
	return true
}

func (d *doctor) byApplication() bool {
	return d.status != nil && strings.HasPrefix(d.status.Scope, "application")
}

func (d *doctor) unreachable(err error) {
	switch exitCode(err) {
	case exitForbidden:
		d.say(unknown, "be root, or a member of the group "+admin.Group, "this user may not ask the guard: %v", err)
	default:
		d.say(failure, "start CoreDNS (systemctl status ipdestinationguard-coredns, journalctl -u ipdestinationguard-coredns), or name its socket with --socket", "no guard answers: %v", err)
	}
}

// guard looks whether it is in force.
func (d *doctor) guard() {
	s := d.status
	switch {
	case s.Disarmed:
		d.say(failure, "systemctl restart ipdestinationguard-coredns", "it has been disarmed: nothing is guarded")
	case !s.Enforcing:
		d.say(failure, "journalctl -u ipdestinationguard-coredns says why: mostly another program changes the table, or a right is missing", "its rules are not in force")
	default:
		d.say(fine, "", "it is in force: mode %s, scope %s", s.Mode, s.Scope)
	}
	for _, h := range s.Hooks {
		switch {
		case h.State != admin.Enforced:
			d.say(warning, "guardctl trial 5m, then guardctl confirm", "%s: %s", hookWords(h.Name), stateWords(s.Now, h))
		case h.Unlisted.Packets > 0:
			d.say(warning, "guardctl denied shows those that are listed; find the program that tries so many", "%s: more was denied at once than can be listed: %s", hookWords(h.Name), counted(h.Unlisted.Packets, h.Unlisted.Bytes))
		}
	}
	if s.Results.Failed > 0 {
		d.say(warning, "the log says why each time; dig NAME shows it to who asks", "withheld: %s", why.Number(s.Results.Failed, "answer"))
	}
}

func ownAddresses() (own []netip.Addr) {
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p.Addr())
		}
	}
	return own
}

func (d *doctor) isOwn(a netip.Addr) bool {
	return a.IsLoopback() || slices.Contains(d.own, a.WithZone(""))
}
