package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"
)

// Server serves the admin socket.
type Server struct {
	path    string
	guard   Guard
	members members
	http    http.Server
	ended   sync.WaitGroup
	stop    context.CancelFunc // of all requests
}

// What one process may cost: those who may use the socket may stop the guard as well, but
// not by mistake.
const (
	maxConnections = 64
	maxRequest     = 1 << 16
	maxFollowers   = 16
)

// patience is how long the parts of a request may take.
var patience = 5 * time.Second

// Serve makes the socket and answers there until Close.
func Serve(path string, guard Guard) (*Server, error) {
	s := &Server{path: path, guard: guard, members: theMembers()}
	l, err := listen(path, s.members)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.http = http.Server{
		Handler:           s.handler(),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       s.remember,
		ReadHeaderTimeout: patience, // and none for all of it, which would end who follows
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    maxRequest,
	}
	s.ended.Go(func() { _ = s.http.Serve(&peers{l, make(chan struct{}, maxConnections)}) })
	return s, nil
}

// Path is where the socket is.
func (s *Server) Path() string { return s.path }

// Close ends all that is being answered, and removes the socket.
func (s *Server) Close() error {
	_ = os.Remove(s.path)
	s.stop()
	err := s.http.Close()
	s.ended.Wait()
	return err
}

type peerKey struct{}

func (s *Server) remember(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, conn)
}

// handler answers members only.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	get(mux, "/status", func(ctx context.Context, _ url.Values) (any, error) { return s.guard.Status(ctx) })
	get(mux, "/grants", func(ctx context.Context, v url.Values) (any, error) {
		q, err := readGrantsQuery(v)
		if err != nil {
			return nil, err
		}
		return s.guard.Grants(ctx, q)
	})
	get(mux, "/explain", func(ctx context.Context, v url.Values) (any, error) {
		q, err := readExplainQuery(v)
		if err != nil {
			return nil, err
		}
		return s.guard.Explain(ctx, q)
	})
	get(mux, "/answers", func(ctx context.Context, v url.Values) (any, error) {
		q, err := readAnswersQuery(v)
		if err != nil {
			return nil, err
		}
		return s.guard.Answers(ctx, q)
	})
	get(mux, "/denied", func(ctx context.Context, v url.Values) (any, error) {
		since, err := readTime(v, "since")
		if err != nil {
			return nil, err
		}
		return s.guard.Denied(ctx, DeniedQuery{Since: since})
	})
	get(mux, "/directives", func(ctx context.Context, _ url.Values) (any, error) { return s.guard.Directives(ctx) })
	get(mux, "/blocks", func(ctx context.Context, _ url.Values) (any, error) { return s.guard.Blocks(ctx) })
	mux.Handle("GET "+Version+"/denied/follow", s.follow())
	post(mux, "/revoke", s.guard.Revoke)
	post(mux, "/audit", s.guard.SetAudit)
	post(mux, "/trial", s.guard.Trial)
	post(mux, "/confirm", func(ctx context.Context, _ struct{}) (Status, error) { return s.guard.Confirm(ctx) })
	post(mux, "/disarm", func(ctx context.Context, _ struct{}) (Status, error) { return s.guard.Disarm(ctx) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := r.Context().Value(peerKey{}).(*peerConn)
		if !ok || c.err != nil || !s.members.may(c.peer) {
			answer(w, nil, fmt.Errorf("%w: root, CoreDNS's own user and the group %s are", ErrDenied, Group))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// get is a call that changes nothing.
func get(mux *http.ServeMux, path string, do func(context.Context, url.Values) (any, error)) {
	mux.HandleFunc("GET "+Version+path, func(w http.ResponseWriter, r *http.Request) {
		result, err := do(r.Context(), r.URL.Query())
		answer(w, result, err)
	})
}

// post is a call that changes something.
func post[Request, Result any](mux *http.ServeMux, path string, do func(context.Context, Request) (Result, error)) {
	mux.HandleFunc("POST "+Version+path, func(w http.ResponseWriter, r *http.Request) {
		var request Request
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(patience))
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
		if err == nil && len(bytes.TrimSpace(body)) > 0 {
			d := json.NewDecoder(bytes.NewReader(body))
			d.DisallowUnknownFields() // or a misspelt condition would revoke too much
			err = d.Decode(&request)
		}
		if err != nil {
			answer(w, nil, fmt.Errorf("%w request: %v", ErrInvalid, err))
			return
		}
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		result, err := do(r.Context(), request)
		answer(w, result, err)
	})
}

// failure is the body of an answer that is an error.
type failure struct {
	Error string `json:"error"`
}

var statuses = []struct {
	err    error
	status int
}{
	{ErrInvalid, http.StatusBadRequest},
	{ErrDenied, http.StatusForbidden},
	{ErrConflict, http.StatusConflict},
	{ErrUnsupported, http.StatusNotImplemented},
	{ErrUnavailable, http.StatusServiceUnavailable},
}

func answer(w http.ResponseWriter, result any, err error) {
	status := http.StatusOK
	if err != nil {
		status, result = http.StatusInternalServerError, failure{err.Error()}
		for _, s := range statuses {
			if errors.Is(err, s.err) {
				status = s.status
			}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(result)
}

// follow writes flows as they are denied, a line each.
func (s *Server) follow() http.HandlerFunc {
	places := make(chan struct{}, maxFollowers)
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		default:
			answer(w, nil, fmt.Errorf("%w: %d follow already", ErrUnavailable, maxFollowers))
			return
		}
		stream := http.NewResponseController(w)
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.WriteHeader(http.StatusOK)
		_ = stream.Flush()
		lines := json.NewEncoder(w)
		_ = s.guard.Follow(r.Context(), func(d Denied) error {
			_ = stream.SetWriteDeadline(time.Now().Add(5 * time.Second)) // who does not read is let go
			if err := lines.Encode(d); err != nil {
				return err
			}
			return stream.Flush()
		})
	}
}
