package serving_test

import (
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/features/online"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/streams"
)

// A lookup by the name of a group is answered by its live version, also after another one has become
// live. An ID asks for a version.
func TestLiveVersion(t *testing.T) {
	before := groups()[0]
	next := *before
	next.Version, next.Features = 3, slices.Clone(before.Features[:1])
	store, err := online.New(append(groups()[1:], &next, before), online.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{store: store, watermarks: streams.NewWatermarks()}
	c, overFeast := client(t, b), feastHandler(b)
	check := func(group, want string, features int) {
		t.Helper()
		for range 2 { // the second one is answered by a prepared query
			res, err := c.GetVectors(t.Context(), connect.NewRequest(&featuresv1.GetVectorsRequest{
				Group: group, Entities: []string{"c1"}}))
			if err != nil {
				t.Fatal(err)
			}
			if res.Msg.GetGroup() != want || len(res.Msg.GetFeatures()) != features {
				t.Errorf("%s is answered by %s with %s, want %s with %d features", group, res.Msg.GetGroup(),
					strings.Join(res.Msg.GetFeatures(), " "), want, features)
			}
		}
	}
	checkFeast := func(request, want string) {
		t.Helper()
		for range 2 { // the second one is answered by a plan that was kept
			body := `{` + request + `,"entities":{"customer_id":["c1"]},"include_feature_view_version_metadata":true}`
			if status, got := feast(t, overFeast, body); !strings.Contains(got, want) {
				t.Errorf("%s is answered by %d %s, want %s", request, status, got, want)
			}
		}
	}
	check("activity", "activity/v2", 6)
	check("activity/v3", "activity/v3", 2)
	checkFeast(`"features":["activity:orders_7d"]`, `"version":2`)
	checkFeast(`"features":["activity/v3:orders_7d"]`, `"version":3`)
	checkFeast(`"feature_service":"activity"`, `"version":2`)
	store.SetLive(&next)
	check("activity", "activity/v3", 2)
	check("activity/v2", "activity/v2", 6)
	checkFeast(`"features":["activity:orders_7d"]`, `"version":3`)
	checkFeast(`"features":["activity/v2:orders_7d"]`, `"version":2`)
	checkFeast(`"feature_service":"activity"`, `"version":3`)
	check("stock", "stock/v1", 1)
}
