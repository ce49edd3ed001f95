package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"image/png"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"google.golang.org/protobuf/types/known/timestamppb"

	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
)

// profiler answers profiles in which the latest day is as the reference, except for what is planted:
// the feature mean has only nulls, orders is ten times as high, and the source visits is 30 h old.
type profiler struct {
	featuresv1connect.UnimplementedFeatureServiceHandler
	planted bool
	asked   []*featuresv1.ProfileGroupRequest
}

var checkedAt = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// ListGroups implements featuresv1connect.FeatureServiceHandler.
func (p *profiler) ListGroups(context.Context, *connect.Request[featuresv1.ListGroupsRequest]) (
	*connect.Response[featuresv1.ListGroupsResponse], error) {
	return connect.NewResponse(&featuresv1.ListGroupsResponse{Groups: []*featuresv1.Group{{Name: "one"}, {Name: "two"}}}), nil
}

// ProfileGroup implements featuresv1connect.QualityServiceHandler.
func (p *profiler) ProfileGroup(_ context.Context, r *connect.Request[featuresv1.ProfileGroupRequest]) (
	*connect.Response[featuresv1.ProfileGroupResponse], error) {
	p.asked = append(p.asked, r.Msg)
	usual := &featuresv1.Distribution{Nulls: 100, Values: 900, Numbers: []float64{1, 2, 3}, NumberCounts: []uint64{300, 300, 300}}
	res := &featuresv1.ProfileGroupResponse{Group: r.Msg.GetGroup() + "/v1", At: timestamppb.New(checkedAt), Entities: 5000, Sampled: 1000,
		Sources: []*featuresv1.SourceFreshness{
			{Source: "orders", Topic: "t", Newest: timestamppb.New(checkedAt.Add(-time.Hour))},
			{Source: "visits", Topic: "t", Newest: timestamppb.New(checkedAt.Add(-time.Hour))},
			{Source: "returns", Topic: "t"},
		},
		Days: []*featuresv1.ProfiledDay{{At: timestamppb.New(checkedAt), Found: 1000},
			{At: timestamppb.New(checkedAt.AddDate(0, 0, -1)), Found: 1000}, {At: timestamppb.New(checkedAt.AddDate(0, 0, -2)), Missing: "dropped"}},
	}
	for _, name := range []string{"orders_7d", "mean_7d", "spent_7d"} {
		res.Features = append(res.Features, &featuresv1.FeatureProfile{Name: name, Kind: "number", Current: usual, Reference: usual,
			Daily: []*featuresv1.Distribution{usual, {}}})
	}
	if p.planted {
		res.Sources[1].Newest = timestamppb.New(checkedAt.Add(-30 * time.Hour))
		res.Features[0].Psi = 3.5
		res.Features[1].Current = &featuresv1.Distribution{Nulls: 1000}
	}
	if len(r.Msg.GetFeatures()) == 1 {
		res.Features = res.Features[:1]
	}
	return connect.NewResponse(res), nil
}

// serveProfiles returns the flags for a system that answers as p.
func serveProfiles(t *testing.T, p *profiler) []string {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(featuresv1connect.NewQualityServiceHandler(p))
	mux.Handle(featuresv1connect.NewFeatureServiceHandler(p))
	s := httptest.NewUnstartedServer(mux)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return []string{"--addr", strings.TrimPrefix(s.URL, "http://")}
}

// TestFeaturesCheck: what is planted is found, as text and as JSON, and makes the exit code 1.
func TestFeaturesCheck(t *testing.T) {
	healthy := &profiler{}
	out, err := run(t, append([]string{"features", "check"}, serveProfiles(t, healthy)...)...)
	const quiet = " at 2026-03-01T12:00:00Z: 1000 of 5000 entities; 2 sources are fresh; 1 source has no events; 3 features are within the limits\n" +
		"1 days have no vectors; that of 2026-02-27: dropped\n"
	if want := "one/v1" + quiet + "two/v1" + quiet + "no limit is exceeded; --all shows every source and feature\n"; err != nil || !strings.HasSuffix(out, want) {
		t.Errorf("%v:\n%s\nwant\n%s", err, out, want)
	}
	if len(healthy.asked) != 2 || healthy.asked[0].GetDays() != 28 || healthy.asked[0].GetEntities() != 1000 || healthy.asked[0].GetAt() != nil {
		t.Errorf("asked for %v", healthy.asked)
	}
	system := serveProfiles(t, &profiler{planted: true})
	out, err = run(t, append([]string{"features", "check", "one"}, system...)...)
	for _, want := range []string{"one/v1: the newest event of the source visits is 30h0m0s old, the limit is 24h0m0s",
		"one/v1: orders_7d: PSI against the reference is 3.500, the limit is 0.250",
		"one/v1: mean_7d: the share of nulls rose by 0.900, the limit is 0.100", "drifted", "stale"} {
		if !errors.Is(err, errSilent) || !strings.Contains(out, want) {
			t.Errorf("%v, no %q in:\n%s", err, want, out)
		}
	}
	// What is within the limits is in one line.
	if !strings.Contains(out, "; 1 source is fresh; 1 source has no events; 1 feature is within the limits\n") || strings.Contains(out, "spent_7d") {
		t.Errorf("what is within the limits:\n%s", out)
	}
	if out, err = run(t, append([]string{"features", "check", "one", "--all"}, system...)...); !errors.Is(err, errSilent) ||
		!strings.Contains(out, "│ spent_7d ") || !strings.Contains(out, "│ orders  │") || strings.Contains(out, "within the limits") {
		t.Errorf("all of it: %v:\n%s", err, out)
	}
	out, err = run(t, append([]string{"features", "check", "one", "-o", "json"}, system...)...)
	var got struct {
		OK     bool
		Groups []groupCheck
	}
	if jsonErr := json.Unmarshal([]byte(out), &got); jsonErr != nil || !errors.Is(err, errSilent) || got.OK || len(got.Groups) != 1 {
		t.Fatalf("%v, %v:\n%s", err, jsonErr, out)
	}
	var verdicts []string
	for _, s := range got.Groups[0].Sources {
		verdicts = append(verdicts, s.Verdict)
	}
	for _, f := range got.Groups[0].Features {
		verdicts = append(verdicts, f.Verdict)
	}
	if want := []string{"fresh", "stale", "no events", "drifted", "nulls", "ok"}; !slices.Equal(verdicts, want) {
		t.Errorf("verdicts %v, want %v", verdicts, want)
	}
	// Wider limits allow all of it. With more entities than there are, nothing is compared.
	for _, limits := range []string{"--max-age 31h --max-nulls 1 --max-psi 4", "--max-age 31h --min-entities 1001"} {
		out, err = run(t, slices.Concat([]string{"features", "check", "one"}, strings.Fields(limits), system)...)
		if err != nil || strings.Contains(limits, "min") != strings.Contains(out,
			"; 3 features are not compared: fewer than 1001 entities have facts, now or on the reference days\n") {
			t.Errorf("%s: %v:\n%s", limits, err, out)
		}
		out, err = run(t, slices.Concat([]string{"features", "check", "one", "--all"}, strings.Fields(limits), system)...)
		if err != nil || strings.Contains(limits, "min") != strings.Contains(out, "too few") || !strings.HasSuffix(out, "no limit is exceeded\n") {
			t.Errorf("all of it, %s: %v:\n%s", limits, err, out)
		}
	}
}

// TestFeaturesPlot: a drawing as text, as a picture, and the numbers.
func TestFeaturesPlot(t *testing.T) {
	system := serveProfiles(t, &profiler{})
	plot := func(flags ...string) (string, error) {
		return run(t, slices.Concat([]string{"features", "plot", "one", "orders_7d"}, flags, system)...)
	}
	out, err := plot("--days", "2")
	if err != nil || !strings.Contains(out, "one/v1: orders_7d at 2026-03-01 12:00 UTC") || !strings.Contains(out, "2026-02-27 dropped") {
		t.Errorf("%v:\n%s", err, out)
	}
	if out, err = plot("--output", "json"); err != nil || !json.Valid([]byte(out)) || !strings.Contains(out, `"daily"`) {
		t.Errorf("%v:\n%s", err, out)
	}
	file := filepath.Join(t.TempDir(), "orders.png")
	if out, err = plot("--out", file); err != nil || !strings.Contains(out, file) {
		t.Errorf("%v: %s", err, out)
	}
	picture, err := os.ReadFile(file)
	if err == nil {
		_, err = png.Decode(bytes.NewReader(picture))
	}
	if err != nil {
		t.Error(err)
	}
	for flags, want := range map[string]string{"--out x.gif": ".png", "--at yesterday": "RFC 3339", "--days 0": "--days", "--out /nowhere/x.png": "--out"} {
		if _, err := plot(strings.Fields(flags)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", flags, err)
		}
	}
}
