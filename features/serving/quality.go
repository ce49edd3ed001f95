package serving

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/features/quality"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
)

// History computes vectors of times whose facts are not in memory any more. It returns all outputs
// of a group, which is named by its ID. It logs its errors, because callers are not told them.
type History func(ctx context.Context, group string, entities []string, at time.Time) ([]features.Vector, error)

// Quality profiles the vectors of a backend. It implements featuresv1connect.QualityServiceHandler.
type Quality struct {
	service *Service
	history History
	// turn bounds profiles to one at a time, so that they take at most one core from lookups.
	turn chan struct{}
}

// NewQuality returns a Quality. A nil history means that the reference has only the days whose facts
// are in memory.
func NewQuality(s *Service, history History) *Quality {
	return &Quality{service: s, history: history, turn: make(chan struct{}, 1)}
}

const (
	maxProfileVectors = 200_000
	maxDailyFeatures  = 20
	maxTexts          = 50
)

// ProfileGroup implements featuresv1connect.QualityServiceHandler.
func (q *Quality) ProfileGroup(
	ctx context.Context, r *connect.Request[featuresv1.ProfileGroupRequest],
) (*connect.Response[featuresv1.ProfileGroupResponse], error) {
	m := r.Msg
	query, err := q.service.query(m.GetGroup(), m.GetFeatures())
	if err != nil {
		return nil, publicError(err)
	}
	at := q.service.now()
	if m.GetAt() != nil {
		at = m.GetAt().AsTime()
	}
	request := quality.DefaultRequest(query.Group, event.Time(at))
	request.Outputs = query.Outputs
	if m.GetReferenceEnd() != nil {
		request.ReferenceEnd = event.Time(m.GetReferenceEnd().AsTime())
	}
	if m.GetDays() > 0 {
		request.Days = int(m.GetDays())
	}
	if m.GetEntities() > 0 {
		request.Entities = int(m.GetEntities())
	}
	switch {
	case request.Entities*(request.Days+1) > maxProfileVectors:
		return nil, invalidField(m, "entities", fmt.Sprintf("%d entities on %d days and at the time of the profile are %d "+
			"vectors, and the limit is %d: ask for fewer of either", request.Entities, request.Days,
			request.Entities*(request.Days+1), maxProfileVectors))
	case m.GetDaily() && (len(m.GetFeatures()) == 0 || len(m.GetFeatures()) > maxDailyFeatures):
		return nil, invalidField(m, "daily", fmt.Sprintf("name at most %d features to get their distributions of each day",
			maxDailyFeatures))
	}
	report, err := q.Measure(ctx, request)
	if err != nil {
		return nil, err
	}
	if m.GetAt() == nil {
		report.Sources = q.Freshness(query.Group)
	}
	return connect.NewResponse(profileOf(report, m.GetDaily())), nil
}

// Measure computes a report without Sources. It waits until no other one is being computed.
func (q *Quality) Measure(ctx context.Context, r quality.Request) (*quality.Report, error) {
	select {
	case q.turn <- struct{}{}:
		defer func() { <-q.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := q.service.backend.Ready(); err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	return quality.Measure(ctx, q, r)
}

// Freshness returns how far the sources of a group are reflected.
func (q *Quality) Freshness(g *features.Group) []quality.Freshness {
	all := make([]quality.Freshness, len(g.Sources))
	for i, s := range g.Sources {
		f := quality.Freshness{Source: s.Name, Topic: s.Topic}
		for _, p := range q.service.backend.Store().Positions(s.Topic) {
			if p.AsOf.After(f.Newest) {
				f.Newest = p.AsOf
			}
		}
		f.Lag, _ = q.service.backend.Watermarks().Lag(s.Topic)
		all[i] = f
	}
	return all
}

// Sample implements quality.Source. Those who refuse that their vectors are used are not in the sample.
func (q *Quality) Sample(ctx context.Context, g *features.Group, n int) (entities []string, total int64, err error) {
	entities, total, err = q.service.backend.Store().Sample(ctx, g, n)
	return q.service.consenting(ctx, g, entities), total, err
}

// Vectors implements quality.Source: from memory, or from the history if the facts are not in memory
// any more.
func (q *Quality) Vectors(ctx context.Context, g *features.Group, outputs []features.Output, entities []string,
	at time.Time) ([]features.Vector, error) {
	names := make([]string, len(outputs))
	for i, o := range outputs {
		names[i] = o.Name
	}
	query, err := q.service.query(g.Name, names)
	if err != nil {
		return nil, err
	}
	found, err := q.service.backend.Store().Lookup(ctx, query, entities, at, nil)
	switch {
	case errors.Is(err, online.ErrTooOld) && q.history == nil:
		return nil, &quality.MissingError{Reason: err.Error()}
	case errors.Is(err, online.ErrTooOld):
		return q.past(ctx, g, outputs, entities, at)
	case err != nil:
		return nil, err
	}
	all := make([]features.Vector, len(found))
	for i, v := range found {
		all[i] = features.Vector{Entity: v.Entity, At: at, Found: v.Found, Values: v.Values}
	}
	return all, nil
}

// past computes vectors from the history. If that is not possible, the other days still have some.
func (q *Quality) past(ctx context.Context, g *features.Group, outputs []features.Output, entities []string,
	at time.Time) ([]features.Vector, error) {
	all, err := q.history(ctx, g.ID(), entities, at)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		// The error of a server names it, and may contain a query.
		return nil, &quality.MissingError{Reason: "the facts are not in memory any more, and ClickHouse has no vectors " +
			"at present; the server's log has the reason"}
	}
	index := make([]int, len(outputs))
	for i, o := range outputs {
		index[i] = slices.IndexFunc(g.Outputs(), func(p features.Output) bool { return p.Name == o.Name })
	}
	for i := range all {
		values := make([]exact.Result, len(outputs))
		for j, k := range index {
			values[j] = all[i].Values[k]
		}
		all[i].Values = values
	}
	return all, nil
}

// profileOf returns a report as it is sent.
func profileOf(r *quality.Report, daily bool) *featuresv1.ProfileGroupResponse {
	res := &featuresv1.ProfileGroupResponse{Group: r.Group, At: timestamppb.New(r.At), Entities: uint64(r.Entities),
		Sampled: uint32(r.Sampled)}
	for _, s := range r.Sources {
		to := &featuresv1.SourceFreshness{Source: s.Source, Topic: s.Topic, LagEvents: s.Lag}
		if !s.Newest.IsZero() {
			to.Newest = timestamppb.New(s.Newest)
		}
		res.Sources = append(res.Sources, to)
	}
	for _, d := range r.Days {
		res.Days = append(res.Days, &featuresv1.ProfiledDay{At: timestamppb.New(d.At), Found: uint32(d.Found),
			Missing: d.Missing})
	}
	for _, f := range r.Features {
		to := &featuresv1.FeatureProfile{Name: f.Current.Output, Kind: kindNames[f.Current.Kind], Psi: f.PSI,
			Current: distributionOf(&f.Current), Reference: distributionOf(&f.Reference)}
		for i := range f.Daily {
			if daily {
				to.Daily = append(to.Daily, distributionOf(&f.Daily[i]))
			}
		}
		res.Features = append(res.Features, to)
	}
	return res
}

// distributionOf returns a distribution as it is sent.
func distributionOf(d *quality.Distribution) *featuresv1.Distribution {
	to := &featuresv1.Distribution{Nulls: uint64(d.Nulls), Values: uint64(d.Values), Texts: d.Frequent(maxTexts)}
	for _, b := range slices.Sorted(maps.Keys(d.Buckets)) {
		to.Numbers = append(to.Numbers, d.Number(b))
		to.NumberCounts = append(to.NumberCounts, uint64(d.Buckets[b]))
	}
	for _, s := range to.Texts {
		to.TextCounts = append(to.TextCounts, uint64(d.Texts[s]))
	}
	return to
}

// ReportOf returns the report of a response, for callers that compare it with limits or draw it. Of
// texts, it has the most frequent ones only.
func ReportOf(res *featuresv1.ProfileGroupResponse) *quality.Report {
	r := &quality.Report{Group: res.GetGroup(), At: res.GetAt().AsTime(), Entities: int64(res.GetEntities()),
		Sampled: int(res.GetSampled())}
	for _, s := range res.GetSources() {
		f := quality.Freshness{Source: s.GetSource(), Topic: s.GetTopic(), Lag: s.GetLagEvents()}
		if s.GetNewest() != nil {
			f.Newest = s.GetNewest().AsTime()
		}
		r.Sources = append(r.Sources, f)
	}
	for _, d := range res.GetDays() {
		r.Days = append(r.Days, quality.Day{At: d.GetAt().AsTime(), Found: int64(d.GetFound()),
			Missing: d.GetMissing()})
	}
	for _, f := range res.GetFeatures() {
		m := quality.Measured{Current: received(f, f.GetCurrent()), Reference: received(f, f.GetReference()),
			PSI: f.GetPsi()}
		for _, d := range f.GetDaily() {
			m.Daily = append(m.Daily, received(f, d))
		}
		r.Features = append(r.Features, m)
	}
	return r
}

// received returns a distribution that was sent. Counts without their value are left out.
func received(f *featuresv1.FeatureProfile, d *featuresv1.Distribution) quality.Distribution {
	to := quality.Distribution{Output: f.GetName()}
	for kind, name := range kindNames {
		if name == f.GetKind() {
			to.Kind = kind
		}
	}
	for i, n := range d.GetNumberCounts() {
		if i < len(d.GetNumbers()) {
			to.AddNumber(d.GetNumbers()[i], int64(n))
		}
	}
	for i, n := range d.GetTextCounts() {
		if i < len(d.GetTexts()) {
			to.AddText(d.GetTexts()[i], int64(n))
		}
	}
	to.Nulls, to.Values = int64(d.GetNulls()), int64(d.GetValues())
	return to
}
