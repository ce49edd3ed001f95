package customer360

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/identity"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	"github.com/millrace/millrace/gen/millrace/customer360/v1/customer360v1connect"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/readmodels"
	"github.com/millrace/millrace/streams"
)

// Queries implements CustomerQueryService on a view.
type Queries struct{ view *View }

// NewQueries returns the handler of CustomerQueryService. It relies on requests having been
// validated.
func NewQueries(view *View) *Queries { return &Queries{view} }

var _ customer360v1connect.CustomerQueryServiceHandler = (*Queries)(nil)

// Handler returns the path to mount CustomerQueryService on, and the handler that serves it from
// the view.
func (v *View) Handler(opts ...connect.HandlerOption) (string, http.Handler) {
	return customer360v1connect.NewCustomerQueryServiceHandler(NewQueries(v), opts...)
}

// GetProfile returns the profile of a person. With a token, it first waits until the view shows the
// token's command.
func (q *Queries) GetProfile(
	ctx context.Context, req *connect.Request[customer360v1.GetProfileRequest],
) (*connect.Response[customer360v1.GetProfileResponse], error) {
	v := q.view
	node, err := nodeOf(req.Msg)
	if err != nil {
		return nil, err
	}
	if err := v.await(ctx, req.Msg, req.Msg.GetToken()); err != nil {
		return nil, v.queryError(err)
	}
	parts, err := v.parts(ctx, node)
	if err != nil {
		return nil, v.queryError(err)
	}
	if parts.Person.Canonical() == "" || parts.Empty() {
		// The person may be among those that were lost.
		if v.Faults().Any() {
			return nil, v.queryError(streams.ErrLost)
		}
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such customer"))
	}
	profile, err := v.compose(parts)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&customer360v1.GetProfileResponse{
		Profile: profile, Freshness: v.freshness(parts), Segments: v.memberOf(parts.Person.Canonical()),
	}), nil
}

// compose returns the profile of a person with features of now.
func (v *View) compose(p Parts) (*customer360v1.Profile, error) {
	profile, err := Compose(p)
	if err == nil {
		addFeatures(profile, p, v.features, time.Now())
	}
	return profile, err
}

// memberOf returns the configured segments that a customer is a member of.
func (v *View) memberOf(customer string) []string {
	return slices.DeleteFunc(v.members.of(customer), func(name string) bool {
		return !slices.ContainsFunc(v.segments, func(s *segment) bool { return s.Name == name })
	})
}

// freshness returns how fresh an answer is.
func (v *View) freshness(p Parts) *eventv1.Freshness {
	lag, _ := v.watermarks.Lag(topics()...)
	return &eventv1.Freshness{View: Name, AsOf: p.AsOf(), LagEvents: lag}
}

// queryError returns the error that a caller gets.
func (v *View) queryError(err error) error {
	if errors.Is(err, identity.ErrTooLarge) {
		return connect.NewError(connect.CodeFailedPrecondition, err)
	}
	return v.fresh[event.Customer.Service].Rebuilding(err)
}

// nodeOf returns the node that a request names.
func nodeOf(m *customer360v1.GetProfileRequest) (identity.Node, error) {
	i := m.GetIdentifier()
	if i == nil {
		return identity.Customer(m.GetCustomerId()), nil
	}
	node, err := identity.NodeOf(i.GetKind(), i.GetValue())
	if err != nil {
		return "", readmodels.InvalidField(m, "identifier", err.Error())
	}
	return node, nil
}

// await blocks until the view shows the command of a token of any of its services.
func (v *View) await(ctx context.Context, request proto.Message, token string) error {
	if token == "" {
		return nil
	}
	t, err := event.ParseToken(token)
	if err != nil {
		return readmodels.InvalidField(request, "token", "not a token from a command's receipt")
	}
	fresh, ok := v.fresh[t.Service]
	if !ok || fresh.Aggregate == event.Behavior {
		return readmodels.InvalidField(request, "token",
			"a token of a service that this view does not show: want customer, order or identity")
	}
	return fresh.AwaitVersion(ctx, request, token, func(ctx context.Context, stream string) (uint64, error) {
		return v.version(ctx, fresh.Aggregate, stream)
	})
}

// Shown returns the version that the view shows of a stream, or 0 if it does not show it.
func (v *View) Shown(ctx context.Context, a event.Aggregate, stream string) (uint64, error) {
	return v.version(ctx, a, stream)
}

// version returns the version of a stream in the view, or 0 if it is not there.
//
// A change of the identity graph is in two streams. The view shows it once both ends have it, which
// may be on different partitions. Otherwise a query that starts from the other end would miss it.
func (v *View) version(ctx context.Context, a event.Aggregate, stream string) (uint64, error) {
	fragments, err := v.load(ctx, a, stream)
	f := fragments[stream]
	if err != nil || f == nil || a != event.Identity {
		return f.GetVersion(), err
	}
	edges := edgesOf(f)
	ends, err := v.edges(ctx, slices.Collect(keys(edges)))
	if err != nil {
		return 0, err
	}
	for other, edge := range edges {
		if ends[other][identity.Node(stream)].Revision < edge.Revision {
			return 0, nil
		}
	}
	return f.GetVersion(), nil
}

// keys returns the other ends of edges.
func keys(edges identity.Edges) func(yield func(identity.Node) bool) {
	return func(yield func(identity.Node) bool) {
		for n := range edges {
			if !yield(n) {
				return
			}
		}
	}
}

// edges returns the edges of nodes.
func (v *View) edges(ctx context.Context, nodes []identity.Node) (map[identity.Node]identity.Edges, error) {
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = string(n)
	}
	fragments, err := v.load(ctx, event.Identity, names...)
	if err != nil {
		return nil, err
	}
	found := make(map[identity.Node]identity.Edges, len(fragments))
	for name, f := range fragments {
		found[identity.Node(name)] = edgesOf(f)
	}
	return found, nil
}

// parts returns the fragments of the person that nodes belong to.
func (v *View) parts(ctx context.Context, nodes ...identity.Node) (Parts, error) {
	var p Parts
	var err error
	p.Person, err = identity.Walk(nodes, func(nodes []identity.Node) (map[identity.Node]identity.Edges, error) {
		return v.edges(ctx, nodes)
	})
	if err != nil || len(p.Person.Customers) == 0 {
		return p, err
	}
	if p.Customers, err = v.load(ctx, event.Customer, p.Person.Customers...); err != nil {
		return p, err
	}
	if p.Behavior, err = v.load(ctx, event.Behavior, behaviorKeys(p.Person)...); err != nil {
		return p, err
	}
	p.Orders, err = v.ordersOf(ctx, p.Person.Customers)
	return p, err
}

// ordersOf returns the orders of customers. A reference can be damaged, so the orders decide.
func (v *View) ordersOf(ctx context.Context, customers []string) (map[string]*Fragment, error) {
	var names []string
	for _, id := range customers {
		found, err := v.docs.Lookup(ctx, id)
		if err != nil {
			return nil, v.lost(ctx, err)
		}
		for _, id := range found {
			if name, ok := strings.CutPrefix(id, event.Order.Name+"/"); ok {
				names = append(names, name)
			}
		}
	}
	orders, err := v.load(ctx, event.Order, names...)
	for id, f := range orders {
		if !slices.Contains(customers, f.GetOrder().GetCustomerId()) {
			delete(orders, id)
		}
	}
	return orders, err
}

// behaviorKeys returns the keys of the records of what a person did: the ids that clients give to
// users and visitors.
func behaviorKeys(p identity.Person) []string {
	all := slices.Clone(p.Customers)
	for _, n := range p.Identifiers {
		switch n.Kind() {
		case identityv1.IdentifierKind_IDENTIFIER_KIND_ANONYMOUS_ID,
			identityv1.IdentifierKind_IDENTIFIER_KIND_DEVICE_ID,
			identityv1.IdentifierKind_IDENTIFIER_KIND_EXTERNAL_ID:
			all = append(all, n.Identifier().GetValue())
		default: // hashes identify no visitor
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// everyCustomer calls fn with the id of every customer that any fragment names, each once. It
// remembers their ids, which takes about 100 bytes each.
func (v *View) everyCustomer(ctx context.Context, fn func(id string) error) error {
	seen := map[string]bool{}
	err := v.docs.Each(ctx, func(s redis.Document) error {
		f, err := unmarshal(s)
		if err != nil {
			return err
		}
		kind, name, _ := strings.Cut(s.ID, "/")
		switch kind {
		case event.Customer.Name:
		case event.Order.Name:
			name = f.GetOrder().GetCustomerId()
		case event.Identity.Name:
			name, _ = identity.Node(name).CustomerID()
		default:
			return nil
		}
		if name != "" {
			seen[name] = true
		}
		return nil
	})
	if err != nil {
		return v.lost(ctx, err)
	}
	for id := range seen {
		if err := fn(id); err != nil {
			return err
		}
	}
	return nil
}
