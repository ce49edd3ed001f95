package flags

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka"
)

// Writer changes flags. It is safe for concurrent use, and any number of processes may have one: a
// change that is overtaken by another one starts again.
type Writer struct {
	cfg   WriterConfig
	admin *kafka.Admin
	turn  chan struct{}                           // of the only change that this writer makes now
	step  func(ctx context.Context, s step) error // for tests; nil: none
}

// WriterConfig configures a Writer.
type WriterConfig struct {
	Kafka kafka.Config
	// TransactionalID is the same for all writers of a cluster: it is what orders their changes.
	TransactionalID string
	// Reader must run.
	Reader *Reader
	// Declared are the flags that the program reads. Their types are fixed.
	Declared []Declaration
	Now      func() time.Time
}

// step is a point of a change at which tests interrupt it. Its name is also that of a failpoint.
type step string

const (
	stepRead      step = "read"      // the flag was read, and nothing is written
	stepValue     step = "value"     // the value is written, and its entry of the history is not
	stepCommitted step = "committed" // the transaction is committed, and the answer is not known
)

// NewWriter returns a writer. Close releases its client.
func NewWriter(cfg WriterConfig) (*Writer, error) {
	if cfg.Kafka.Logger == nil {
		cfg.Kafka.Logger = slog.Default()
	}
	admin, err := kafka.NewAdmin(cfg.Kafka)
	if err != nil {
		return nil, err
	}
	return &Writer{cfg: cfg, admin: admin, turn: make(chan struct{}, 1)}, nil
}

// Close releases the client.
func (w *Writer) Close() { w.admin.Close() }

// Edit is what Set changes. What is nil remains as it is.
type Edit struct {
	Name        string
	Type        Type // may be empty if the flag exists or is declared
	Description *string
	// Value and Rollout exclude each other, and one is required. The order of Rollout is that of the
	// flag's variants.
	Value   json.RawMessage
	Rollout []Share
	// Revision is what the flag's revision must be, or Absent. Nil: any.
	Revision *int64
	By       string
	Reason   string
}

// Absent is the revision of a flag that does not exist.
const Absent = -1

// Errors of a change, besides ErrInvalid.
var (
	// ErrNotFound means that a flag does not exist.
	ErrNotFound = errors.New("unknown flag")
	// ErrConflict means that the flag does not have the revision that it must have.
	ErrConflict = errors.New("the flag was changed meanwhile")
)

// Set sets a flag, and creates it if it does not exist.
func (w *Writer) Set(ctx context.Context, e Edit) (Flag, error) {
	change := w.change(e.By, e.Reason)
	return w.run(ctx, e.Name, change, e.Revision, func(present *Flag) (*Flag, error) {
		f := Flag{Name: e.Name, Type: e.Type, Change: change}
		fixed, why := w.declared(e.Name), "the program reads it so"
		if present != nil {
			f.Description = present.Description
			fixed, why = present.Type, "delete the flag first to change it"
		}
		if f.Type == "" {
			f.Type = fixed
		}
		if fixed != "" && f.Type != fixed {
			return nil, invalid("%s is of type %s, not %s: %s", e.Name, fixed, f.Type, why)
		}
		if e.Description != nil {
			f.Description = *e.Description
		}
		if e.Value != nil {
			f.Value = compact(e.Value)
		}
		if e.Rollout != nil {
			var before []Variant
			if present != nil {
				before = present.Rollout
			}
			var err error
			if f.Rollout, err = allocate(before, e.Rollout); err != nil {
				return nil, err
			}
		}
		return &f, f.Validate()
	})
}

// declared returns the type of a declared flag. It is empty for others.
func (w *Writer) declared(name string) Type {
	for _, d := range w.cfg.Declared {
		if d.Name == name {
			return d.Type
		}
	}
	return ""
}

// Delete deletes a flag. Its history remains. revision is what the flag's revision must be; nil: any.
func (w *Writer) Delete(ctx context.Context, name string, revision *int64, by, reason string) error {
	change := w.change(by, reason)
	_, err := w.run(ctx, name, change, revision, func(present *Flag) (*Flag, error) {
		if present == nil {
			return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
		}
		return nil, nil
	})
	return err
}

// change returns a change that is made now.
func (w *Writer) change(by, reason string) Change {
	return Change{ID: uuid.Must(uuid.NewV7()).String(), By: by, Reason: reason, At: w.cfg.Now().UTC().Truncate(time.Millisecond)}
}

// run makes a change. edit returns the flag after it, nil to delete it, from the present one, nil if
// there is none. run repeats the change if another writer has taken over meanwhile.
func (w *Writer) run(ctx context.Context, name string, c Change, revision *int64,
	edit func(present *Flag) (*Flag, error)) (Flag, error) {
	if err := checkName("name", name); err != nil {
		return Flag{}, err
	}
	for what, text := range map[string]string{"caller": c.By, "reason": c.Reason} {
		if err := checkText(what, text); err != nil {
			return Flag{}, err
		}
	}
	select {
	case w.turn <- struct{}{}:
		defer func() { <-w.turn }()
	case <-ctx.Done():
		return Flag{}, fmt.Errorf("wait for other changes of flags: %w", context.Cause(ctx))
	}
	a := attempt{Writer: w, name: name, change: c, revision: revision, edit: edit}
	for waits := backoff.Call.Start(); ; {
		f, err := a.try(ctx)
		if err == nil || !errors.Is(err, kafka.ErrFenced) && !errors.Is(err, kafka.ErrMustAbort) && !errors.Is(err, errUnknown) {
			return f, err
		}
		if !waits.Wait(ctx) {
			return Flag{}, fmt.Errorf("change flag %s: %w: %w", name, context.Cause(ctx), err)
		}
	}
}

// errUnknown means that a transaction may be committed.
var errUnknown = errors.New("it is not known whether the change was made")

// attempt is a change that is tried until it is known what has become of it.
type attempt struct {
	*Writer
	name     string
	change   Change
	revision *int64
	edit     func(present *Flag) (*Flag, error)
	unknown  bool // an earlier try may have committed
}

// try tries once. Each try has a producer of its own: changes are rare, and a producer whose answer was
// lost is of no use.
func (a *attempt) try(ctx context.Context) (Flag, error) {
	producer, err := kafka.NewTransactionalProducer(a.cfg.Kafka, a.cfg.TransactionalID)
	if err != nil {
		return Flag{}, err
	}
	defer producer.Close()
	// From here on, nobody else can commit, and what others have begun has ended.
	if err := producer.Init(ctx); err != nil {
		return Flag{}, err
	}
	end, err := a.catchUp(ctx)
	if err != nil {
		return Flag{}, err
	}
	present, exists := a.cfg.Reader.Get(a.name)
	if a.unknown {
		if done, err := a.made(ctx); done || err != nil {
			return present, err
		}
	}
	var now *Flag
	before := int64(Absent)
	if exists {
		now, before = &present, present.Revision
	}
	if a.revision != nil && *a.revision != before {
		return Flag{}, conflict(now, *a.revision)
	}
	after, err := a.edit(now)
	if err != nil {
		return Flag{}, err
	}
	records, err := a.records(before, after)
	if err != nil {
		return Flag{}, err
	}
	if err := a.at(ctx, stepRead); err != nil {
		return Flag{}, err
	}
	if err := a.commit(ctx, producer, records); err != nil {
		return Flag{}, err
	}
	// The change is made. Wait, so that the caller sees it in this process.
	if _, err := a.catchUp(ctx); err != nil {
		a.cfg.Kafka.Logger.Warn("flags: the change is made, but this process has not read it yet", "flag", a.name, "error", err)
	}
	if after == nil {
		return Flag{}, nil
	}
	after.Revision = end // its record was the next one
	return *after, nil
}

// catchUp blocks until the reader has read what is on the topic, and returns its end. The caller's
// producer is the only one that writes.
func (w *Writer) catchUp(ctx context.Context) (end int64, err error) {
	ends, err := w.admin.HighWatermarks(ctx, Topic)
	if err != nil {
		return 0, err
	}
	return ends[0], w.cfg.Reader.reach(ctx, ends[0])
}

// conflict returns the error of a change whose revision is not the present one.
func conflict(present *Flag, want int64) error {
	switch {
	case present == nil:
		return fmt.Errorf("%w: it does not exist, and its revision was to be %d", ErrConflict, want)
	case want == Absent:
		return fmt.Errorf("%w: it exists, with revision %d", ErrConflict, present.Revision)
	}
	by := present.Change.By
	if by == "" {
		by = "a caller without a name"
	}
	return fmt.Errorf("%w: it has revision %d, not %d; %s changed it at %s: get it, and set it with the revision that it has",
		ErrConflict, present.Revision, want, by, present.Change.At.Format(time.RFC3339))
}

// records returns the flag's record and the entry of the history.
func (a *attempt) records(before int64, after *Flag) ([]kafka.Record, error) {
	var value []byte
	if after != nil {
		var err error
		if value, err = encode(*after); err != nil {
			return nil, err
		}
		if err := a.fits(len(value)); err != nil {
			return nil, err
		}
	}
	log, err := encodeEntry(Entry{Change: a.change, Before: before}, value)
	if err != nil {
		return nil, err
	}
	key := []byte(a.name)
	return []kafka.Record{{Topic: Topic, Key: key, Value: value}, {Topic: HistoryTopic, Key: key, Value: log}}, nil
}

// fits checks the limits of all flags together, with a record of size bytes for this one.
func (a *attempt) fits(size int) error {
	flags := 1
	for _, f := range a.cfg.Reader.All() {
		if f.Name == a.name {
			continue
		}
		b, err := encode(f)
		if err != nil {
			return err
		}
		flags, size = flags+1, size+len(b)
	}
	if flags > MaxFlags || size > maxBytes {
		return invalid("there are %d flags with %d bytes; at most %d and %d are allowed: delete some", flags, size, MaxFlags, maxBytes)
	}
	return nil
}

// abortTimeout bounds the end of a transaction that failed. Until it has ended, readers see nothing
// that is behind it.
const abortTimeout = 5 * time.Second

// commit writes the records in one transaction.
func (a *attempt) commit(ctx context.Context, producer *kafka.TransactionalProducer, records []kafka.Record) error {
	if err := producer.Begin(); err != nil {
		return err
	}
	err := a.produce(ctx, producer, records)
	known := err != nil // what has become of the transaction
	if err == nil {
		err = producer.Commit(ctx)
		known = errors.Is(err, kafka.ErrFenced) || errors.Is(err, kafka.ErrMustAbort) || errors.Is(err, kafka.ErrTooLarge)
	}
	if err == nil {
		err = a.at(ctx, stepCommitted)
	}
	switch {
	case err == nil:
		return nil
	case !known:
		a.unknown = true
		return fmt.Errorf("%w: %w", errUnknown, err)
	case errors.Is(err, kafka.ErrFenced):
		return err // the other writer has aborted the transaction
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	return errors.Join(err, producer.Abort(ctx))
}

// produce adds the records to the transaction.
func (a *attempt) produce(ctx context.Context, producer *kafka.TransactionalProducer, records []kafka.Record) error {
	for i, r := range records {
		if err := producer.Produce(ctx, r); err != nil {
			return err
		}
		if i == 0 {
			if err := a.at(ctx, stepValue); err != nil {
				return err
			}
		}
	}
	return nil
}

// at marks a step, for the kill matrix and for the package's own tests.
func (w *Writer) at(ctx context.Context, s step) error {
	if err := failpoint.Hit("flags." + string(s)); err != nil {
		return err
	}
	if w.step == nil {
		return nil
	}
	return w.step(ctx, s)
}

// made reports whether the history has the change. The flag itself may have been changed again.
func (a *attempt) made(ctx context.Context) (bool, error) {
	found := false
	err := readHistory(ctx, a.admin, a.cfg.Kafka, a.name, func(e Entry) { found = found || e.Change.ID == a.change.ID })
	return found, err
}
