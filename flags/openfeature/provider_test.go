package openfeature_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	sdk "github.com/open-feature/go-sdk/openfeature"
	"github.com/open-feature/go-sdk/openfeature/isolated"

	"github.com/millrace/millrace/flags"
	"github.com/millrace/millrace/flags/openfeature"
	embedded "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/test/servers/process"
)

func TestMain(m *testing.M) { os.Exit(process.RunTests(m)) }

var quiet = slog.New(slog.DiscardHandler)

// system is a broker with a reader and a writer of flags, and an SDK with the provider.
type system struct {
	broker *embedded.Broker
	reader *flags.Reader
	writer *flags.Writer
	api    *sdk.EvaluationAPI
	client *sdk.Client
}

// newSystem starts the reader after before has run.
func newSystem(t *testing.T, before func(*sdk.EvaluationAPI)) *system {
	t.Helper()
	broker, err := embedded.Start(t.Context(), embedded.Config{DataDir: t.TempDir(), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	cfg := kafka.Config{Brokers: broker.Addr(), ClientID: "test", Logger: quiet}
	s := &system{broker: broker, reader: flags.NewReader(cfg, quiet), api: isolated.NewAPI()}
	stopped := sync.OnceFunc(func() {
		if err := broker.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stopped)
	if err := kafka.EnsureTopics(t.Context(), cfg, flags.Topics()...); err != nil {
		t.Fatal(err)
	}
	s.writer, err = flags.NewWriter(flags.WriterConfig{Kafka: cfg, TransactionalID: "flags", Reader: s.reader, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.writer.Close)
	t.Cleanup(func() {
		if err := s.api.Shutdown(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	if before != nil {
		before(s.api)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.reader.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	if err := s.api.SetProviderAndWait(t.Context(), openfeature.NewProvider(s.reader)); err != nil {
		t.Fatal(err)
	}
	s.client = s.api.NewClient()
	return s
}

func (s *system) set(t *testing.T, e flags.Edit) {
	t.Helper()
	if _, err := s.writer.Set(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

var someone = sdk.NewEvaluationContext("customer-1", nil)

// TestEvaluation evaluates flags of each type by the SDK's client.
func TestEvaluation(t *testing.T) {
	t.Parallel()
	s := newSystem(t, nil)
	for name, c := range map[string]struct {
		of    flags.Type
		value string
	}{"b": {flags.Bool, "true"}, "s": {flags.String, `"a\nb"`}, "i": {flags.Int, "9007199254740993"}, "f": {flags.Float, "1.5"},
		"o": {flags.Object, `{"a":[1,"x"]}`}} {
		s.set(t, flags.Edit{Name: name, Type: c.of, Value: json.RawMessage(c.value)})
	}
	// customer-1 is in bucket 2083 of checkout.
	s.set(t, flags.Edit{Name: "checkout", Type: flags.String, Rollout: []flags.Share{
		{Variant: "old", Value: json.RawMessage(`"v1"`), Share: 2083}, {Variant: "new", Value: json.RawMessage(`"v2"`), Share: 7917}}})
	ctx, c, nobody := t.Context(), s.client, sdk.NewTargetlessEvaluationContext(nil)
	check := func(what string, got any, detail sdk.EvaluationDetails, err error, want any, variant string, reason sdk.Reason, code sdk.ErrorCode) {
		t.Helper()
		if !reflect.DeepEqual(got, want) || detail.Variant != variant || detail.Reason != reason || detail.ErrorCode != code || (err != nil) != (code != "") {
			t.Errorf("%s: %#v, %+v, %v; want %#v, variant %q, reason %s, code %q", what, got, detail, err, want, variant, reason, code)
		}
	}
	b, err := c.BooleanValueDetails(ctx, "b", false, nobody)
	check("bool", b.Value, b.EvaluationDetails, err, true, "", sdk.StaticReason, "")
	if revision, err := b.FlagMetadata.GetInt("revision"); err != nil || revision < 0 {
		t.Errorf("revision %d: %v", revision, err)
	}
	text, err := c.StringValueDetails(ctx, "s", "", nobody)
	check("string", text.Value, text.EvaluationDetails, err, "a\nb", "", sdk.StaticReason, "")
	i, err := c.IntValueDetails(ctx, "i", 0, nobody)
	check("int", i.Value, i.EvaluationDetails, err, int64(9007199254740993), "", sdk.StaticReason, "")
	f, err := c.FloatValueDetails(ctx, "f", 0, nobody)
	check("float", f.Value, f.EvaluationDetails, err, 1.5, "", sdk.StaticReason, "")
	o, err := c.ObjectValueDetails(ctx, "o", nil, nobody)
	check("object", o.Value, o.EvaluationDetails, err, map[string]any{"a": []any{1.0, "x"}}, "", sdk.StaticReason, "")

	text, err = c.StringValueDetails(ctx, "checkout", "v0", someone)
	check("rollout", text.Value, text.EvaluationDetails, err, "v2", "new", sdk.SplitReason, "")
	text, err = c.StringValueDetails(ctx, "checkout", "v0", nobody)
	check("rollout without a key", text.Value, text.EvaluationDetails, err, "v0", "", sdk.ErrorReason, sdk.TargetingKeyMissingCode)
	i, err = c.IntValueDetails(ctx, "none", 7, someone)
	check("unknown flag", i.Value, i.EvaluationDetails, err, int64(7), "", sdk.ErrorReason, sdk.FlagNotFoundCode)
	i, err = c.IntValueDetails(ctx, "f", 7, someone)
	check("another type", i.Value, i.EvaluationDetails, err, int64(7), "", sdk.ErrorReason, sdk.TypeMismatchCode)
	b, err = c.BooleanValueDetails(ctx, "checkout", true, someone)
	check("another type of a rollout", b.Value, b.EvaluationDetails, err, true, "", sdk.ErrorReason, sdk.TypeMismatchCode)

	// A change of the answer does not change the flag.
	o.Value.(map[string]any)["a"] = "changed"
	o, err = c.ObjectValueDetails(ctx, "o", nil, nobody)
	check("object, again", o.Value, o.EvaluationDetails, err, map[string]any{"a": []any{1.0, "x"}}, "", sdk.StaticReason, "")
}

// TestEvents changes a flag and stops the brokers. The SDK tells its handlers.
func TestEvents(t *testing.T) {
	t.Parallel()
	got := make(chan string, 100)
	on := func(api *sdk.EvaluationAPI, kind sdk.EventType) {
		callback := func(d sdk.EventDetails) {
			if d.ProviderName != openfeature.Name {
				t.Errorf("an event of provider %q", d.ProviderName)
			}
			slices.Sort(d.FlagChanges)
			for _, name := range append(d.FlagChanges, "") {
				if name != "" || len(d.FlagChanges) == 0 {
					got <- string(kind) + name
				}
			}
		}
		api.AddHandler(kind, &callback)
	}
	s := newSystem(t, func(api *sdk.EvaluationAPI) {
		for _, kind := range []sdk.EventType{sdk.ProviderReady, sdk.ProviderConfigChange, sdk.ProviderStale, sdk.ProviderError} {
			on(api, kind)
		}
	})
	expect := func(want string) {
		t.Helper()
		if e := <-got; e != want {
			t.Fatalf("event %q, want %q", e, want)
		}
	}
	expect("PROVIDER_READY")
	s.set(t, flags.Edit{Name: "b", Type: flags.Bool, Value: json.RawMessage("true")})
	expect("PROVIDER_CONFIGURATION_CHANGEDb")
	if !s.client.Boolean(t.Context(), "b", false, someone) {
		t.Error("the flag is not what the event announced")
	}
	if err := s.writer.Delete(t.Context(), "b", nil, "", ""); err != nil {
		t.Fatal(err)
	}
	expect("PROVIDER_CONFIGURATION_CHANGEDb")
	s.set(t, flags.Edit{Name: "b", Type: flags.Bool, Value: json.RawMessage("true")})
	expect("PROVIDER_CONFIGURATION_CHANGEDb")
	if err := s.broker.Close(); err != nil {
		t.Fatal(err)
	}
	expect("PROVIDER_STALE")
	if state := s.client.State(); state != sdk.StaleState {
		t.Errorf("the client's state is %s", state)
	}
	if !s.client.Boolean(t.Context(), "b", false, someone) {
		t.Error("the last known value does not hold")
	}
}

// TestNotReady evaluates a flag before the reader has read anything.
func TestNotReady(t *testing.T) {
	t.Parallel()
	p := openfeature.NewProvider(flags.NewReader(kafka.Config{}, quiet))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.InitWithContext(ctx, sdk.EvaluationContext{}); err == nil {
		t.Error("the provider is ready")
	}
	defer p.Shutdown()
	d := p.BooleanEvaluation(t.Context(), "b", true, nil)
	if !d.Value || d.ResolutionDetail().ErrorCode != sdk.ProviderNotReadyCode {
		t.Errorf("the answer is %+v", d)
	}
}
