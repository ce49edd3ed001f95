package readmodels_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	validate "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"connectrpc.com/connect"

	"github.com/millrace/millrace/event"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/readmodels"
)

// marks are watermarks that have reached everything, or nothing.
type marks struct{ all bool }

func (m marks) Wait(ctx context.Context, topic, key string, position event.Position) error {
	if topic != event.Order.Topic || key != token.Stream || position != token.Position {
		return errors.New("that is not what the token names")
	}
	if m.all {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (marks) Lag(...string) (uint64, bool) { return 7, true }
func (marks) AsOf(...string) time.Time     { return time.Unix(1, 0) }

func freshness(all bool) readmodels.Freshness {
	return readmodels.Freshness{View: "test/v1", Aggregate: event.Order, Watermarks: marks{all}}
}

var token = event.Token{Service: "order", Stream: "o-1", Version: 3, Position: event.Position{Sequence: 9}}

// detail returns a typed detail of an error.
func detail[T any](t *testing.T, err error) (found T) {
	t.Helper()
	var typed *connect.Error
	if errors.As(err, &typed) {
		for _, d := range typed.Details() {
			if v, bad := d.Value(); bad == nil {
				if v, ok := v.(T); ok {
					return v
				}
			}
		}
	}
	t.Fatalf("%v has no such detail", err)
	return found
}

var request = &orderv1.GetOrderRequest{}

func TestAwaitVersion(t *testing.T) {
	t.Parallel()
	shown := func(version uint64) func(context.Context, string) (uint64, error) {
		return func(_ context.Context, stream string) (uint64, error) {
			if stream != token.Stream {
				t.Errorf("asked for stream %q", stream)
			}
			return version, nil
		}
	}
	f := freshness(false)
	if err := f.AwaitVersion(t.Context(), request, "", nil); err != nil {
		t.Errorf("without a token: %v", err)
	}
	for _, version := range []uint64{3, 4} {
		if err := f.AwaitVersion(t.Context(), request, token.String(), shown(version)); err != nil {
			t.Errorf("at version %d: %v", version, err)
		}
	}
	broken := errors.New("no connection")
	err := f.AwaitVersion(t.Context(), request, token.String(),
		func(context.Context, string) (uint64, error) { return 0, broken })
	if !errors.Is(err, broken) {
		t.Errorf("a view that cannot be read: %v", err)
	}
}

func TestAwaitVersionWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := freshness(false)
		var version atomic.Uint64
		time.AfterFunc(700*time.Millisecond, func() { version.Store(token.Version) })
		start := time.Now()
		err := f.AwaitVersion(t.Context(), request, token.String(), func(context.Context, string) (uint64, error) {
			return version.Load(), nil
		})
		if waited := time.Since(start); err != nil || waited < 700*time.Millisecond || waited > 900*time.Millisecond {
			t.Errorf("%v after %v", err, waited)
		}
	})
}

func TestStaleIsReturnedBeforeTheDeadline(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		given       time.Duration // 0 means no deadline
		least, most time.Duration
	}{
		"short": {100 * time.Millisecond, 60 * time.Millisecond, 90 * time.Millisecond},
		"long":  {time.Minute, 59 * time.Second, time.Minute - 200*time.Millisecond},
		"none":  {0, readmodels.DefaultWait, readmodels.DefaultWait + 100*time.Millisecond},
		"past":  {-time.Second, 0, 0},
	} {
		for _, byVersion := range []bool{true, false} {
			t.Run(fmt.Sprint(name, byVersion), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					ctx := t.Context()
					if c.given != 0 {
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, c.given)
						defer cancel()
					}
					f := freshness(false)
					start := time.Now()
					var err error
					var have uint64
					if byVersion {
						have = 2
						err = f.AwaitVersion(ctx, request, token.String(),
							func(context.Context, string) (uint64, error) { return have, nil })
					} else {
						err = f.AwaitPosition(ctx, request, token.String())
					}
					if waited := time.Since(start); waited < c.least || waited > c.most {
						t.Errorf("answered after %v", waited)
					}
					stale := detail[*eventv1.Stale](t, err)
					if connect.CodeOf(err) != connect.CodeDeadlineExceeded || stale.View != "test/v1" ||
						stale.Stream != "o-1" ||
						stale.WantVersion != 3 || stale.HaveVersion != have {
						t.Errorf("%v, %v", err, stale)
					}
					if c.given > 0 && ctx.Err() != nil {
						t.Error("the caller's deadline has passed")
					}
				})
			})
		}
	}
}

// TestAwaitVersionDoesNotSpin checks that the wait does not spin if the watermark has passed the
// token's position, but the version is missing.
func TestAwaitVersionDoesNotSpin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := freshness(true)
		asked := 0
		err := f.AwaitVersion(t.Context(), request, token.String(), func(context.Context, string) (uint64, error) {
			asked++
			return 1, nil
		})
		if connect.CodeOf(err) != connect.CodeDeadlineExceeded || asked > 100 {
			t.Errorf("asked %d times, then %v", asked, err)
		}
	})
}

func TestInvalidTokens(t *testing.T) {
	t.Parallel()
	foreign := token
	foreign.Service = "catalog"
	for text, why := range map[string]string{"rubbish!": "not a token", "AAAA": "not a token",
		foreign.String(): `service "catalog"`} {
		f := freshness(false)
		for kind, err := range map[string]error{
			"version":  f.AwaitVersion(t.Context(), request, text, nil),
			"position": f.AwaitPosition(t.Context(), request, text),
		} {
			if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), why) {
				t.Errorf("%s, %q: %v", kind, text, err)
				continue
			}
			v := detail[*validate.Violations](t, err).Violations[0]
			if e := v.Field.Elements[0]; e.GetFieldName() != "token" || e.GetFieldNumber() != 3 {
				t.Errorf("%s, %q: names the field %v", kind, text, e)
			}
		}
	}
}

func TestFreshness(t *testing.T) {
	t.Parallel()
	f := freshness(true)
	if err := f.AwaitPosition(t.Context(), request, token.String()); err != nil {
		t.Error(err)
	}
	got := f.Of(4, f.AsOf())
	if got.View != "test/v1" || got.Version != 4 || got.LagEvents != 7 || got.AsOf.AsTime() != time.Unix(1, 0).UTC() {
		t.Errorf("%v", got)
	}
	if s := f.Status(5); s.Documents != 5 || s.Lag != 7 || !s.Known || !s.AsOf.Equal(time.Unix(1, 0)) {
		t.Errorf("%v", s)
	}
}
