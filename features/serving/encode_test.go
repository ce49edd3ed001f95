package serving

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/online"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
)

// TestEncodedVectors: vectors that are encoded without messages are the same messages for a reader, and
// as many bytes.
func TestEncodedVectors(t *testing.T) {
	text := rapid.String()
	value := rapid.OneOf(
		rapid.Just(exact.Result{}),
		rapid.Map(rapid.Int64(), func(n int64) exact.Result { return exact.Result{Kind: exact.IntResult, Int: n} }),
		rapid.Map(rapid.Float64(), func(f float64) exact.Result { return exact.Result{Kind: exact.FloatResult, Float: f} }),
		rapid.Map(text, func(s string) exact.Result { return exact.Result{Kind: exact.TextResult, Text: s} }),
		rapid.Map(rapid.SliceOfN(text, 0, 40), func(all []string) exact.Result {
			return exact.Result{Kind: exact.TextsResult, Texts: all}
		}))
	places := []*online.Positions{
		{}, {AsOf: time.UnixMicro(1), Topics: []online.TopicPositions{{Topic: "t", Partitions: []feed.Position{{Next: 7}}}}}}
	rapid.Check(t, func(t *rapid.T) {
		q := &online.Query{Group: &features.Group{Name: "g", Version: 1}}
		for i := range rapid.IntRange(1, 5).Draw(t, "outputs") {
			q.Outputs = append(q.Outputs, features.Output{Name: fmt.Sprint("f", i)})
		}
		var names []string
		var found []online.Vector
		for range rapid.IntRange(0, 4).Draw(t, "entities") {
			names = append(names, text.Draw(t, "entity"))
			found = append(found, online.Vector{
				Found:     rapid.Bool().Draw(t, "found"),
				Newest:    rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(-1e15, 1e16)).Draw(t, "newest"),
				Values:    rapid.SliceOfN(value, len(q.Outputs), len(q.Outputs)).Draw(t, "values"),
				Empty:     rapid.SliceOfN(rapid.Bool(), len(q.Outputs), len(q.Outputs)).Draw(t, "empty"),
				Positions: rapid.SampledFrom(places).Draw(t, "positions"),
			})
		}
		at := time.UnixMicro(rapid.Int64Range(0, 1e16).Draw(t, "at"))
		want := response(q, names, found, at, false)
		encoded, err := proto.Marshal(response(q, names, found, at, true))
		if err != nil {
			t.Fatal(err)
		}
		got := &featuresv1.GetVectorsResponse{}
		if err := proto.Unmarshal(encoded, got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, want) || len(encoded) != proto.Size(want) {
			t.Fatalf("%d bytes, want %d\n%s\nwant %s", len(encoded), proto.Size(want), protojson.Format(got), protojson.Format(want))
		}
	})
}
