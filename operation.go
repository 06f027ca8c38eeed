package ipdestinationguard

import (
	"strconv"
	"strings"

	"github.com/destination-guard/coredns-ip-destination-guard/admin"
	"github.com/destination-guard/coredns-ip-destination-guard/backend"
)

// operation is what a directive says of how people see and steer the guard.
type operation struct {
	audit audit
	admin string // path of the socket; empty is none
	given bool   // the Corefile says so
	quiet bool   // nothing is logged of what is denied
	group uint16 // NFLOG group that some of it is shown to, for the log; 0 is none
}

var defaultOperation = operation{admin: admin.DefaultPath, group: defaultGroup}

// defaultGroup is the NFLOG group unless the Corefile says otherwise. ulogd takes 0,
// libvirt and others take small ones.
const defaultGroup = 5300

// audit says, for each hook, whether what no grant covers passes there, and is only
// counted.
type audit [backend.Hooks]bool

// switched is what people have made of audit while CoreDNS runs. It outlives reloads.
type switched [backend.Hooks]struct{ by, audit bool }

// on reports whether a hook is in audit.
func (w switched) on(hook backend.Hook, s *settings) bool {
	if w[hook].by {
		return w[hook].audit
	}
	return s.operation.audit[hook]
}

// hooksOf are the words for hooks in Corefiles.
var hooksOf = map[string]backend.Hook{"local": backend.Output, "gateway": backend.Forward}

// setAudit reads which hooks are in audit; without a word, all.
func (p *parser) setAudit(args []string) error {
	if len(args) == 0 {
		p.operation.audit = audit{true, true}
		return nil
	}
	word, err := p.oneOf("audit", args, "local (what this machine sends), gateway (what it forwards), or without a word both", "local", "gateway")
	if err == nil {
		p.operation.audit[hooksOf[word]] = true
	}
	return err
}

// setAdmin reads where the admin socket is.
func (p *parser) setAdmin(args []string) error {
	text, err := p.only("admin", args)
	if err != nil {
		return err
	}
	path, isUnix := strings.CutPrefix(text, "unix:")
	switch {
	case text == "off":
		path = ""
	case !isUnix || !strings.HasPrefix(path, "/"):
		return p.Errf("admin %q: it is off, or unix: and an absolute path, for example unix:%s", text, admin.DefaultPath)
	}
	p.operation.admin, p.operation.given = path, true
	return nil
}

func (p *parser) setDeniedLog(args []string) error {
	word, err := p.oneOf("denied_log", args, "on (a line for each flow that is refused, once a minute at most) or off", "on", "off")
	p.operation.quiet = word == "off"
	return err
}

func (p *parser) setGroup(args []string) error {
	text, err := p.only("nflog_group", args)
	if err != nil {
		return err
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil && text != "off" || err == nil && n == 0 {
		return p.Errf("nflog_group %q: it is a number between 1 and 65535 that no other program on this machine listens to, or off", text)
	}
	p.operation.group = uint16(n)
	return nil
}

func (o *operation) auditText() string {
	switch o.audit {
	case audit{true, true}:
		return "of everything"
	case audit{true, false}:
		return "local"
	case audit{false, true}:
		return "gateway"
	}
	return "of nothing"
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
