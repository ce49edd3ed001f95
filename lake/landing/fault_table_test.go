package landing

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/internal/progress"
	"github.com/millrace/millrace/lake/keyset"
	"github.com/millrace/millrace/lake/tables"
)

// setProperty changes a property of a table, bypassing all guards.
func setProperty(t *testing.T, l *lake.Lake, of declare.Table, key, value string) {
	t.Helper()
	have, err := l.Load(t.Context(), of.Identifier())
	if err != nil {
		t.Fatal(err)
	}
	tx := have.NewTransaction()
	if err := tx.SetProperties(iceberg.Properties{key: value}); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// metadataFile returns the path of a table's metadata on the local disk.
func metadataFile(t *testing.T, l *lake.Lake, of declare.Table) string {
	t.Helper()
	have, err := l.Load(t.Context(), of.Identifier())
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(have.MetadataLocation(), "file://")
}

func stoppedTables(l *lake.Lake) (names []string) {
	for _, fault := range l.Stopped() {
		names = append(names, fault.Table)
	}
	return names
}

// Whatever is wrong with one table, at start or during landing, the others are opened, read and
// landed. The lake reports the table, the reason and the remedy. Once the fault is repaired, the
// table is landed again, with nothing missing or duplicated.
func TestOneTableStopsAlone(t *testing.T) {
	t.Parallel()
	next := progress.KeyNextPrefix + event.Order.Topic + ".2"
	swap := func(file string, with []byte) (back func() error, err error) {
		was, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if with == nil {
			err = os.Remove(file)
		} else {
			err = os.WriteFile(file, with, 0o600)
		}
		return func() error { return os.WriteFile(file, was, 0o600) }, err
	}
	for name, c := range map[string]struct {
		breaks func(t *testing.T, l *lake.Lake) (mend func() error)
		reason string
		remedy string
	}{
		"offset beyond the log": {func(t *testing.T, l *lake.Lake) func() error {
			have, err := l.Load(t.Context(), tables.OrdersEvents.Identifier())
			if err != nil {
				t.Fatal(err)
			}
			was := have.Properties()[next]
			setProperty(t, l, tables.OrdersEvents, next, "100000")
			return func() error { setProperty(t, l, tables.OrdersEvents, next, was); return nil }
		}, "is not in the log", "restore the topic"},
		"offset that is no number": {func(t *testing.T, l *lake.Lake) func() error {
			have, err := l.Load(t.Context(), tables.OrdersEvents.Identifier())
			if err != nil {
				t.Fatal(err)
			}
			was := have.Properties()[next]
			setProperty(t, l, tables.OrdersEvents, next, "many")
			return func() error { setProperty(t, l, tables.OrdersEvents, next, was); return nil }
		}, "many", "restore the topic"},
		"metadata is lost": {func(t *testing.T, l *lake.Lake) func() error {
			mend, err := swap(metadataFile(t, l, tables.OrdersEvents), nil)
			if err != nil {
				t.Fatal(err)
			}
			return mend
		}, "no such file", "restore the file"},
		"metadata is empty": {func(t *testing.T, l *lake.Lake) func() error {
			mend, err := swap(metadataFile(t, l, tables.OrdersEvents), []byte{})
			if err != nil {
				t.Fatal(err)
			}
			return mend
		}, "invalid metadata", "restore the file"},
		"metadata is garbage": {func(t *testing.T, l *lake.Lake) func() error {
			mend, err := swap(metadataFile(t, l, tables.OrdersEvents), []byte("\x00\x00\x00"))
			if err != nil {
				t.Fatal(err)
			}
			return mend
		}, "invalid metadata", "restore the file"},
		"a snapshot's list of files is lost": {func(t *testing.T, l *lake.Lake) func() error {
			have, err := l.Load(t.Context(), tables.OrdersEvents.Identifier())
			if err != nil {
				t.Fatal(err)
			}
			mend, err := swap(strings.TrimPrefix(have.CurrentSnapshot().ManifestList, "file://"), nil)
			if err != nil {
				t.Fatal(err)
			}
			return mend
		}, "no such file", "restore the file"},
		"sequence numbers are used up": {func(t *testing.T, l *lake.Lake) func() error {
			return rewrite(t, metadataFile(t, l, tables.OrdersEvents), `"last-sequence-number":\d+`, `"last-sequence-number":9223372036854775807`)
		}, "last-sequence-number is 9223372036854775807", "revert the change"},
		"updated in the future": {func(t *testing.T, l *lake.Lake) func() error {
			return rewrite(t, metadataFile(t, l, tables.OrdersEvents), `"last-updated-ms":\d+`, `"last-updated-ms":4102444800000`)
		}, "4102444800000", "revert the change"},
		"the newest snapshot is of the future": {func(t *testing.T, l *lake.Lake) func() error {
			return rewrite(t, metadataFile(t, l, tables.OrdersEvents), `("last-updated-ms"|"timestamp-ms"):\d+`, `$1:4102444800000`)
		}, "4102444800000", "revert the change"},
	} {
		for _, when := range []string{"stopped", "running"} {
			t.Run(name+"/"+when, func(t *testing.T) {
				t.Parallel()
				s := newShop(t)
				s.mustTrade(t, 50)
				config := ordersOnly(localLake(t))
				l := openLake(t, config)
				run := s.runConfig()
				run.retryInterval = 50 * time.Millisecond
				stop := start(t, l, run)
				s.landed(t, l)
				if when == "stopped" {
					mustStop(t, stop)
				}
				mend := c.breaks(t, l)
				if when == "stopped" {
					l = openLake(t, config)
					stop = start(t, l, run)
				}
				s.mustTrade(t, 50)
				eventually(t, func() error {
					if have := stoppedTables(l); !slices.Equal(have, []string{tables.OrdersEvents.Name}) {
						return fmt.Errorf("stopped: %v", have)
					}
					return nil
				})
				fault := l.Stopped()[0]
				if !strings.Contains(fault.Err.Error(), c.reason) || !strings.Contains(fault.Remedy, c.remedy) {
					t.Errorf("the reason is %v, the remedy %s", fault.Err, fault.Remedy)
				}
				s.landed(t, l) // the others
				if have, broken, err := l.Report(t.Context()); err != nil || len(have) < 2 || len(broken) != 1 || broken[0].Table != tables.OrdersEvents.Name {
					t.Errorf("%d tables are read, %v are not: %v", len(have), broken, err)
				}
				if err := mend(); err != nil {
					t.Fatal(err)
				}
				eventually(t, func() error {
					if have := stoppedTables(l); len(have) > 0 {
						return fmt.Errorf("stopped: %v", l.Stopped())
					}
					return nil
				})
				s.landed(t, l)
				mustStop(t, stop)
				s.check(t, l)
			})
		}
	}
}

// rewrite changes a file and returns a function that restores it.
func rewrite(t *testing.T, file, pattern, with string) (back func() error) {
	t.Helper()
	was, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	is := regexp.MustCompile(pattern).ReplaceAll(was, []byte(with))
	if err := os.WriteFile(file, is, 0o600); err != nil {
		t.Fatal(err)
	}
	return func() error { return os.WriteFile(file, was, 0o600) }
}

// If the only table cannot be landed, Run returns the reason.
func TestRunEndsWhereNoTableCanBeLanded(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.mustTrade(t, 5)
	config := localLake(t)
	config.Tables = []declare.Table{tables.OrdersEvents}
	l := openLake(t, config)
	stop := start(t, l, s.runConfig())
	s.landed(t, l)
	mustStop(t, stop)
	if err := os.Remove(metadataFile(t, l, tables.OrdersEvents)); err != nil {
		t.Fatal(err)
	}
	err := Run(t.Context(), openLake(t, config), s.runConfig())
	var fault *faults.TableError
	if !errors.As(err, &fault) || fault.Table != tables.OrdersEvents.Name {
		t.Fatalf("got %v", err)
	}
}

// pickyTopic has records that cannot be written. That is only noticed when a batch lands, and
// without identifying the record.
const pickyTopic = "picky"

// picky is a table that collects its rows, like a State table, and cannot write some of them.
func picky(bad func(value string) bool) declare.Table {
	return declare.Table{
		Name: "picky", Topic: pickyTopic,
		Columns: []columnar.Field{{Name: "said", Type: iceberg.PrimitiveTypes.String, Required: true}},
		Upserts: func(to *columnar.Columns, _ *registry.Decoder) (declare.Upserts, error) {
			return &pickyRows{to: to, bad: bad}, nil
		},
	}
}

type pickyRows struct {
	to   *columnar.Columns
	bad  func(string) bool
	have []declare.Record
}

func (p *pickyRows) Take(_ context.Context, r declare.Record) (declare.Appended, error) {
	r.Value = slices.Clone(r.Value)
	p.have = append(p.have, r)
	return declare.Appended{}, nil
}

var _ declare.Upserts = (*pickyRows)(nil)

func (p *pickyRows) Pending() bool                           { return len(p.have) > 0 }
func (p *pickyRows) Columns() []columnar.Field               { return p.to.Fields()[:1] }
func (p *pickyRows) LookupKeys(map[int32]int64) []string     { return nil }
func (p *pickyRows) NeedsKeys() bool                         { return false }
func (p *pickyRows) SetKeys(*keyset.Filter)                  {}
func (p *pickyRows) UncertainKeys() []string                 { return nil }
func (p *pickyRows) Found(arrow.RecordBatch, []string) error { return nil }
func (p *pickyRows) Landed(map[int32]int64)                  { p.have = nil }

func (p *pickyRows) Fold(each func(string, bool, func(), declare.Record) error) error {
	for _, r := range p.have {
		if p.bad(string(r.Value)) {
			return errors.New("one of the rows cannot be written")
		}
		write := func() { p.to.Column(0).(*columnar.Bytes).Append(r.Value) }
		if err := each(string(r.Value), false, write, r); err != nil {
			return err
		}
	}
	return nil
}

// pickyWorld puts values on the topic, spread over its partitions, and lands them.
func pickyWorld(t *testing.T, values []string) (*shop, lake.Config) {
	t.Helper()
	s := newShop(t)
	if err := s.producer.CreateTopic(t.Context(), pickyTopic, partitions); err != nil {
		t.Fatal(err)
	}
	records := make([]fetchtest.Record, len(values))
	for i, v := range values {
		records[i] = fetchtest.Record{Partition: int32(i % partitions), Key: []byte("k"), Value: []byte(v)}
	}
	if err := s.producer.Commit(t.Context(), pickyTopic, records...); err != nil {
		t.Fatal(err)
	}
	return s, localLake(t)
}

// letterBox collects dead letters.
type letterBox struct {
	mu   sync.Mutex
	have map[string]string // values, by what names them
}

func (p *letterBox) write(_ context.Context, records []DeadLetter) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.have == nil {
		p.have = map[string]string{}
	}
	for _, r := range records {
		p.have[fmt.Sprintf("%s|%s|%d|%d", r.Sink, r.Topic, r.Partition, r.Offset)] = string(r.Value)
	}
	return nil
}

func (p *letterBox) values() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Values(p.have))
}

func said(t *testing.T, l *lake.Lake, of declare.Table) (all []string) {
	t.Helper()
	err := l.Scan(t.Context(), of.Identifier(), func(rec arrow.RecordBatch) error {
		c, err := declare.ColumnOf[*array.String](rec, "said")
		if err != nil {
			return err
		}
		for i := range int(rec.NumRows()) {
			all = append(all, strings.Clone(c.Value(i)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func numbered(n int, bad ...int) (values, good, spoilt []string) {
	for i := range n {
		v := fmt.Sprintf("good %04d", i)
		if slices.Contains(bad, i) {
			v = fmt.Sprintf("bad %04d", i)
			spoilt = append(spoilt, v)
		} else {
			good = append(good, v)
		}
		values = append(values, v)
	}
	return values, good, spoilt
}

func isBad(value string) bool { return strings.HasPrefix(value, "bad") }

// If an error does not identify its record, the record is found and becomes a dead letter. All
// others land once.
func TestUnnamedRecordsAreFound(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string][]int{
		"none": {}, "first": {0}, "last": {999}, "one": {500}, "neighbours of a partition": {400, 404, 408}, "several": {1, 17, 333, 334, 335, 336, 990},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			values, good, spoilt := numbered(1000, bad...)
			s, config := pickyWorld(t, values)
			config.Tables = []declare.Table{picky(isBad)}
			l := openLake(t, config)
			letters := new(letterBox)
			c := s.runConfig()
			c.WriteDeadLetters, c.Landers = letters.write, 2
			stop := start(t, l, c)
			pickyLanded(t, s, l)
			mustStop(t, stop)
			if have := said(t, l, config.Tables[0]); !slices.Equal(have, good) {
				t.Errorf("%d rows, want %d", len(have), len(good))
			}
			if have := letters.values(); !slices.Equal(have, spoilt) {
				t.Errorf("dead letters: %v, want %v", have, spoilt)
			}
		})
	}
}

func pickyLanded(t *testing.T, s *shop, l *lake.Lake) {
	t.Helper()
	ends, err := s.producer.Ends(t.Context(), pickyTopic)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		have, err := l.Applied(t.Context(), pickyTopic)
		for p, end := range ends {
			if err == nil && have[p] != end {
				err = fmt.Errorf("%d: %d of %d", p, have[p], end)
			}
		}
		return err
	})
}

// If no record at all can be written, the table is to blame: there are no dead letters, and Run
// reports it.
func TestWhereNothingCanBeWrittenNothingIsParked(t *testing.T) {
	t.Parallel()
	values, _, _ := numbered(100)
	s, config := pickyWorld(t, values)
	config.Tables = []declare.Table{picky(func(string) bool { return true })}
	l := openLake(t, config)
	letters := new(letterBox)
	c := s.runConfig()
	c.WriteDeadLetters = letters.write
	err := Run(t.Context(), l, c)
	var fault *faults.TableError
	if !errors.As(err, &fault) || !strings.Contains(err.Error(), "no record can be written") {
		t.Errorf("got %v", err)
	}
	if have := letters.values(); len(have) > 0 {
		t.Errorf("dead letters: %v", have)
	}
}

// An unwritable record without neighbours on its topic becomes a dead letter, too.
func TestOneUnwritableRecordAlone(t *testing.T) {
	t.Parallel()
	s, config := pickyWorld(t, []string{"bad"})
	config.Tables = []declare.Table{picky(isBad)}
	l := openLake(t, config)
	letters := new(letterBox)
	c := s.runConfig()
	c.WriteDeadLetters = letters.write
	stop := start(t, l, c)
	pickyLanded(t, s, l)
	mustStop(t, stop)
	if have := letters.values(); !slices.Equal(have, []string{"bad"}) {
		t.Errorf("dead letters: %v", have)
	}
}

// A lander may crash between writing a dead letter and the commit that skips it. Then every record
// is in the table once or among the dead letters, under one key however often it was written.
func TestDiesBetweenDeadLetterAndCommit(t *testing.T) {
	t.Parallel()
	for _, at := range []step{stepDeadLetters, stepDeadLettersWritten, stepClosed, stepCommit, stepCommitted} {
		t.Run(string(at), func(t *testing.T) {
			t.Parallel()
			values, good, spoilt := numbered(200, 0, 50, 51, 199)
			s, config := pickyWorld(t, values)
			config.Tables = []declare.Table{picky(isBad)}
			letters := new(letterBox)
			dies := 2
			if at == stepDeadLetters || at == stepDeadLettersWritten { // the last life has none left to come to
				dies = 1
			}
			for range 4 { // lives
				l := openLake(t, config)
				c := s.runConfig()
				c.WriteDeadLetters = letters.write
				ctx, die := context.WithCancel(t.Context())
				seen := 0
				c.hook = func(_ context.Context, _ string, have step) error {
					if have != at {
						return nil
					}
					if seen++; seen == dies {
						die()
						return errFault
					}
					return nil
				}
				if err := Run(ctx, l, c); err != nil {
					t.Fatal(err)
				}
				die()
			}
			l := openLake(t, config)
			c := s.runConfig()
			c.WriteDeadLetters = letters.write
			stop := start(t, l, c)
			pickyLanded(t, s, l)
			mustStop(t, stop)
			if have := said(t, l, config.Tables[0]); !slices.Equal(have, good) {
				t.Errorf("%d rows, want %d", len(have), len(good))
			}
			if have := letters.values(); !slices.Equal(have, spoilt) {
				t.Errorf("dead letters: %v, want %v", have, spoilt)
			}
		})
	}
}
