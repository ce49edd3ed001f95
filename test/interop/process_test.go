package interop_test

import (
	"context"
	"testing"
)

// process is something that runs until it is stopped.
type process struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

func start(t *testing.T, run func(context.Context) error) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	p := &process{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-p.done
	})
	return p
}

func (p *process) stop(t *testing.T) {
	t.Helper()
	p.cancel()
	if <-p.done; p.err != nil {
		t.Error(p.err)
	}
}
