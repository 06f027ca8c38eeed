package ipdestinationguard

import (
	"github.com/destination-guard/coredns-ip-destination-guard/admin"
)

// serveAdmin has the admin socket where the settings say. A socket that stays where it is
// is not touched; the one of before ends when the new one answers.
func (g *guard) serveAdmin(s *settings) error {
	g.serving.Lock()
	defer g.serving.Unlock()
	path := s.operation.admin
	if g.socket != nil && g.socket.Path() == path {
		return nil
	}
	var next *admin.Server
	if path != "" {
		var err error
		if next, err = admin.Serve(path, &administration{guard: g, started: g.started}); err != nil {
			return err
		}
	}
	if g.socket != nil {
		_ = g.socket.Close()
	}
	g.socket = next
	return nil
}

// endAdmin ends the socket.
func (g *guard) endAdmin() {
	g.serving.Lock()
	defer g.serving.Unlock()
	if g.socket != nil {
		_ = g.socket.Close()
		g.socket = nil
	}
}

// serveAdminOr tells of a socket that cannot be: an error if the Corefile names it, else
// a warning.
func (g *guard) serveAdminOr(s *settings) error {
	err := g.serveAdmin(s)
	if err != nil && !s.operation.given {
		log.Warningf("%s: guardctl cannot be used: %v (admin off does without)", s.place, err)
		return nil
	}
	return err
}
