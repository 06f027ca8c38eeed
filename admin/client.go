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
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

// Client asks a [Server].
type Client struct {
	path   string
	http   http.Client
	within time.Duration
}

// A call is answered within so long, or nobody is there: a process that is stopped or stuck
// still listens. To revoke may take that many times as long, as it visits all there is.
const (
	answersWithin = 10 * time.Second
	revokeTimes   = 30
)

var _ Guard = (*Client)(nil)

// NewClient makes one for the socket at path. It connects when it is asked.
func NewClient(path string) *Client {
	c := &Client{path: path, within: answersWithin}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		DisableCompression: true,
	}
	return c
}

// Close ends connections that wait to be used again.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// UnreachableError is that nobody listens at the socket, or answers there, or that one may
// not connect.
type UnreachableError struct {
	Path string
	Err  error
}

func (e *UnreachableError) Error() string { return fmt.Sprintf("%s: %v", e.Path, e.Err) }

func (e *UnreachableError) Unwrap() error { return e.Err }

// call makes one request, and reads the answer into result.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, body, result any) error {
	within := c.within
	if path == "/revoke" {
		within *= revokeTimes
	}
	silent := &UnreachableError{c.path, fmt.Errorf("who listens there has not answered for %v", within)}
	ctx, stop := context.WithTimeoutCause(ctx, within, silent)
	defer stop()
	response, err := c.send(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(result); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%s: the answer cannot be read: %w", c.path, err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	var data io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		data = bytes.NewReader(b)
	}
	target := url.URL{Scheme: "http", Host: "guard", Path: Version + path, RawQuery: query.Encode()}
	request, err := http.NewRequestWithContext(ctx, method, target.String(), data)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		var inner *url.Error
		if errors.As(err, &inner) {
			err = inner.Err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &UnreachableError{c.path, err}
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	return nil, refusal(response)
}

// refusal is the error that an answer is.
func refusal(response *http.Response) error {
	var f failure
	b, _ := io.ReadAll(io.LimitReader(response.Body, maxRequest))
	if json.Unmarshal(b, &f) != nil || f.Error == "" {
		f.Error = response.Status
	}
	for _, s := range statuses {
		if s.status == response.StatusCode {
			return &refused{f.Error, s.err}
		}
	}
	return errors.New(f.Error)
}

// refused is an error of the guard's, in its words.
type refused struct {
	text string
	err  error
}

func (r *refused) Error() string { return r.text }
func (r *refused) Unwrap() error { return r.err }

// Status implements [Guard].
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, http.MethodGet, "/status", nil, nil, &s)
}

// Grants implements [Guard].
func (c *Client) Grants(ctx context.Context, q GrantsQuery) (g Grants, err error) {
	v := values{}
	v.set("name", q.Name)
	v.set("client", q.Client)
	if q.Address.IsValid() {
		v.set("address", q.Address.String())
	}
	return g, c.call(ctx, http.MethodGet, "/grants", url.Values(v), nil, &g)
}

// Directives implements [Guard].
func (c *Client) Directives(ctx context.Context) (d Directives, err error) {
	return d, c.call(ctx, http.MethodGet, "/directives", nil, nil, &d)
}

// Blocks implements [Guard].
func (c *Client) Blocks(ctx context.Context) (b Blocks, err error) {
	return b, c.call(ctx, http.MethodGet, "/blocks", nil, nil, &b)
}

// Explain implements [Guard].
func (c *Client) Explain(ctx context.Context, q ExplainQuery) (e Explanation, err error) {
	v := values{}
	v.set("name", q.Name)
	v.addr("address", q.Address)
	v.set("protocol", q.Protocol)
	if q.Port != 0 {
		v.set("port", strconv.Itoa(int(q.Port)))
	}
	v.addr("client", q.Client)
	v.set("interface", q.Interface)
	v.set("user", q.User)
	v.set("unit", q.Unit)
	return e, c.call(ctx, http.MethodGet, "/explain", url.Values(v), nil, &e)
}

// Answers implements [Guard].
func (c *Client) Answers(ctx context.Context, q AnswersQuery) (a Answers, err error) {
	v := values{}
	v.set("name", q.Name)
	v.addr("address", q.Address)
	v.time("since", q.Since)
	return a, c.call(ctx, http.MethodGet, "/answers", url.Values(v), nil, &a)
}

// Denied implements [Guard].
func (c *Client) Denied(ctx context.Context, q DeniedQuery) (d DeniedList, err error) {
	v := values{}
	v.time("since", q.Since)
	return d, c.call(ctx, http.MethodGet, "/denied", url.Values(v), nil, &d)
}

// Follow implements [Guard].
func (c *Client) Follow(ctx context.Context, each func(Denied) error) error {
	response, err := c.send(ctx, http.MethodGet, "/denied/follow", nil, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	lines := json.NewDecoder(response.Body)
	for {
		var d Denied
		if err := lines.Decode(&d); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return &UnreachableError{c.path, err}
		}
		if err := each(d); err != nil {
			return err
		}
	}
}

// Revoke implements [Guard].
func (c *Client) Revoke(ctx context.Context, r RevokeRequest) (n Revoked, err error) {
	return n, c.call(ctx, http.MethodPost, "/revoke", nil, r, &n)
}

// SetAudit implements [Guard].
func (c *Client) SetAudit(ctx context.Context, r AuditRequest) (s Status, err error) {
	return s, c.call(ctx, http.MethodPost, "/audit", nil, r, &s)
}

// Trial implements [Guard].
func (c *Client) Trial(ctx context.Context, r TrialRequest) (s Status, err error) {
	return s, c.call(ctx, http.MethodPost, "/trial", nil, r, &s)
}

// Confirm implements [Guard].
func (c *Client) Confirm(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, http.MethodPost, "/confirm", nil, struct{}{}, &s)
}

// Disarm implements [Guard].
func (c *Client) Disarm(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, http.MethodPost, "/disarm", nil, struct{}{}, &s)
}

// values are those of a query that are not empty.
type values url.Values

func (v values) set(key, value string) {
	if value != "" {
		url.Values(v).Set(key, value)
	}
}

func (v values) addr(key string, addr netip.Addr) {
	if addr.IsValid() {
		v.set(key, addr.String())
	}
}

func (v values) time(key string, at time.Time) {
	if !at.IsZero() {
		v.set(key, at.Format(time.RFC3339Nano))
	}
}
