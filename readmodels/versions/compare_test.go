package versions_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/readmodels"
	"github.com/millrace/millrace/readmodels/versions"
)

// documents are the contents of a view in memory. read is called before each read.
type documents struct {
	mu   sync.Mutex
	all  map[string]readmodels.Item
	read func()
}

func (d *documents) Items(_ context.Context, fn func(string, readmodels.Item) error) error {
	d.mu.Lock()
	all := maps.Clone(d.all)
	d.mu.Unlock()
	for key, item := range all {
		if err := fn(key, item); err != nil {
			return err
		}
	}
	return nil
}

func (d *documents) Item(_ context.Context, keys []string) (map[string]readmodels.Item, error) {
	if d.read != nil {
		d.read()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	found := map[string]readmodels.Item{}
	for _, key := range keys {
		if item, ok := d.all[key]; ok {
			found[key] = item
		}
	}
	return found, nil
}

func order(version uint64, country string) readmodels.Item {
	return readmodels.Item{Version: version, Content: &orderv1.OrderStatus{Version: version, Country: country}}
}

// TestCompare compares random contents with a naive comparison.
func TestCompare(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) map[string]readmodels.Item {
			all := map[string]readmodels.Item{}
			for i := range rapid.IntRange(0, 1200).Draw(t, name) {
				if key := fmt.Sprint(i); i%97 != 5 || rapid.Bool().Draw(t, "has") {
					all[key] = order(1, []string{"GB", "DE"}[(i%101)/100*rapid.IntRange(0, 1).Draw(t, "other")])
				}
			}
			return all
		}
		serving, version := draw("serving"), draw("version")
		var equal, different uint64
		for key, item := range serving {
			if other, ok := version[key]; ok && proto.Equal(item.Content, other.Content) {
				equal++
			} else {
				different++
			}
		}
		for key := range version {
			if _, ok := serving[key]; !ok {
				different++
			}
		}
		got, err := versions.Compare(t.Context(), &documents{all: serving}, &documents{all: version},
			versions.CompareConfig{Samples: 3})
		if err != nil || got.Equal != equal || got.Different != different {
			t.Fatalf("%+v, %v; want %d equal and %d different", got, err, equal, different)
		}
		if want := min(different, 3); uint64(len(got.Differences)) != want {
			t.Errorf("%d differences, want %d", len(got.Differences), want)
		}
		if same := got.Serving == got.Version; different == 0 && !same {
			t.Error("equal documents have different digests")
		}
	})
}

// TestDifferences checks how each kind of difference is reported.
func TestDifferences(t *testing.T) {
	t.Parallel()
	secret := order(1, "GB")
	secret.Private = true
	for _, c := range []struct {
		serving, version map[string]readmodels.Item
		want             versions.Difference
	}{
		{map[string]readmodels.Item{"a": order(3, "GB")}, nil, versions.Difference{Kind: versions.Missing, Serving: 3}},
		{nil, map[string]readmodels.Item{"a": order(3, "GB")}, versions.Difference{Kind: versions.Additional, Version: 3}},
		{map[string]readmodels.Item{"a": order(3, "GB")}, map[string]readmodels.Item{"a": order(2, "GB")},
			versions.Difference{Kind: versions.Behind, Serving: 3, Version: 2}},
		{map[string]readmodels.Item{"a": order(1, "GB")}, map[string]readmodels.Item{"a": order(1, "")},
			versions.Difference{Kind: versions.Content, Serving: 1, Version: 1,
				Fields: []versions.Field{{Name: "country", Serving: `{"country":"GB"}`}}}},
		{map[string]readmodels.Item{"a": secret}, map[string]readmodels.Item{"a": order(1, "DE")},
			versions.Difference{Key: "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
				Kind: versions.Content, Serving: 1, Version: 1, Fields: []versions.Field{{Name: "country"}}}},
	} {
		c.want.Key = cmp.Or(c.want.Key, "a")
		got, err := versions.Compare(t.Context(), &documents{all: c.serving}, &documents{all: c.version},
			versions.CompareConfig{Samples: 1})
		if err != nil || got.Different != 1 || len(got.Differences) != 1 {
			t.Errorf("%+v, %v; want one difference", got, err)
			continue
		}
		d := got.Differences[0]
		for i := range d.Fields { // the encoder puts spaces where it likes
			d.Fields[i].Serving = strings.ReplaceAll(d.Fields[i].Serving, " ", "")
		}
		if d.Key != c.want.Key || d.Kind != c.want.Kind || d.Serving != c.want.Serving || d.Version != c.want.Version ||
			!slices.Equal(d.Fields, c.want.Fields) {
			t.Errorf("the difference is %+v, want %+v", d, c.want)
		}
	}
}

// TestCompareWhileEventsArrive checks that a document whose version differs at every read is compared
// at a version that both sides have had.
func TestCompareWhileEventsArrive(t *testing.T) {
	t.Parallel()
	serving := &documents{all: map[string]readmodels.Item{"a": order(2, "GB")}}
	version := &documents{all: map[string]readmodels.Item{"a": order(1, "GB")}}
	next := uint64(2)
	version.read = func() { // one side is always a version ahead
		next++
		serving.mu.Lock()
		serving.all["a"] = order(next, "GB")
		serving.mu.Unlock()
		version.mu.Lock()
		version.all["a"] = order(next-1, "GB")
		version.mu.Unlock()
	}
	got, err := versions.Compare(t.Context(), serving, version, versions.CompareConfig{Samples: 1, Wait: time.Minute})
	if err != nil || got.Equal != 1 || got.Different != 0 {
		t.Errorf("%+v, %v; want one equal document", got, err)
	}
}
