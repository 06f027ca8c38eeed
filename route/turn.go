package route

import (
	"context"
	"errors"
)

// errDead means that an entry has left the book meanwhile.
var errDead = errors.New("look again")

// turn is who may change an entry: one at a time, in the order in which they came.
// Whoever has it may wait for the disk and the kernel, so that both learn of changes in the
// same order. Whoever waits for it may give up.
type turn struct {
	token   chan struct{}
	wanting int  // who has it or waits for it
	writing *job // new slots on their way to the disk, whether or not somebody still waits for them
}

// take waits for the turn. Without an error, it has to be given back by release.
func (e *entry) take(ctx context.Context) error {
	e.mu.Lock()
	if e.turn == nil {
		e.turn = &turn{token: make(chan struct{}, 1)}
	}
	t := e.turn
	t.wanting++
	e.mu.Unlock()
	select {
	case t.token <- struct{}{}:
		return nil
	case <-ctx.Done():
		e.unwant(t)
		return context.Cause(ctx)
	}
}

// tryTake takes the turn if nobody has it or waits for it.
func (e *entry) tryTake() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.turn != nil || e.dead {
		return false
	}
	e.turn = &turn{token: make(chan struct{}, 1), wanting: 1}
	e.turn.token <- struct{}{}
	return true
}

func (e *entry) release() {
	e.mu.Lock()
	t := e.turn
	e.mu.Unlock()
	<-t.token
	e.unwant(t)
}

func (e *entry) unwant(t *turn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t.wanting--
	e.idleLocked()
}

// idleLocked forgets a turn that nobody needs.
func (e *entry) idleLocked() {
	if t := e.turn; t != nil && t.wanting == 0 && t.writing == nil {
		e.turn = nil
	}
}

// settle waits for new slots that one who has given up was waiting for. The caller has the
// turn.
func (e *entry) settle(ctx context.Context) error {
	e.mu.Lock()
	dead, writing := e.dead, e.turn.writing
	e.mu.Unlock()
	if dead {
		return errDead
	}
	if writing == nil {
		return nil
	}
	select {
	case <-writing.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
