package external_test

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/external"
	"github.com/millrace/millrace/lake/faults"
	kafkaserver "github.com/millrace/millrace/test/servers/kafka"
)

// opens is the result of landing a topic in the world's table.
func (w *world) opens(t *testing.T, topic string) error {
	t.Helper()
	c := w.config
	c.Tables = []declare.Table{external.JSON(w.name, topic, false)}
	l, err := lake.Open(t.Context(), c)
	if err != nil {
		return err
	}
	return l.Close()
}

// A table is landed from one topic. Another one is refused with a remedy before anything is
// written.
func TestTableBelongsToOneTopic(t *testing.T) {
	t.Parallel()
	const says = "table web.things belongs to topic %; choose another with --table"
	for name, prepare := range map[string]func(t *testing.T, w *world){
		"landed": func(t *testing.T, w *world) { w.put(t, 0, `{"a":1}`); w.land(t, external.JSON(w.name, w.topic, false)) },
		"empty":  func(*testing.T, *world) {},
		"another's": func(t *testing.T, w *world) {
			w.make(t, iceberg.NestedField{ID: 1, Name: "a", Type: iceberg.PrimitiveTypes.Int64})
		},
		"of a dotted topic": func(_ *testing.T, w *world) { w.topic = "tn.orders" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, kafkaserver.Embedded(t))
			prepare(t, w)
			if err := w.opens(t, w.topic); err != nil {
				t.Fatal(err)
			}
			for _, other := range []string{"tn-orders", strings.ToUpper(w.topic), w.topic + ".0"} {
				err := w.opens(t, other)
				owned := (*faults.OwnedError)(nil)
				if want := strings.ReplaceAll(says, "%", w.topic); !errors.As(err, &owned) || err.Error() != want {
					t.Errorf("topic %s: %v, want %s", other, err, want)
				}
			}
			if err := w.opens(t, w.topic); err != nil {
				t.Errorf("its own topic: %v", err)
			}
		})
	}
}

// Of two topics that begin at the same moment, one gets the table.
func TestOneOfTwoTopicsGetsATable(t *testing.T) {
	t.Parallel()
	for range 5 {
		w := newWorld(t, kafkaserver.Embedded(t))
		errs := make([]error, 2)
		var g sync.WaitGroup
		for i, topic := range []string{"tn.orders", "tn-orders"} {
			g.Go(func() { errs[i] = w.opens(t, topic) })
		}
		g.Wait()
		refused := 0
		for _, err := range errs {
			if owned := (*faults.OwnedError)(nil); errors.As(err, &owned) {
				refused++
			} else if err != nil {
				t.Error(err)
			}
		}
		if refused != 1 {
			t.Errorf("%d are refused: %v", refused, errs)
		}
	}
}
