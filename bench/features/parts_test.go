package main

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
)

// benchEntities are in memory, with ten orders each.
const benchEntities = 10_000

func newFilledStore(b *testing.B) *online.Store {
	b.Helper()
	store, err := online.New([]*features.Group{group()}, online.Options{})
	if err != nil {
		b.Fatal(err)
	}
	if err := fill(store, benchEntities, time.Now()); err != nil {
		b.Fatal(err)
	}
	return store
}

// reportCPU reports the allocations and, once the returned function is called, the processor time of the
// process per operation. On a shared machine, it says more than the elapsed time.
func reportCPU(b *testing.B) (done func()) {
	b.Helper()
	b.ReportAllocs()
	before := ownCPU()
	return func() { b.ReportMetric(float64((ownCPU()-before).Microseconds())/float64(b.N), "cpu-µs/op") }
}

// BenchmarkLookup is the computation alone: the vectors of one entity and of 100.
func BenchmarkLookup(b *testing.B) {
	store := newFilledStore(b)
	q, err := store.Compile("bench")
	if err != nil {
		b.Fatal(err)
	}
	for _, batch := range []int{1, 100} {
		b.Run(strconv.Itoa(batch), func(b *testing.B) {
			defer reportCPU(b)()
			var found []online.Vector
			for n := 0; b.Loop(); n++ {
				if found, err = store.Lookup(b.Context(), q, names(n, batch, benchEntities), time.Now(), found); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRequest is a request through the whole handler, without a connection.
func BenchmarkRequest(b *testing.B) {
	h := handler(filled{newFilledStore(b)}, slog.New(slog.DiscardHandler))
	for _, r := range []struct {
		name, path, contentType string
		body                    func(int) string
	}{
		{"feast/1", "/get-online-features", "application/json", feastBody(1, benchEntities)},
		{"feast/100", "/get-online-features", "application/json", feastBody(100, benchEntities)},
		{"service/1", featuresv1connect.FeatureServiceGetVectorsProcedure, "application/proto", vectorsBody(1, benchEntities)},
		{"service/100", featuresv1connect.FeatureServiceGetVectorsProcedure, "application/proto", vectorsBody(100, benchEntities)},
	} {
		b.Run(r.name, func(b *testing.B) {
			defer reportCPU(b)()
			for n := 0; b.Loop(); n++ {
				req := httptest.NewRequest(http.MethodPost, r.path, strings.NewReader(r.body(n)))
				req.Header.Set("Content-Type", r.contentType)
				res := httptest.NewRecorder()
				h.ServeHTTP(res, req)
				if res.Code != http.StatusOK {
					b.Fatal(res.Code, res.Body)
				}
			}
		})
	}
}
