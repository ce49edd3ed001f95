package feast

import (
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"testing"

	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"
)

// FuzzCommand: a command is resolved to columns that exist, each once, or is a mistake of the client.
func FuzzCommand(f *testing.F) {
	for _, c := range []any{ask(false, "activity:orders_7d", "stock:sold_7d"), ask(true, "worth:orders_7d", "value:orders_7d"),
		ask(false, "activity:*"), map[string]any{"api": historical, "feature_refs": []string{":"}}} {
		b, err := json.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseCommand(b)
		var p *plan
		if err == nil {
			p, err = c.resolve(groups())
		}
		if err != nil {
			if mistake := (*fault)(nil); !errors.As(err, &mistake) {
				t.Fatalf("%q: %v is not told to the client", b, err)
			}
			return
		}
		names := map[string]bool{}
		for _, o := range p.outputs {
			if names[o.name] {
				t.Errorf("%q: two columns %s", b, o.name)
			}
			names[o.name] = true
			if j := p.joins[o.join]; o.column >= len(j.outputs) {
				t.Errorf("%q: %s is column %d of %v", b, o.name, o.column, j.outputs)
			}
		}
		if len(names) != len(c.Features) {
			t.Errorf("%q: %d columns of %d features", b, len(names), len(c.Features))
		}
	})
}

// recorded are the messages of a stream.
type recorded []*flight.FlightData

// Recv implements flight.DataStreamReader.
func (r *recorded) Recv() (*flight.FlightData, error) {
	if len(*r) == 0 {
		return nil, io.EOF
	}
	first := (*r)[0]
	*r = (*r)[1:]
	return first, nil
}

// Send implements flight.DataStreamWriter.
func (r *recorded) Send(d *flight.FlightData) error {
	*r = append(*r, &flight.FlightData{DataHeader: append([]byte{}, d.DataHeader...),
		DataBody: append([]byte{}, d.DataBody...)})
	return nil
}

// FuzzEntities: whatever a client sends as a table becomes a spine, or is a mistake of the client.
func FuzzEntities(f *testing.F) {
	for _, compression := range [][]ipc.Option{nil, {ipc.WithZstd()}} {
		var sent recorded
		rows := table([]row{{customer: "c1", sku: "1", at: noon}, {customer: "c2", sku: "2", at: noon, known: noon}}, 2)
		w := flight.NewRecordWriter(&sent, append(compression, ipc.WithSchema(rows[0].Schema()))...)
		if err := errors.Join(w.Write(rows[0]), w.Close()); err != nil {
			f.Fatal(err)
		}
		f.Add(sent[0].DataHeader, sent[1].DataHeader, sent[1].DataBody)
	}
	f.Fuzz(func(t *testing.T, schema, header, body []byte) {
		e, err := receive(&recorded{{DataHeader: schema}, {DataHeader: header, DataBody: body}})
		if err == nil {
			var at, known int
			if at, known, err = e.times(); err == nil {
				times := []int{at}
				if known >= 0 {
					times = append(times, known)
				}
				err = errors.Join(e.check(nil), e.spine(filepath.Join(t.TempDir(), "spine.parquet"), "customer_id", times...))
			}
		}
		if mistake := (*fault)(nil); err != nil && !errors.As(err, &mistake) {
			t.Fatalf("%v is not told to the client", err)
		}
	})
}
