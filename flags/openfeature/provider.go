// Package openfeature lets a program read flags by OpenFeature's Go SDK.
//
// Provider evaluates the flags of a flags.Reader in memory: no evaluation waits for Kafka.
//
//   - A flag with one value answers it with the reason STATIC.
//   - A rollout answers the variant of the targeting key with the reason SPLIT. Without a key it fails
//     with TARGETING_KEY_MISSING.
//   - Before the flags are read, evaluations fail with PROVIDER_NOT_READY. An unknown flag fails with
//     FLAG_NOT_FOUND, and a flag of another type with TYPE_MISMATCH. The SDK then answers the default
//     of the caller.
//   - The provider is STALE while the brokers do not answer, and answers the last known values. It tells
//     of each change of flags by PROVIDER_CONFIGURATION_CHANGED with their names.
package openfeature

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	sdk "github.com/open-feature/go-sdk/openfeature"

	"github.com/millrace/millrace/flags"
)

// Name is the name of the provider.
const Name = "millrace"

// initTimeout bounds Init, which has no context.
const initTimeout = 30 * time.Second

// maxPending bounds the names of an event that waits to be received. An event without names means that
// any flag may have changed.
const maxPending = flags.MaxFlags

// Provider implements the SDK's FeatureProvider, ContextAwareStateHandler and EventHandler. It is used by
// one API, and not again after its shutdown.
type Provider struct {
	reader *flags.Reader
	events chan sdk.Event
	wake   chan struct{} // has a value if there is something to tell
	done   chan struct{}
	start  sync.Once
	stop   sync.Once
	tell   sync.WaitGroup

	// mu protects what is to be told.
	mu      sync.Mutex
	state   flags.State
	changed map[string]bool
	many    bool // more than maxPending names
}

var (
	_ sdk.FeatureProvider          = (*Provider)(nil)
	_ sdk.ContextAwareStateHandler = (*Provider)(nil)
	_ sdk.EventHandler             = (*Provider)(nil)
)

// NewProvider returns a provider of the flags of a reader, which the caller runs.
func NewProvider(reader *flags.Reader) *Provider {
	return &Provider{reader: reader, events: make(chan sdk.Event), wake: make(chan struct{}, 1),
		done: make(chan struct{}), changed: map[string]bool{}}
}

// Metadata implements sdk.FeatureProvider.
func (*Provider) Metadata() sdk.Metadata { return sdk.Metadata{Name: Name} }

// Hooks implements sdk.FeatureProvider. There are none.
func (*Provider) Hooks() []sdk.Hook { return nil }

// Init implements sdk.StateHandler.
func (p *Provider) Init(e sdk.EvaluationContext) error {
	ctx, cancel := context.WithTimeout(context.Background(), initTimeout)
	defer cancel()
	return p.InitWithContext(ctx, e)
}

// InitWithContext implements sdk.ContextAwareStateHandler: it blocks until the flags are read.
func (p *Provider) InitWithContext(ctx context.Context, _ sdk.EvaluationContext) error {
	err := p.reader.CatchUp(ctx)
	p.start.Do(func() {
		told := flags.Current // by the SDK, if this returns nil
		if err != nil {
			told = flags.Starting
		}
		unwatch := p.reader.Watch(p.note)
		p.tell.Go(func() {
			defer unwatch()
			p.forward(told)
		})
	})
	return err
}

// Shutdown implements sdk.StateHandler.
func (p *Provider) Shutdown() {
	p.stop.Do(func() { close(p.done) })
	p.tell.Wait()
}

// ShutdownWithContext implements sdk.ContextAwareStateHandler.
func (p *Provider) ShutdownWithContext(context.Context) error {
	p.Shutdown()
	return nil
}

// EventChannel implements sdk.EventHandler.
func (p *Provider) EventChannel() <-chan sdk.Event { return p.events }

// note keeps what is to be told, because the reader does not wait for who is told.
func (p *Provider) note(u flags.Update) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = u.State
	for _, name := range u.Changed {
		p.changed[name] = true
	}
	if len(p.changed) > maxPending {
		p.changed, p.many = map[string]bool{}, true
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// forward sends events until the shutdown. told is the state that the SDK knows.
func (p *Provider) forward(told flags.State) {
	for {
		select {
		case <-p.wake:
		case <-p.done:
			return
		}
		p.mu.Lock()
		state, changed, many := p.state, slices.Sorted(maps.Keys(p.changed)), p.many
		p.changed, p.many = map[string]bool{}, false
		p.mu.Unlock()
		if len(changed) > 0 || many {
			if many {
				changed = nil
			}
			p.send(sdk.ProviderConfigChange, "flags were changed", changed)
		}
		if state != told && state == flags.Stale {
			p.send(sdk.ProviderStale, "the brokers do not answer; the last known flags apply", nil)
		} else if state != told {
			p.send(sdk.ProviderReady, "the flags are those of the brokers", nil)
		}
		told = state
	}
}

func (p *Provider) send(kind sdk.EventType, message string, changed []string) {
	e := sdk.Event{ProviderName: Name, EventType: kind,
		ProviderEventDetails: sdk.ProviderEventDetails{Message: message, FlagChanges: changed}}
	select {
	case p.events <- e:
	case <-p.done:
	}
}

// BooleanEvaluation implements sdk.FeatureProvider.
func (p *Provider) BooleanEvaluation(_ context.Context, flag string, or bool, c sdk.FlattenedContext,
) sdk.BoolResolutionDetail {
	return evaluate(p, flag, flags.Bool, or, c, func(v json.RawMessage) (bool, error) {
		return strconv.ParseBool(string(v))
	})
}

// StringEvaluation implements sdk.FeatureProvider.
func (p *Provider) StringEvaluation(_ context.Context, flag, or string, c sdk.FlattenedContext,
) sdk.StringResolutionDetail {
	return evaluate(p, flag, flags.String, or, c, unmarshal[string])
}

// FloatEvaluation implements sdk.FeatureProvider.
func (p *Provider) FloatEvaluation(_ context.Context, flag string, or float64, c sdk.FlattenedContext,
) sdk.FloatResolutionDetail {
	return evaluate(p, flag, flags.Float, or, c, func(v json.RawMessage) (float64, error) {
		return strconv.ParseFloat(string(v), 64)
	})
}

// IntEvaluation implements sdk.FeatureProvider.
func (p *Provider) IntEvaluation(_ context.Context, flag string, or int64, c sdk.FlattenedContext,
) sdk.IntResolutionDetail {
	return evaluate(p, flag, flags.Int, or, c, func(v json.RawMessage) (int64, error) {
		return strconv.ParseInt(string(v), 10, 64)
	})
}

// ObjectEvaluation implements sdk.FeatureProvider. The value is a map[string]any of the caller's own.
func (p *Provider) ObjectEvaluation(_ context.Context, flag string, or any, c sdk.FlattenedContext,
) sdk.InterfaceResolutionDetail {
	return evaluate(p, flag, flags.Object, or, c, unmarshal[any])
}

func unmarshal[T any](v json.RawMessage) (out T, err error) { return out, json.Unmarshal(v, &out) }

// evaluate evaluates a flag of a type.
func evaluate[T any](p *Provider, name string, of flags.Type, or T, c sdk.FlattenedContext,
	parse func(json.RawMessage) (T, error)) sdk.GenericResolutionDetail[T] {
	fail := func(e sdk.ResolutionError) sdk.GenericResolutionDetail[T] {
		return sdk.GenericResolutionDetail[T]{Value: or,
			ProviderResolutionDetail: sdk.ProviderResolutionDetail{ResolutionError: e, Reason: sdk.ErrorReason}}
	}
	f, ok := p.reader.Get(name)
	switch {
	case !ok && p.reader.State() == flags.Starting:
		return fail(sdk.NewProviderNotReadyResolutionError("the flags are being read"))
	case !ok:
		return fail(sdk.NewFlagNotFoundResolutionError(fmt.Sprintf("unknown flag %q", name)))
	case f.Type != of:
		return fail(sdk.NewTypeMismatchResolutionError(fmt.Sprintf("flag %s is of type %s, not %s", name, f.Type, of)))
	}
	detail := sdk.ProviderResolutionDetail{Reason: sdk.StaticReason, FlagMetadata: sdk.FlagMetadata{"revision": f.Revision}}
	value := f.Value
	if f.Rollout != nil {
		key, _ := c[sdk.TargetingKey].(string)
		if key == "" {
			return fail(sdk.NewTargetingKeyMissingResolutionError(fmt.Sprintf("flag %s is rolled out by key", name)))
		}
		v := f.VariantOf(key)
		value, detail.Variant, detail.Reason = v.Value, v.Name, sdk.SplitReason
	}
	parsed, err := parse(value)
	if err != nil { // the reader has checked the value
		return fail(sdk.NewParseErrorResolutionError(fmt.Sprintf("flag %s: %v", name, err)))
	}
	return sdk.GenericResolutionDetail[T]{Value: parsed, ProviderResolutionDetail: detail}
}
