package route

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"

	bolt "go.etcd.io/bbolt"
)

// store writes to the file: one goroutine, which puts all that waits into one transaction.
// While that is on its way to the disk, the next one fills.
type store struct {
	db   *bolt.DB
	wake chan struct{}
	done chan struct{}

	mu     sync.Mutex
	jobs   []*job
	closed bool
	once   sync.Once
	err    error // of closing
}

// job is something to write.
type job struct {
	write func(*bolt.Tx) error
	after func(error) // called before done is closed; may be nil
	done  chan struct{}
	err   error
}

const (
	mostJobs = 4096 // that wait
	perTx    = 1024
)

func newStore(db *bolt.DB) *store {
	s := &store{db: db, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go s.run()
	return s
}

// close writes what waits, and closes the file.
func (s *store) close() error {
	s.once.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		close(s.wake)
		<-s.done
		s.err = s.db.Close()
	})
	return s.err
}

func (s *store) submit(j *job) error {
	j.done = make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrClosed
	case len(s.jobs) >= mostJobs:
		return ErrBusy
	}
	s.jobs = append(s.jobs, j)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

// do writes, and waits for it unless ctx ends.
func (s *store) do(ctx context.Context, write func(*bolt.Tx) error) error {
	j := &job{write: write}
	if err := s.submit(j); err != nil {
		return err
	}
	select {
	case <-j.done:
		return j.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *store) run() {
	defer close(s.done)
	debug.SetPanicOnFault(true)
	for range s.wake {
		s.drain()
	}
	s.drain()
}

func (s *store) drain() {
	for {
		s.mu.Lock()
		jobs := s.jobs[:min(len(s.jobs), perTx)]
		if s.jobs = s.jobs[len(jobs):]; len(s.jobs) == 0 {
			s.jobs = nil
		}
		s.mu.Unlock()
		if len(jobs) == 0 {
			return
		}
		err := s.commit(jobs)
		for _, j := range jobs {
			if j.after != nil {
				j.after(err)
			}
			j.err = err
			close(j.done)
		}
	}
}

// commit returns when all is on disk, or nothing.
func (s *store) commit(jobs []*job) (err error) {
	defer func() {
		if what := recover(); what != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, what)
		}
		if err != nil {
			err = fmt.Errorf("writing %s: %w", s.db.Path(), err)
		}
	}()
	return s.db.Update(func(tx *bolt.Tx) error {
		for _, j := range jobs {
			if err := j.write(tx); err != nil {
				return err
			}
		}
		return nil
	})
}

// putOwned starts to write that an entry has these addresses. The caller has its turn.
func (s *store) putOwned(e *entry, addrs []ip, after func(error)) (*job, error) {
	v := e.version()
	place := e.last
	e.last += uint16(len(addrs))
	j := &job{after: after, write: func(tx *bolt.Tx) error {
		for i, a := range addrs {
			if err := putOwned(tx, v, a, place+1+uint16(i), e.key[1:]); err != nil {
				return err
			}
		}
		return nil
	}}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := s.submit(j); err != nil {
		return nil, err
	}
	e.turn.writing = j
	return j, nil
}
