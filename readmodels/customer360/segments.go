package customer360

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/event/identity"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
)

const (
	defaultListed   = 100
	defaultExported = 50
)

// segmentOf returns a configured segment.
func (v *View) segmentOf(name string) (*segment, error) {
	for _, s := range v.segments {
		if s.Name == name {
			if !v.members.isReady() {
				return nil, connect.NewError(connect.CodeUnavailable, errors.New("the members of segments are being read; try again"))
			}
			return s, nil
		}
	}
	return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("no such segment: customer360.segments has none called %q", name))
}

// DescribeSegments returns all segments with the number of their members.
func (q *Queries) DescribeSegments(
	context.Context, *connect.Request[customer360v1.DescribeSegmentsRequest],
) (*connect.Response[customer360v1.DescribeSegmentsResponse], error) {
	var all []*customer360v1.SegmentInfo
	for _, s := range q.view.segments {
		all = append(all, &customer360v1.SegmentInfo{
			Name: s.Name, Expression: s.Expression, Description: s.Description, Purpose: s.Purpose,
			Members: q.view.members.count(s.Name),
		})
	}
	return connect.NewResponse(&customer360v1.DescribeSegmentsResponse{Segments: all}), nil
}

// CountSegment returns the number of members of a segment.
func (q *Queries) CountSegment(
	_ context.Context, req *connect.Request[customer360v1.CountSegmentRequest],
) (*connect.Response[customer360v1.CountSegmentResponse], error) {
	s, err := q.view.segmentOf(req.Msg.GetSegment())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&customer360v1.CountSegmentResponse{Members: q.view.members.count(s.Name)}), nil
}

// ListSegment returns a page of the members of a segment.
func (q *Queries) ListSegment(
	_ context.Context, req *connect.Request[customer360v1.ListSegmentRequest],
) (*connect.Response[customer360v1.ListSegmentResponse], error) {
	m := req.Msg
	s, err := q.view.segmentOf(m.GetSegment())
	if err != nil {
		return nil, err
	}
	size := int(m.GetPageSize())
	if size == 0 {
		size = defaultListed
	}
	ids, more := q.view.members.page(s.Name, m.GetAfter(), size)
	res := &customer360v1.ListSegmentResponse{CustomerIds: ids}
	if more {
		res.Next = ids[len(ids)-1]
	}
	return connect.NewResponse(res), nil
}

// ExportSegment returns a page of the profiles of a segment's members.
func (q *Queries) ExportSegment(
	ctx context.Context, req *connect.Request[customer360v1.ExportSegmentRequest],
) (*connect.Response[customer360v1.ExportSegmentResponse], error) {
	m, v := req.Msg, q.view
	s, err := v.segmentOf(m.GetSegment())
	if err != nil {
		return nil, err
	}
	size := int(m.GetPageSize())
	if size == 0 {
		size = defaultExported
	}
	ids, more := v.members.page(s.Name, m.GetAfter(), size)
	res := &customer360v1.ExportSegmentResponse{}
	if more {
		res.Next = ids[len(ids)-1]
	}
	for _, id := range ids {
		parts, err := v.parts(ctx, identity.Customer(id))
		if errors.Is(err, identity.ErrTooLarge) { // is about to leave
			continue
		}
		if err != nil {
			return nil, v.queryError(err)
		}
		// Somebody may just have been merged, or have withdrawn their consent.
		profile, err := v.compose(parts)
		if err != nil {
			return nil, err
		}
		if profile.GetCustomerId() != id || !grants(profile, s.Purpose) {
			continue
		}
		res.Profiles = append(res.Profiles, profile)
	}
	return connect.NewResponse(res), nil
}
