// This file is the part of the admin API about versions of views.

package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/readmodels/versions"
	"github.com/millrace/millrace/streams"
)

const (
	defaultSamples     = 20
	defaultCompareWait = 30 * time.Second
	// How long a swap waits until the version has applied what the serving one has.
	swapWait = 15 * time.Second
)

// ListVersions implements AdminService.
func (p *App) ListVersions(ctx context.Context, req *connect.Request[adminv1.ListVersionsRequest]) (
	*connect.Response[adminv1.ListVersionsResponse], error,
) {
	views := p.views
	if len(req.Msg.Views) > 0 {
		views = nil
		for _, name := range req.Msg.Views {
			v, err := p.viewOf(name)
			if err != nil {
				return nil, err
			}
			views = append(views, v)
		}
	}
	res := &adminv1.ListVersionsResponse{}
	for _, v := range views {
		state, err := v.stored(ctx)
		if err != nil {
			return nil, err
		}
		for _, s := range state.Versions {
			m, err := v.describe(ctx, state, s.Name)
			if err != nil {
				return nil, err
			}
			res.Versions = append(res.Versions, m)
		}
	}
	return connect.NewResponse(res), nil
}

// StartReplay implements AdminService.
func (p *App) StartReplay(ctx context.Context, req *connect.Request[adminv1.StartReplayRequest]) (
	*connect.Response[adminv1.StartReplayResponse], error,
) {
	v, err := p.viewOf(req.Msg.View)
	if err != nil {
		return nil, err
	}
	if _, ok := v.now().contents(); v.registry == nil || !ok {
		return nil, connect.NewError(connect.CodeUnimplemented, fmt.Errorf("view %s has one version only", v.Name))
	}
	name := ""
	state, err := v.update(ctx, func(s *versions.State) (err error) {
		name, err = s.Start(req.Msg.Name, int(req.Msg.RateLimit), v.Projection, time.Now())
		return err
	})
	if err != nil {
		return nil, refused(err)
	}
	m, err := v.describe(ctx, state, name)
	if err != nil {
		return nil, err
	}
	p.log.Info("view: a version is built", "view", v.Name, "version", m.Sink)
	return connect.NewResponse(&adminv1.StartReplayResponse{Version: m}), nil
}

// CompareVersions implements AdminService.
func (p *App) CompareVersions(ctx context.Context, req *connect.Request[adminv1.CompareVersionsRequest],
	stream *connect.ServerStream[adminv1.CompareVersionsResponse],
) error {
	v, o, err := p.versionOf(req.Msg.Sink)
	if err != nil {
		return err
	}
	serving := v.now()
	if serving == o {
		return connect.NewError(connect.CodeFailedPrecondition,
			fmt.Errorf("%s serves: compare another version with it; `millrace replay ls` lists them", o.sink))
	}
	a, ok := serving.contents()
	b, also := o.contents()
	if !ok || !also {
		return connect.NewError(connect.CodeUnimplemented, fmt.Errorf("the documents of view %s cannot be compared", v.Name))
	}
	if err := v.reached(ctx, serving, o); err != nil {
		return err
	}
	status, err := serving.Status(ctx)
	if err != nil {
		return err
	}
	wait := defaultCompareWait
	if req.Msg.Wait != nil {
		wait = req.Msg.Wait.AsDuration()
	}
	result, err := versions.Compare(ctx, a, b, versions.CompareConfig{
		Samples: cmp.Or(int(req.Msg.Samples), defaultSamples), Wait: wait,
		Progress: func(done uint64) {
			// A send fails only if the caller has gone. Then ctx ends the comparison.
			_ = stream.Send(&adminv1.CompareVersionsResponse{Step: &adminv1.CompareVersionsResponse_Progress{
				Progress: &adminv1.CompareVersionsProgress{Done: done, Total: max(done, 2*status.Documents)},
			}})
		},
	})
	if err != nil {
		return connect.NewError(connect.CodeUnavailable, err)
	}
	return stream.Send(&adminv1.CompareVersionsResponse{Step: &adminv1.CompareVersionsResponse_Result{
		Result: comparison(serving.sink, o.sink, result),
	}})
}

// comparison returns the contract's form of a comparison.
func comparison(serving, version string, c versions.Comparison) *adminv1.VersionComparison {
	m := &adminv1.VersionComparison{
		Serving: serving, Version: version, Equal: c.Different == 0,
		EqualDocuments: c.Equal, DifferentDocuments: c.Different,
		ServingHash: c.Serving.Hash(), VersionHash: c.Version.Hash(),
	}
	for _, d := range c.Differences {
		one := &adminv1.DocumentDifference{Key: strings.ToValidUTF8(d.Key, "\uFFFD"),
			Kind: adminv1.DocumentDifferenceKind(d.Kind), ServingVersion: d.Serving, Version: d.Version}
		for _, f := range d.Fields {
			one.Fields = append(one.Fields, &adminv1.FieldDifference{Field: f.Name, Serving: f.Serving, Version: f.Version})
		}
		m.Differences = append(m.Differences, one)
	}
	return m
}

// SwapVersion implements AdminService.
func (p *App) SwapVersion(ctx context.Context, req *connect.Request[adminv1.SwapVersionRequest]) (
	*connect.Response[adminv1.SwapVersionResponse], error,
) {
	v, o, err := p.versionOf(req.Msg.Sink)
	if err != nil {
		return nil, err
	}
	m, err := v.swap(ctx, func(versions.State) (string, error) { return o.name, nil })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&adminv1.SwapVersionResponse{Version: m}), nil
}

// RollbackVersion implements AdminService.
func (p *App) RollbackVersion(ctx context.Context, req *connect.Request[adminv1.RollbackVersionRequest]) (
	*connect.Response[adminv1.RollbackVersionResponse], error,
) {
	v, err := p.viewOf(req.Msg.View)
	if err != nil {
		return nil, err
	}
	m, err := v.swap(ctx, versions.State.RollbackTo)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&adminv1.RollbackVersionResponse{Version: m}), nil
}

// swap makes the version serve that of returns, once it has applied what the serving one has. Each
// process switches when its own queries of the old version can see nothing newer.
func (v *view) swap(ctx context.Context, of func(versions.State) (string, error)) (*adminv1.Version, error) {
	before, err := v.stored(ctx)
	if err != nil {
		return nil, err
	}
	name, err := of(before)
	if err != nil {
		return nil, refused(err)
	}
	s, ok := before.Find(name)
	serving, next := v.find(before.Serving), v.find(name)
	switch {
	case !ok || serving == nil || next == nil:
		return nil, connect.NewError(connect.CodeUnavailable,
			fmt.Errorf("version %s is not open in this process yet: try again", versions.Sink(v.Name, name)))
	case name != "" && s.Built.IsZero():
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf(
			"%s is not filled yet: wait until `millrace replay ls` shows that it is ready", next.sink))
	}
	if err := v.reached(ctx, serving, next); err != nil {
		return nil, err
	}
	state, err := v.update(ctx, func(s *versions.State) error {
		if s.Serving != before.Serving {
			return connect.NewError(connect.CodeAborted, errors.New("another version was swapped in meanwhile: try again"))
		}
		return s.Swap(name, time.Now())
	})
	if err != nil {
		return nil, refused(err)
	}
	v.app.log.Info("view: a version was swapped in", "view", v.Name, "before", serving.sink, "now", next.sink)
	return v.describe(ctx, state, name)
}

// reached waits until a version has applied what the serving one has applied now, in every partition.
func (v *view) reached(ctx context.Context, serving, next *version) error {
	a, ok := serving.OpenView.(streams.Sink)
	b, also := next.OpenView.(streams.Sink)
	if !ok || !also {
		return fmt.Errorf("view %s has no positions", v.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, swapWait)
	defer cancel()
	for _, f := range v.Feeds {
		topic := f.Aggregate.Topic
		want, err := a.Positions(ctx, topic)
		if err != nil {
			return err
		}
		err = v.app.until(ctx, next.sink, func() (bool, error) {
			have, err := b.Positions(ctx, topic)
			for partition, at := range want {
				if have[partition].Next < at.Next {
					return false, err
				}
			}
			return true, err
		})
		if err != nil && ctx.Err() != nil {
			return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf(
				"%s has not applied what %s has of %s, within %v: "+
					"`millrace replay ls` shows how far it is, and `millrace dlq ls --sink %s` what it could not apply",
				next.sink, serving.sink, topic, swapWait, next.sink))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// DropVersion implements AdminService.
func (p *App) DropVersion(ctx context.Context, req *connect.Request[adminv1.DropVersionRequest]) (
	*connect.Response[adminv1.DropVersionResponse], error,
) {
	v, o, err := p.versionOf(req.Msg.Sink)
	if err != nil {
		return nil, err
	}
	_, err = v.update(ctx, func(s *versions.State) error { return s.Drop(o.name, time.Now()) })
	if err != nil {
		return nil, refused(err)
	}
	p.log.Info("view: a version is dropped", "view", v.Name, "version", o.sink)
	return connect.NewResponse(&adminv1.DropVersionResponse{}), nil
}

// viewOf returns a view by its name, or by the part before its version if only one view has it.
func (p *App) viewOf(name string) (*view, error) {
	var found []*view
	var names []string
	for _, v := range p.views {
		if v.Name == name {
			return v, nil
		}
		if short, _, _ := strings.Cut(v.Name, "/"); short == name {
			found = append(found, v)
		}
		names = append(names, v.Name)
	}
	if len(found) != 1 {
		return nil, connect.NewError(connect.CodeNotFound,
			fmt.Errorf("unknown view %q: want one of %s", name, strings.Join(names, ", ")))
	}
	return found[0], nil
}

// versionOf returns a version by its sink. The view in it may be short, as in viewOf.
func (p *App) versionOf(sink string) (*view, *version, error) {
	view, name := versions.ParseSink(sink)
	v, err := p.viewOf(view)
	if err != nil {
		return nil, nil, err
	}
	if o := v.find(name); o != nil {
		return v, o, nil
	}
	var sinks []string
	for _, o := range v.versions() {
		sinks = append(sinks, o.sink)
	}
	return nil, nil, connect.NewError(connect.CodeNotFound,
		fmt.Errorf("unknown version %q: view %s has %s", sink, v.Name, strings.Join(sinks, ", ")))
}

// stored returns the record of the versions.
func (v *view) stored(ctx context.Context) (versions.State, error) {
	if v.registry == nil {
		return v.current(), nil
	}
	return v.registry.Load(ctx)
}

// describe returns the contract's form of a version. A version that this process has not opened yet
// has no numbers.
func (v *view) describe(ctx context.Context, state versions.State, name string) (*adminv1.Version, error) {
	s, _ := state.Find(name)
	m := &adminv1.Version{View: v.Name, Name: name, Sink: versions.Sink(v.Name, name), RateLimit: int32(s.Rate),
		Created: timestampOf(s.Created), ServingSince: timestampOf(s.Since)}
	switch {
	case s.Dropped:
		m.State = adminv1.VersionState_VERSION_STATE_DROPPING
	case name == state.Serving:
		m.State = adminv1.VersionState_VERSION_STATE_SERVING
	case state.Previous != nil && name == *state.Previous:
		m.State = adminv1.VersionState_VERSION_STATE_PREVIOUS
	case name == "" || !s.Built.IsZero():
		m.State = adminv1.VersionState_VERSION_STATE_READY
	default:
		m.State = adminv1.VersionState_VERSION_STATE_FILLING
	}
	o := v.find(name)
	if o == nil {
		return m, nil
	}
	status, err := o.Status(ctx)
	if err != nil {
		return nil, err
	}
	m.Documents = status.Documents
	m.Passed, m.Total, _ = o.progress()
	if m.State == adminv1.VersionState_VERSION_STATE_FILLING {
		m.Rate = o.speed.rate()
		if left := float64(m.Total - min(m.Passed, m.Total)); m.Rate > 0 {
			m.Remaining = durationpb.New(time.Duration(left / m.Rate * float64(time.Second)))
		}
	}
	return m, nil
}

// timestampOf returns a time in its form of the contract, nil for the zero time.
func timestampOf(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// refused gives the error of a change that the versions do not permit its code.
func refused(err error) error {
	if no := (*versions.RefusedError)(nil); errors.As(err, &no) {
		return connect.NewError(connect.CodeFailedPrecondition, err)
	}
	return err
}
