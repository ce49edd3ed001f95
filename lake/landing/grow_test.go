package landing

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
)

// words is a table whose records name the column that they need: "column=text".
var words = declare.Table{
	Name: "words", Topic: "words", Grows: true,
	Columns: []columnar.Field{{Name: "said", Type: iceberg.PrimitiveTypes.String, Required: true}},
	Rows: func(to *columnar.Columns, _ *registry.Decoder) (declare.Rows, error) {
		return &wordRows{to}, nil
	},
}

type wordRows struct{ to *columnar.Columns }

func (w *wordRows) Append(_ context.Context, r declare.Record) (declare.Appended, error) {
	column, text, _ := strings.Cut(string(r.Value), "=")
	fields := w.to.Fields()
	at := slices.IndexFunc(fields, func(f columnar.Field) bool { return f.Name == column })
	if at < 0 {
		return declare.Appended{}, fmt.Errorf("%w: %s", declare.ErrGrow, column)
	}
	for i := range len(fields) - len(declare.Table{}.OriginColumns()) {
		switch to := w.to.Column(i).(*columnar.Bytes); {
		case fields[i].Name == "said":
			to.Append(r.Value)
		case i == at:
			to.AppendString(text)
		default:
			to.AppendNull()
		}
	}
	return declare.Appended{Rows: 1, AsOf: r.Time}, nil
}

func (w *wordRows) Grow(_ context.Context, have []columnar.Field, records iter.Seq[declare.Record]) ([]columnar.Field, error) {
	have = slices.Clone(have)
	for r := range records {
		column, _, _ := strings.Cut(string(r.Value), "=")
		if !slices.ContainsFunc(have, func(f columnar.Field) bool { return f.Name == column }) {
			have = append(have, columnar.Field{Name: column, Type: iceberg.PrimitiveTypes.String})
		}
	}
	return have, nil
}

// Whatever fails in the catalog or the lander while a table grows, each record lands once with its
// content.
func TestFaultsWhileGrowing(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		if err := s.producer.CreateTopic(t.Context(), words.Topic, partitions); err != nil {
			t.Fatal(err)
		}
		var want []string
		put := func(columns ...string) {
			for i, column := range columns {
				value := fmt.Sprintf("%s=%d", column, len(want))
				want = append(want, value)
				if err := s.producer.Commit(t.Context(), words.Topic, fetchtest.Record{Partition: int32(i % partitions), Value: []byte(value)}); err != nil {
					t.Fatal(err)
				}
			}
		}
		put("a", "b", "a", "c", "a", "b")
		var faults []string
		for _, kind := range []fault{refused, fails, lost} {
			faults = append(faults, string(kind))
		}
		for _, at := range []step{stepGrow, stepGrown, stepFetched, stepClosed, stepCommit, stepCommitted} {
			faults = append(faults, string(at))
		}
		for _, broken := range faults {
			config := fresh(t)
			config.Tables = []declare.Table{words}
			l := openLake(t, config)
			var n atomic.Int64
			l.SetCatalog(&faultyCatalog{Catalog: l.Catalog(), table: words.Name, fault: func() fault {
				if n.Add(1)%2 == 1 && slices.Contains([]fault{refused, fails, lost}, fault(broken)) {
					return fault(broken)
				}
				return works
			}})
			c := s.runConfig()
			c.Landers = 2
			var hits atomic.Int64
			c.hook = func(_ context.Context, _ string, at step) error {
				if string(at) == broken && hits.Add(1) <= 3 {
					return errFault
				}
				return nil
			}
			stop := start(t, l, c)
			landedWords(t, s, l)
			put("d_"+fmt.Sprint(len(want)), "a")
			landedWords(t, s, l)
			mustStop(t, stop)
			checkWords(t, broken, l, want)
		}
	})
}

func landedWords(t *testing.T, s *shop, l *lake.Lake) {
	t.Helper()
	ends, err := s.producer.Ends(t.Context(), words.Topic)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		have, err := l.Applied(t.Context(), words.Topic)
		for p, end := range ends {
			if err == nil && have[p] != end {
				err = fmt.Errorf("%d: %d of %d", p, have[p], end)
			}
		}
		return err
	})
}

func checkWords(t *testing.T, broken string, l *lake.Lake, want []string) {
	t.Helper()
	left := slices.Clone(want)
	err := l.Scan(t.Context(), words.Identifier(), func(rec arrow.RecordBatch) error {
		for i := range int(rec.NumRows()) {
			said, err := declare.ColumnOf[*array.String](rec, "said")
			if err != nil {
				return err
			}
			column, text, _ := strings.Cut(said.Value(i), "=")
			for j, f := range rec.Schema().Fields() {
				col, isText := rec.Column(j).(*array.String)
				if !isText || f.Name == "said" || f.Name == "topic" {
					continue
				}
				if has := !col.IsNull(i); has != (f.Name == column) || has && col.Value(i) != text {
					t.Errorf("%s: %s has %q in %s", broken, said.Value(i), col.Value(i), f.Name)
				}
			}
			at := slices.Index(left, said.Value(i))
			if at < 0 {
				t.Errorf("%s: unexpected or duplicate row %s", broken, said.Value(i))
				continue
			}
			left = slices.Delete(left, at, at+1)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("%s: %v are missing", broken, left)
	}
}
