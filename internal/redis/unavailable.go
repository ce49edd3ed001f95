package redis

import (
	"context"
	"errors"
	"net"

	"github.com/redis/go-redis/v9"

	"github.com/millrace/millrace/internal/dependency"
)

// unavailableError means that Redis cannot serve a command at present, although it can be reached. It
// is a net.Error, as those of connections are, so callers treat both alike: they may try again.
type unavailableError struct{ error }

func (unavailableError) Timeout() bool   { return true }
func (unavailableError) Temporary() bool { return true }
func (e unavailableError) Unwrap() error { return e.error }

var _ net.Error = unavailableError{}

// states are the replies of a server that starts, fails over, or loses its cluster.
var states = []string{"LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN"}

// markUnavailable wraps the errors of a server or pool that cannot serve a command at present.
func markUnavailable(err error) error {
	if errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, redis.ErrPoolExhausted) {
		return unavailableError{err}
	}
	for _, state := range states {
		if redis.HasErrorPrefix(err, state) {
			return unavailableError{err}
		}
	}
	return err
}

// unavailableHook marks the errors of all commands of a client.
type unavailableHook struct{}

func (unavailableHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (unavailableHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return markUnavailable(next(ctx, cmd)) // the client stores it in cmd
	}
}

func (unavailableHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			if e := cmd.Err(); e != nil {
				cmd.SetErr(markUnavailable(e))
			}
		}
		return markUnavailable(err)
	}
}

// guardHook guards the calls of a client. A pipeline is one call.
type guardHook struct{ dependency *dependency.Dependency }

func (guardHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (g guardHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return g.dependency.Do(ctx, func() error { return next(ctx, cmd) })
	}
}

func (g guardHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		made := false
		err := g.dependency.Do(ctx, func() error {
			made = true
			return next(ctx, cmds)
		})
		if !made { // callers look at the commands
			for _, cmd := range cmds {
				cmd.SetErr(err)
			}
		}
		return err
	}
}
