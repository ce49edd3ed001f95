package identity

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/identity"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	"github.com/millrace/millrace/gen/millrace/identity/v1/identityv1connect"
)

// NewHandler returns IdentityService on a store of event.Identity, and the path to mount it on.
func NewHandler(store eventstore.Store, opts ...commands.Option) (string, http.Handler) {
	h := handler{commands.NewRunner(store, event.Identity, Decider(), opts...)}
	return identityv1connect.NewIdentityServiceHandler(h, commands.HandlerOptions(opts...)...)
}

// handler implements IdentityService: it maps requests to commands and states to responses.
type handler struct {
	nodes *commands.Runner[State, Command, *identityv1.IdentityEvent]
}

// on returns a command as a task on its streams.
func (h handler) on(c Command) commands.Task[State, Command, *identityv1.IdentityEvent] {
	return h.nodes.OnAll(c.Streams(), c, Decide)
}

// LinkIdentifiers says that identifiers are a customer's.
func (h handler) LinkIdentifiers(
	ctx context.Context, req *connect.Request[identityv1.LinkIdentifiersRequest],
) (*connect.Response[identityv1.LinkIdentifiersResponse], error) {
	m := req.Msg
	nodes, err := nodesOf(m.GetIdentifiers())
	if err != nil {
		return nil, err
	}
	link := Link{CustomerID: commands.ID(m.GetCustomerId()), Identifiers: nodes, At: h.nodes.Time(m.GetLinkedAt())}
	respond := func(_ State, r *eventv1.Receipt) *identityv1.LinkIdentifiersResponse {
		return &identityv1.LinkIdentifiersResponse{Receipt: r}
	}
	return commands.Do(ctx, req, h.on(link), respond)
}

// UnlinkIdentifiers takes links back.
func (h handler) UnlinkIdentifiers(
	ctx context.Context, req *connect.Request[identityv1.UnlinkIdentifiersRequest],
) (*connect.Response[identityv1.UnlinkIdentifiersResponse], error) {
	m := req.Msg
	nodes, err := nodesOf(m.GetIdentifiers())
	if err != nil {
		return nil, err
	}
	unlink := Unlink{CustomerID: commands.ID(m.GetCustomerId()), Identifiers: nodes, At: h.nodes.Time(m.GetUnlinkedAt())}
	respond := func(_ State, r *eventv1.Receipt) *identityv1.UnlinkIdentifiersResponse {
		return &identityv1.UnlinkIdentifiersResponse{Receipt: r}
	}
	return commands.Do(ctx, req, h.on(unlink), respond)
}

// MergeCustomers says that two customers are one person.
func (h handler) MergeCustomers(
	ctx context.Context, req *connect.Request[identityv1.MergeCustomersRequest],
) (*connect.Response[identityv1.MergeCustomersResponse], error) {
	m := req.Msg
	merge := Merge{
		CustomerID: commands.ID(m.GetCustomerId()), OtherID: commands.ID(m.GetOtherCustomerId()),
		Reason: m.GetReason(), At: h.nodes.Time(m.GetMergedAt()),
	}
	if err := different(merge.CustomerID, merge.OtherID); err != nil {
		return nil, err
	}
	respond := func(_ State, r *eventv1.Receipt) *identityv1.MergeCustomersResponse {
		return &identityv1.MergeCustomersResponse{Receipt: r}
	}
	return commands.Do(ctx, req, h.on(merge), respond)
}

// UnmergeCustomers takes a merge back.
func (h handler) UnmergeCustomers(
	ctx context.Context, req *connect.Request[identityv1.UnmergeCustomersRequest],
) (*connect.Response[identityv1.UnmergeCustomersResponse], error) {
	m := req.Msg
	unmerge := Unmerge{
		CustomerID: commands.ID(m.GetCustomerId()), OtherID: commands.ID(m.GetOtherCustomerId()),
		Reason: m.GetReason(), At: h.nodes.Time(m.GetUnmergedAt()),
	}
	if err := different(unmerge.CustomerID, unmerge.OtherID); err != nil {
		return nil, err
	}
	respond := func(_ State, r *eventv1.Receipt) *identityv1.UnmergeCustomersResponse {
		return &identityv1.UnmergeCustomersResponse{Receipt: r}
	}
	return commands.Do(ctx, req, h.on(unmerge), respond)
}

// GetLinks reads the customer's stream, not a view, so the answer is current.
func (h handler) GetLinks(
	ctx context.Context, req *connect.Request[identityv1.GetLinksRequest],
) (*connect.Response[identityv1.GetLinksResponse], error) {
	id := commands.ID(req.Msg.GetCustomerId())
	s, version, err := h.nodes.Load(ctx, string(identity.Customer(id)))
	if err != nil {
		return nil, err
	}
	links := &identityv1.GetLinksResponse{CustomerId: id, Version: version}
	for _, n := range s.Edges.Joined() {
		if other, ok := n.CustomerID(); ok {
			links.MergedWith = append(links.MergedWith, other)
		} else {
			links.Identifiers = append(links.Identifiers, n.Identifier())
		}
	}
	return connect.NewResponse(links), nil
}

// nodesOf returns the nodes of identifiers, each once.
func nodesOf(identifiers []*identityv1.IdentifierKey) ([]identity.Node, error) {
	var nodes []identity.Node
	for i, key := range identifiers {
		node, err := identity.NodeOf(key.GetKind(), key.GetValue())
		switch {
		case errors.Is(err, identity.ErrBlocked):
			return nil, (&commands.RejectedError{Code: commands.Invalid, Rule: "identifier_blocked",
				Reason: err.Error()}).In("identifiers[%d].value", i)
		case err != nil:
			return nil, (&commands.RejectedError{Code: commands.Invalid, Rule: "identifier_malformed",
				Reason: err.Error()}).In("identifiers[%d].value", i)
		}
		if !slices.Contains(nodes, node) {
			nodes = append(nodes, node)
		}
	}
	return nodes, nil
}

// different rejects a merge of a customer with itself.
func different(a, b string) error {
	if a != b {
		return nil
	}
	return &commands.RejectedError{Code: commands.Invalid, Rule: "merge_with_itself", Field: "other_customer_id",
		Reason: "the two customers are the same"}
}
