// Package identity changes the identity graph: it links identifiers to customers, and merges
// customers who are one person.
//
//	              LinkIdentifiers, MergeCustomers
//	                 ┌──────────────────────┐
//	                 │                      ▼
//	(no edge) ───► joined ◄──────────► taken back
//	                 ▲                      │
//	                 └──────────────────────┘
//	             UnlinkIdentifiers, UnmergeCustomers
//
// The graph itself is package event/identity. Its nodes are the streams of this service. A command
// changes edges, and each edge has two ends. So each command is decided on the states of all nodes
// that it touches, and stored in their streams in one transaction (commands.Runner.OnAll). Every
// rule concerns one node, so none can be broken by concurrent commands.
//
// Merge protection: an identifier may join only so many customers, and a customer may have only so
// many identifiers of a kind and so many merges; see event/identity.Limits. Placeholders such as
// "null" are no identifiers at all. A command beyond a limit is refused and changes nothing.
//
// This file is the whole domain. It is pure: no I/O, no clock, no randomness. handler.go maps
// IdentityService to it.
package identity

import (
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/event/identity"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
)

// State is one node of the graph: a customer or an identifier.
type State struct{ Edges identity.Edges }

// Command is one of Link, Unlink, Merge and Unmerge.
type Command interface {
	command()
	// Streams returns the nodes that the command is decided on: the customer first. It names each
	// once.
	Streams() []string
}

// The commands. At is the business time.
type (
	// Link says that identifiers are a customer's.
	Link struct {
		CustomerID  string
		Identifiers []identity.Node // canonical, each once
		At          time.Time
	}
	// Unlink takes links back.
	Unlink struct {
		CustomerID  string
		Identifiers []identity.Node // canonical, each once
		At          time.Time
	}
	// Merge says that two customers are one person.
	Merge struct {
		CustomerID, OtherID string
		Reason              string
		At                  time.Time
	}
	// Unmerge takes a merge back.
	Unmerge struct {
		CustomerID, OtherID string
		Reason              string
		At                  time.Time
	}
)

func (Link) command()    {}
func (Unlink) command()  {}
func (Merge) command()   {}
func (Unmerge) command() {}

// Streams implements Command.
func (c Link) Streams() []string { return streams(c.CustomerID, c.Identifiers...) }

// Streams implements Command.
func (c Unlink) Streams() []string { return streams(c.CustomerID, c.Identifiers...) }

// Streams implements Command.
func (c Merge) Streams() []string { return streams(c.CustomerID, identity.Customer(c.OtherID)) }

// Streams implements Command.
func (c Unmerge) Streams() []string { return streams(c.CustomerID, identity.Customer(c.OtherID)) }

func streams(customer string, others ...identity.Node) []string {
	all := []string{string(identity.Customer(customer))}
	for _, n := range others {
		all = append(all, string(n))
	}
	return all
}

// Decider returns how states evolve, for the runner. Commands are decided by Decide, which needs
// several states.
func Decider() commands.Decider[State, Command, *identityv1.IdentityEvent] {
	return commands.Decider[State, Command, *identityv1.IdentityEvent]{
		Decide: func(_ State, c Command) ([]*identityv1.IdentityEvent, error) {
			return nil, fmt.Errorf("%T is decided on several streams", c)
		},
		Evolve: Evolve, Schema: 1,
	}
}

// Evolve returns the node after an event.
func Evolve(s State, e *identityv1.IdentityEvent) State {
	if c, ok := identity.ChangeOf(e); ok {
		s.Edges = s.Edges.With(c.Other, c.Edge)
	}
	return s
}

// events are the events of a command, for each of its streams.
type events = [][]*identityv1.IdentityEvent

// Decide returns the events of a command for each of its streams, or the reason to reject it.
// states are those of c.Streams.
func Decide(states []State, c Command) ([][]*identityv1.IdentityEvent, error) {
	switch c := c.(type) {
	case Link:
		return link(states, c)
	case Unlink:
		return unlink(states, c)
	case Merge:
		return merge(states, c)
	case Unmerge:
		return unmerge(states, c)
	}
	return nil, fmt.Errorf("unknown command %T for an identity", c)
}

// link stores nothing for identifiers that are linked already.
func link(states []State, c Link) (events, error) {
	decided := make(events, len(states))
	customer, at := states[0].Edges, timestamppb.New(c.At)
	for i, node := range c.Identifiers {
		if customer[node].Joined {
			continue
		}
		limit, field := identity.Limits(node.Kind()), fmt.Sprintf("identifiers[%d]", i)
		if have := states[i+1].Edges.Count(customers); have >= limit.Customers {
			return nil, refuse("identifier_shared", field, limit.Customers,
				"the identifier is already linked to as many customers as one of its kind may join")
		}
		if have := customer.Count(node.Kind()); have >= limit.Identifiers {
			return nil, refuse("identifiers_too_many", field, limit.Identifiers,
				"the customer has as many identifiers of this kind as one customer may have")
		}
		// Later identifiers of the command count this one.
		revision := customer[node].Revision + 1
		customer = customer.With(node, identity.Edge{Revision: revision, Joined: true, At: c.At})
		for end, subject := range map[int]identity.Node{0: identity.Customer(c.CustomerID), i + 1: node} {
			decided[end] = append(decided[end], &identityv1.IdentityEvent{Event: &identityv1.IdentityEvent_Linked{
				Linked: &identityv1.IdentifierLinked{
					Subject: string(subject), CustomerId: c.CustomerID, Identifier: node.Identifier(),
					Revision: revision, LinkedAt: at,
				},
			}})
		}
	}
	return decided, nil
}

// unlink stores nothing for identifiers that are not linked.
func unlink(states []State, c Unlink) (events, error) {
	decided := make(events, len(states))
	for i, node := range c.Identifiers {
		edge := states[0].Edges[node]
		if !edge.Joined {
			continue
		}
		for end, subject := range map[int]identity.Node{0: identity.Customer(c.CustomerID), i + 1: node} {
			decided[end] = append(decided[end], &identityv1.IdentityEvent{Event: &identityv1.IdentityEvent_Unlinked{
				Unlinked: &identityv1.IdentifierUnlinked{
					Subject: string(subject), CustomerId: c.CustomerID, Identifier: node.Identifier(),
					Revision: edge.Revision + 1, UnlinkedAt: timestamppb.New(c.At),
				},
			}})
		}
	}
	return decided, nil
}

// merge stores nothing if the two are merged already.
func merge(states []State, c Merge) (events, error) {
	one, other := identity.Customer(c.CustomerID), identity.Customer(c.OtherID)
	edge := states[0].Edges[other]
	if edge.Joined {
		return make(events, len(states)), nil
	}
	for i, field := range []string{"customer_id", "other_customer_id"} {
		if states[i].Edges.Count(customers) >= identity.MaxMerges {
			return nil, refuse("merges_too_many", field, identity.MaxMerges,
				"the customer is merged with as many others as one customer may be")
		}
	}
	decided := make(events, 0, len(states))
	for _, subject := range []identity.Node{one, other} {
		decided = append(decided, []*identityv1.IdentityEvent{{Event: &identityv1.IdentityEvent_Merged{
			Merged: &identityv1.CustomersMerged{
				Subject: string(subject), CustomerId: c.CustomerID, OtherCustomerId: c.OtherID,
				Revision: edge.Revision + 1, Reason: c.Reason, MergedAt: timestamppb.New(c.At),
			},
		}}})
	}
	return decided, nil
}

// unmerge stores nothing if the merge was taken back already. It refuses if there never was one:
// the two may be one person because of other customers or identifiers between them.
func unmerge(states []State, c Unmerge) (events, error) {
	one, other := identity.Customer(c.CustomerID), identity.Customer(c.OtherID)
	edge, known := states[0].Edges[other]
	if !known {
		return nil, &commands.RejectedError{
			Code: commands.Refused, Rule: "customers_not_merged", Field: "other_customer_id",
			Reason: "the two customers were never merged with each other; GetLinks shows what a customer is joined with",
		}
	}
	if !edge.Joined {
		return make(events, len(states)), nil
	}
	decided := make(events, 0, len(states))
	for _, subject := range []identity.Node{one, other} {
		decided = append(decided, []*identityv1.IdentityEvent{{Event: &identityv1.IdentityEvent_Unmerged{
			Unmerged: &identityv1.CustomersUnmerged{
				Subject: string(subject), CustomerId: c.CustomerID, OtherCustomerId: c.OtherID,
				Revision: edge.Revision + 1, Reason: c.Reason, UnmergedAt: timestamppb.New(c.At),
			},
		}}})
	}
	return decided, nil
}

// customers is the kind of a customer's node.
const customers = identityv1.IdentifierKind_IDENTIFIER_KIND_UNSPECIFIED

// refuse returns the rejection of a command beyond a limit.
func refuse(rule, field string, limit int, reason string) *commands.RejectedError {
	return &commands.RejectedError{
		Code: commands.Refused, Rule: rule, Field: field, Reason: reason,
		Facts: map[string]string{"limit": strconv.Itoa(limit)},
	}
}
