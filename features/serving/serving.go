// Package serving answers feature vectors over the network, from features/online.
//
// Service implements FeatureService, for Connect and gRPC. NewFeast serves the HTTP API of Feast's
// feature server, so that an unmodified Feast client with a remote online store reads from here:
// its feature views and its feature services are the groups. feast.go has the format.
//
// Invariants:
//
//   - A vector is never of a store that has not caught up with the log, or that is full.
//   - An answer to a token has seen the command of the token, or is an error.
//   - An entity that refuses is answered as one that was not found; see WithholdFrom.
//   - Values are those of features.Evaluate; the status of each one says where it comes from.
package serving

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	validate "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/features/persons"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/internal/rpc"
	"github.com/millrace/millrace/streams"
)

// Backend is what is served; *online.Runner and *online.SharedRunner implement it.
type Backend interface {
	Store() online.Reader
	Watermarks() *streams.Watermarks
	// Ready returns nil, or why no vectors can be answered now.
	Ready() error
}

// Log is offered every vector that is answered, and keeps some; *served.Log implements it. The
// vectors are valid until Add returns, which must not block.
type Log interface {
	Add(q *online.Query, vectors []online.Vector, at time.Time)
}

// Service answers vectors. It implements featuresv1connect.FeatureServiceHandler.
type Service struct {
	backend Backend
	now     func() time.Time
	log     Log // nil: none

	mu      sync.RWMutex
	queries map[string]*online.Query // by group and outputs

	plans    feastPlans
	refusing string // the entity of those who may refuse; see WithholdFrom
	refuses  func(ids ...string) bool
}

// maxQueries bounds the prepared queries. Callers ask for few different ones.
const maxQueries = 1000

// New returns a service. now is the clock.
func New(b Backend, now func() time.Time) *Service {
	return &Service{backend: b, now: now, queries: map[string]*online.Query{}}
}

// LogTo makes the service offer its vectors to a log. It must be called before the first request.
func (s *Service) LogTo(l Log) { s.log = l }

// errUnknown is the error of a name that does not exist.
type errUnknown struct{ kind, name, hint string }

func (e *errUnknown) Error() string { return fmt.Sprintf("unknown %s %q%s", e.kind, e.name, e.hint) }

// query returns the prepared query for outputs of a group; without names, for all of them.
func (s *Service) query(group string, outputs []string) (*online.Query, error) {
	key := group + "\x00" + strings.Join(outputs, "\x00")
	s.mu.RLock()
	q := s.queries[key]
	s.mu.RUnlock()
	store := s.backend.Store()
	g := store.Group(group)
	if q != nil && q.Group == g { // another version may have become live
		return q, nil
	}
	if g == nil {
		names := make([]string, 0, len(store.Groups()))
		for _, g := range store.Groups() {
			names = append(names, g.Name)
		}
		return nil, &errUnknown{"feature group", group, "; the groups are " + strings.Join(names, ", ")}
	}
	all := g.Outputs()
	for _, name := range outputs {
		if !slices.ContainsFunc(all, func(o features.Output) bool { return o.Name == name }) {
			hint := " of the group " + group
			for _, o := range all { // a name without its window
				if strings.HasPrefix(o.Name, name+"_") {
					hint += "; there is " + o.Name
				}
			}
			return nil, &errUnknown{"feature", name, hint}
		}
	}
	q, err := store.Compile(g.ID(), outputs...)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queries) >= maxQueries {
		clear(s.queries)
	}
	s.queries[key] = q
	return q, nil
}

// vectors are reused, so that a request allocates little.
var vectors = sync.Pool{New: func() any { return new([]online.Vector) }}

// GetVectors implements featuresv1connect.FeatureServiceHandler.
func (s *Service) GetVectors(
	ctx context.Context, r *connect.Request[featuresv1.GetVectorsRequest],
) (*connect.Response[featuresv1.GetVectorsResponse], error) {
	if err := s.backend.Ready(); err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	q, err := s.query(r.Msg.GetGroup(), r.Msg.GetFeatures())
	if err != nil {
		return nil, publicError(err)
	}
	if err := s.awaitToken(ctx, r.Msg, q.Group); err != nil {
		return nil, err
	}
	at := s.now()
	if r.Msg.GetAt() != nil {
		at = r.Msg.GetAt().AsTime()
	}
	at = event.Time(at)
	pooled, _ := vectors.Get().(*[]online.Vector)
	defer vectors.Put(pooled)
	found, err := s.lookup(ctx, q, r.Msg.GetEntities(), at, *pooled)
	if err != nil {
		return nil, publicError(err)
	}
	*pooled = found
	if s.log != nil {
		s.log.Add(q, found, at)
	}
	return connect.NewResponse(response(q, r.Msg.GetEntities(), found, at, wantsBinary(r.Header()))), nil
}

// publicError returns the error of a caller's mistake, and other errors unchanged.
func publicError(err error) error {
	var unknown *errUnknown
	switch {
	case errors.As(err, &unknown):
		return connect.NewError(connect.CodeNotFound, err)
	case errors.Is(err, online.ErrTooOld):
		return connect.NewError(connect.CodeOutOfRange, fmt.Errorf("at: %w", err))
	case errors.Is(err, online.ErrUnavailable):
		return connect.NewError(connect.CodeUnavailable, err)
	}
	return err
}

// response returns the answer with vectors of a query for entities. In a binary one, the vectors are
// encoded; see encode.go.
func response(
	q *online.Query, entities []string, found []online.Vector, at time.Time, binary bool,
) *featuresv1.GetVectorsResponse {
	res := &featuresv1.GetVectorsResponse{Group: q.Group.ID(), Features: make([]string, len(q.Outputs)), At: timestamppb.New(at)}
	for i, o := range q.Outputs {
		res.Features[i] = o.Name
	}
	var moments []*online.Positions
	moment := func(p *online.Positions) uint32 {
		i := slices.Index(moments, p)
		if i < 0 {
			i = len(moments)
			moments = append(moments, p)
			res.Moments = append(res.Moments, momentOf(p))
		}
		return uint32(i)
	}
	if !binary {
		res.Vectors = messages(q, entities, found, moment)
		return res
	}
	const perVector, perValue = 64, 13 // about how many bytes they have
	encoded := make([]byte, 0, len(found)*(perVector+perValue*len(q.Outputs)))
	body := make([]byte, 0, cap(encoded)/max(len(found), 1))
	for i := range found {
		encoded, body = appendVector(encoded, body, entities[i], &found[i], moment(found[i].Positions))
	}
	res.ProtoReflect().SetUnknown(encoded)
	return res
}

// messages returns vectors as messages. moment returns the index of positions in the response.
func messages(
	q *online.Query, entities []string, found []online.Vector, moment func(*online.Positions) uint32,
) []*featuresv1.Vector {
	// Memory for all values at once: there may be tens of thousands.
	n := len(found) * len(q.Outputs)
	values, pointers := make([]featuresv1.Value, n), make([]*featuresv1.Value, n)
	integers, numbers := make([]featuresv1.Value_Integer, n), make([]featuresv1.Value_Number, n)
	all, list := make([]featuresv1.Vector, len(found)), make([]*featuresv1.Vector, len(found))
	for i := range found {
		v, to := &found[i], &all[i]
		to.Entity, to.Moment = entities[i], moment(v.Positions)
		if v.Newest != 0 {
			to.EventTime = timestamppb.New(time.UnixMicro(v.Newest))
		}
		first := i * len(q.Outputs)
		to.Values = pointers[first : first+len(q.Outputs) : first+len(q.Outputs)]
		for j := range v.Values {
			k := first + j
			to.Values[j] = &values[k]
			values[k].Status = statusOf(v, j)
			switch from := &v.Values[j]; from.Kind {
			case exact.IntResult:
				integers[k].Integer = from.Int
				values[k].Kind = &integers[k]
			case exact.FloatResult:
				numbers[k].Number = from.Float
				values[k].Kind = &numbers[k]
			case exact.TextResult:
				values[k].Kind = &featuresv1.Value_Text{Text: from.Text}
			case exact.TextsResult:
				values[k].Kind = &featuresv1.Value_Texts{Texts: &featuresv1.Texts{Items: from.Texts}}
			}
		}
		list[i] = to
	}
	return list
}

// statusOf returns the status of the i-th value of a vector.
func statusOf(v *online.Vector, i int) featuresv1.ValueStatus {
	switch {
	case !v.Found:
		return featuresv1.ValueStatus_VALUE_STATUS_NOT_FOUND
	case v.Values[i].Kind == exact.NullResult:
		return featuresv1.ValueStatus_VALUE_STATUS_NULL
	case v.Empty[i]:
		return featuresv1.ValueStatus_VALUE_STATUS_DEFAULT
	}
	return featuresv1.ValueStatus_VALUE_STATUS_PRESENT
}

// momentOf returns positions as they are sent.
func momentOf(p *online.Positions) *featuresv1.Moment {
	m := &featuresv1.Moment{}
	if !p.AsOf.IsZero() {
		m.AsOf = timestamppb.New(p.AsOf)
	}
	for _, t := range p.Topics {
		to := &featuresv1.TopicPositions{Topic: t.Topic}
		for _, at := range t.Partitions {
			to.NextOffsets = append(to.NextOffsets, at.Next)
		}
		m.Topics = append(m.Topics, to)
	}
	return m
}

// ListGroups implements featuresv1connect.FeatureServiceHandler.
func (s *Service) ListGroups(
	context.Context, *connect.Request[featuresv1.ListGroupsRequest],
) (*connect.Response[featuresv1.ListGroupsResponse], error) {
	store := s.backend.Store()
	entities, bytes := store.Size()
	lag, _ := s.backend.Watermarks().Lag(store.Topics()...)
	res := &featuresv1.ListGroupsResponse{Entities: uint64(entities), Bytes: uint64(bytes), LagEvents: lag}
	for _, g := range store.Groups() {
		res.Groups = append(res.Groups, groupOf(g))
	}
	return connect.NewResponse(res), nil
}

func groupOf(g *features.Group) *featuresv1.Group {
	return &featuresv1.Group{Name: g.Name, Version: uint32(g.Version), Entity: g.Entity, Description: g.Description,
		Owner: g.Owner}
}

// kindNames are the kinds of values in DescribeGroup.
var kindNames = map[exact.ResultKind]string{exact.IntResult: "integer", exact.FloatResult: "number",
	exact.TextResult: "text", exact.TextsResult: "texts"}

// DescribeGroup implements featuresv1connect.FeatureServiceHandler.
func (s *Service) DescribeGroup(
	_ context.Context, r *connect.Request[featuresv1.DescribeGroupRequest],
) (*connect.Response[featuresv1.DescribeGroupResponse], error) {
	q, err := s.query(r.Msg.GetGroup(), nil)
	if err != nil {
		return nil, publicError(err)
	}
	res := &featuresv1.DescribeGroupResponse{Group: groupOf(q.Group)}
	for _, o := range q.Outputs {
		aggregate := o.Feature.Aggregate.String()
		switch {
		case o.Feature.Over != nil:
			aggregate = "ratio"
		case o.Feature.Age:
			aggregate = "age"
		}
		res.Features = append(res.Features, &featuresv1.Feature{Name: o.Name, Description: o.Feature.Description,
			Kind: kindNames[o.Kind], Aggregate: aggregate, Window: o.Window.String(), Source: o.Feature.Source})
	}
	return connect.NewResponse(res), nil
}

const (
	defaultWait = 5 * time.Second
	// A share of the deadline is for the answer to travel.
	marginDivisor = 5
	maxMargin     = 250 * time.Millisecond
)

// awaitToken waits until the vectors of a group have seen the command of the request's token.
func (s *Service) awaitToken(ctx context.Context, request *featuresv1.GetVectorsRequest, g *features.Group) error {
	if request.GetToken() == "" {
		return nil
	}
	t, err := event.ParseToken(request.GetToken())
	if err != nil {
		return invalidField(request, "token", "not a token from a command's receipt")
	}
	topic := ""
	for _, a := range event.Aggregates() {
		if a.Service == t.Service && slices.Contains(persons.Topics(g), a.Topic) {
			topic = a.Topic
		}
	}
	if topic == "" {
		return invalidField(request, "token", fmt.Sprintf("a token of the service %q, whose events the group %q does not read",
			t.Service, g.Name))
	}
	within := defaultWait
	if deadline, ok := ctx.Deadline(); ok {
		within = time.Until(deadline)
		within -= min(within/marginDivisor, maxMargin)
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if err := s.backend.Watermarks().Wait(ctx, topic, t.Stream, t.Position); err != nil {
		return rpc.WithDetail(connect.NewError(connect.CodeDeadlineExceeded,
			fmt.Errorf("the features %s have not applied version %d of %q yet", g.ID(), t.Version, t.Stream)),
			&eventv1.Stale{View: "features/" + g.ID(), Stream: t.Stream, WantVersion: t.Version})
	}
	return nil
}

// invalidField returns an error that names a field of the request, in the form of buf.validate.
func invalidField(request proto.Message, field, message string) error {
	return rpc.WithDetail(connect.NewError(connect.CodeInvalidArgument, errors.New(field+": "+message)),
		&validate.Violations{Violations: []*validate.Violation{{
			Field: &validate.FieldPath{Elements: []*validate.FieldPathElement{{FieldName: proto.String(field),
				FieldNumber: proto.Int32(int32(request.ProtoReflect().Descriptor().Fields().ByTextName(field).Number()))}}},
			Message: proto.String(message),
		}}})
}
