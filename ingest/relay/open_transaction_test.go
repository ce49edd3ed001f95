package relay_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/kafka"
	server "github.com/millrace/millrace/test/servers/kafka"
)

// Another relay's open transaction hides the newest checkpoints of this one. The relay waits for the
// end of that transaction if an older checkpoint, or none, does not explain the log. Otherwise it
// starts at once.
//
// This test is not parallel to others, because its transactions would hide their checkpoints, too.
// Its cases run one after the other for the same reason.
func TestCheckpointsBehindOpenTransaction(t *testing.T) {
	// restored returns a writer of a published store, and the store restored from a backup that lacks
	// the events that are written later.
	restored := func(t *testing.T, b broker) (w *writer, before eventstore.Store) {
		t.Helper()
		dir := t.TempDir()
		path, backup := filepath.Join(dir, "order.db"), filepath.Join(dir, "backup.db")
		s := b.openStore(t, path)
		w = newWriter(s)
		w.append(t, 30)
		b.publish(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		backUp(t, path, backup)
		w.store = b.openStore(t, path)
		return w, b.openStore(t, backup)
	}
	for name, check := range map[string]func(t *testing.T, b broker){
		"the store lost events": func(t *testing.T, b broker) {
			w, before := restored(t, b)
			other := b.openTransaction(t)
			w.append(t, 10)
			b.publish(t, w.store)
			b.stopsWith(t, before, relay.ErrStoreBehind, "the store does not have", other.endWhenAwaited)
			b.checkEqual(t, w.store)
		},
		"the store lost more events than a scan keeps": func(t *testing.T, b broker) {
			w, before := restored(t, b)
			other := b.openTransaction(t)
			w.append(t, 1500)
			b.publish(t, w.store)
			b.stopsWith(t, before, relay.ErrStoreBehind, "the store does not have", other.endWhenAwaited)
		},
		"the topic was recreated": func(t *testing.T, b broker) {
			s := b.newStore(t)
			other := b.openTransaction(t)
			newWriter(s).append(t, 10)
			b.publish(t, s)
			b.recreate(t)
			b.stopsWith(t, s, relay.ErrLogChanged, "recreated", other.endWhenAwaited)
		},
		"retention deleted the beginning of the topic": func(t *testing.T, b broker) {
			s := b.newStore(t)
			w := newWriter(s)
			w.append(t, 30)
			b.publish(t, s)
			other := b.openTransaction(t)
			w.append(t, 10)
			b.publish(t, s)
			if err := server.DeleteRecords(t.Context(), b.Brokers, b.order.Topic); err != nil {
				t.Fatal(err)
			}
			w.append(t, 7)
			if got := b.publish(t, s, other.endWhenAwaited).Published; got != 7 {
				t.Errorf("published %d events, want the 7 new ones", got)
			}
		},
		"the log has not changed otherwise": func(t *testing.T, b broker) {
			s := b.newStore(t)
			w := newWriter(s)
			w.append(t, 30)
			b.publish(t, s)
			other := b.openTransaction(t)
			w.append(t, 10)
			b.publish(t, s)
			w.append(t, 7)
			if got := b.publish(t, s).Published; got != 7 { // without waiting
				t.Errorf("published %d events, want the 7 new ones", got)
			}
			other.end()
			b.checkStreams(t, s)
		},
	} {
		t.Run(name, func(t *testing.T) { each(t, check) })
	}
}

// openTransaction is another relay's open transaction on PositionsTopic. end aborts it.
type openTransaction struct {
	end func()
}

// openTransaction opens a transaction on PositionsTopic, which hides all later checkpoints.
func (b broker) openTransaction(t *testing.T) openTransaction {
	t.Helper()
	other, err := kafka.NewTransactionalProducer(b.Config, uuid.NewString())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(other.Init(t.Context()), other.Begin()); err != nil {
		t.Fatal(err)
	}
	record := kafka.Record{Topic: relay.PositionsTopic, Key: []byte("other"), Value: []byte("0.0")}
	if err := other.Produce(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	// The broker aborts the transaction itself after 30 s, and then fences its producer.
	h := openTransaction{sync.OnceFunc(func() {
		err := other.Abort(context.WithoutCancel(t.Context()))
		if err != nil && !errors.Is(err, kafka.ErrFenced) {
			t.Error(err)
		}
		other.Close()
	})}
	t.Cleanup(h.end)
	return h
}

// endWhenAwaited ends the transaction when the relay logs that it waits for it.
func (h openTransaction) endWhenAwaited(c *relay.Config) {
	c.Logger = slog.New(messageHandler{c.Logger.Handler(), "waiting for another relay's open transaction", h.end})
}

// messageHandler is a log handler that calls do for each message that contains text.
type messageHandler struct {
	slog.Handler
	text string
	do   func()
}

func (h messageHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h messageHandler) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, h.text) {
		h.do()
	}
	return nil
}

func (h messageHandler) WithAttrs([]slog.Attr) slog.Handler { return h }

func (h messageHandler) WithGroup(string) slog.Handler { return h }
