// Package customer360 is the view of whole customers: one profile of contact, consents, orders,
// behaviour and identifiers for each person.
//
// The view reads several topics, whose partitions are applied independently and in any order. So
// it stores fragments, not profiles: one for each customer, order, node of the identity graph, and
// visitor. Each fragment is fed by one stream on one partition, and contains its own guard against
// redelivery: the stream's version, or for a visitor the offset. Facts.Project folds an event into a
// fragment. Compose makes the profile of a person from fragments, when it is read. Which fragments
// are a person's is what event/identity says. So a merge rewrites nothing, and after it was taken
// back, the profiles are those of two people who were never merged.
//
// View stores the fragments in Redis and is a streams.Sink. Queries answers CustomerQueryService.
//
// A fragment of a customer or a visitor is personal data, as are its answers. Everything that is
// known of a customer is found from their id, which is what erasure needs.
package customer360

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	"github.com/millrace/millrace/event/identity"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/readmodels"
	"github.com/millrace/millrace/streams"
)

// Projection is the number of Facts.Project and of the projection of behaviour. Raise it with every
// change that changes a fragment, so that versions which were built before it are reported.
const Projection = 1

// Fragment is what the view stores of one stream.
type Fragment = customer360v1.Fragment

// Sources returns the aggregates that the view reads.
func Sources() []event.Aggregate {
	return []event.Aggregate{event.Customer, event.Order, event.Identity, event.Behavior}
}

// Project implements readmodels.Project for fragments of all sources with versions. An event of an
// unknown type changes only the version and the time, so that older processes can read newer
// events.
func (facts Facts) Project(before *Fragment, e event.Event) (*Fragment, error) {
	// A clone, because Project must not change the fragment that it receives.
	next := &Fragment{}
	if before != nil {
		next = proto.CloneOf(before)
	}
	next.Version, next.RecordedAt = e.Version, timestamppb.New(e.RecordedAt)
	var err error
	switch e.Aggregate {
	case event.Customer.Name:
		err = projectCustomer(next, e)
	case event.Order.Name:
		err = facts.projectOrder(next, e)
	case event.Identity.Name:
		err = projectNode(next, e)
	default:
		err = fmt.Errorf("the view does not read events of %q", e.Aggregate)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s, version %d: %w", e.Type, e.Version, err)
	}
	return next, nil
}

func projectCustomer(f *Fragment, e event.Event) error {
	var message customerv1.CustomerEvent
	if err := proto.Unmarshal(e.Data, &message); err != nil {
		return err
	}
	c := f.GetCustomer()
	if c == nil {
		c = &customer360v1.CustomerFragment{}
		f.Content = &customer360v1.Fragment_Customer{Customer: c}
	}
	switch m := message.Event.(type) {
	case *customerv1.CustomerEvent_Registered:
		r := m.Registered
		c.Reference, c.Name, c.Email, c.Country = r.GetReference(), r.GetName(), r.GetEmail(), r.GetCountry()
		c.RegisteredAt = r.GetRegisteredAt()
	case *customerv1.CustomerEvent_AddressChanged:
		c.Address = m.AddressChanged.GetAddress()
	case *customerv1.CustomerEvent_ConsentChanged:
		changed := &customer360v1.ConsentFragment{
			Purpose: m.ConsentChanged.GetPurpose(), Granted: m.ConsentChanged.GetGranted(),
			ChangedAt: m.ConsentChanged.GetChangedAt(),
		}
		at, found := slices.BinarySearchFunc(c.Consents, changed.Purpose,
			func(known *customer360v1.ConsentFragment, p customerv1.ConsentPurpose) int {
				return int(known.GetPurpose()) - int(p)
			})
		if found {
			c.Consents[at] = changed
		} else {
			c.Consents = slices.Insert(c.Consents, at, changed)
		}
	}
	return nil
}

func (facts Facts) projectOrder(f *Fragment, e event.Event) error {
	var message orderv1.OrderEvent
	if err := proto.Unmarshal(e.Data, &message); err != nil {
		return err
	}
	o := f.GetOrder()
	if o == nil {
		o = &customer360v1.OrderFragment{}
		f.Content = &customer360v1.Fragment_Order{Order: o}
	}
	switch m := message.Event.(type) {
	case *orderv1.OrderEvent_Placed:
		o.Stage = orderv1.OrderStage_ORDER_STAGE_PLACED
		o.CustomerId, o.Reference = m.Placed.GetCustomerId(), m.Placed.GetReference()
		o.Total, o.OrderedAt = m.Placed.GetTotal(), m.Placed.GetOrderedAt()
	case *orderv1.OrderEvent_LinesAdded:
		o.Total = m.LinesAdded.GetTotal()
	case *orderv1.OrderEvent_Confirmed:
		o.Stage = orderv1.OrderStage_ORDER_STAGE_CONFIRMED
	case *orderv1.OrderEvent_Cancelled:
		o.Stage = orderv1.OrderStage_ORDER_STAGE_CANCELLED
	}
	if facts != nil && o.GetCustomerId() != "" {
		applyFacts(o, facts(e))
	}
	return nil
}

func projectNode(f *Fragment, e event.Event) error {
	var message identityv1.IdentityEvent
	if err := proto.Unmarshal(e.Data, &message); err != nil {
		return err
	}
	edges := edgesOf(f)
	if c, ok := identity.ChangeOf(&message); ok && string(c.Subject) == e.Stream {
		edges = edges.With(c.Other, c.Edge)
	}
	node := &customer360v1.NodeFragment{}
	for other, edge := range edges {
		node.Edges = append(node.Edges, &customer360v1.EdgeFragment{
			Node: string(other), Revision: edge.Revision, Joined: edge.Joined, ChangedAt: timestamppb.New(edge.At),
		})
	}
	slices.SortFunc(node.Edges, func(a, b *customer360v1.EdgeFragment) int {
		return strings.Compare(a.GetNode(), b.GetNode())
	})
	f.Content = &customer360v1.Fragment_Node{Node: node}
	return nil
}

// edgesOf returns the edges of a node's fragment, which may be nil.
func edgesOf(f *Fragment) identity.Edges {
	edges := identity.Edges{}
	for _, e := range f.GetNode().GetEdges() {
		edges[identity.Node(e.GetNode())] = identity.Edge{
			Revision: e.GetRevision(), Joined: e.GetJoined(), At: e.GetChangedAt().AsTime(),
		}
	}
	return edges
}

// Limits of a visitor's fragment.
const (
	maxNames  = 50  // names of events with a count of their own
	maxName   = 100 // bytes of a name, and of a page
	maxRecent = 32  // ids of events that are remembered, to ignore copies
	idSize    = 16
)

// projectBehavior folds a record of behaviour into the fragment of its visitor. It returns the
// fragment unchanged if the record is below the fragment's offset.
//
// A record whose event is among the last ones of the visitor is a copy, and moves the offset only.
func projectBehavior(before *Fragment, r streams.Record) (*Fragment, error) {
	e := r.Event
	if next, known := before.GetBehavior().GetNext()[r.Partition]; known && r.Offset < next {
		return before, nil
	}
	m, err := behavior.Decode(e)
	if err != nil {
		return nil, fmt.Errorf("read behaviour: %w", err)
	}
	f := &Fragment{Content: &customer360v1.Fragment_Behavior{Behavior: &customer360v1.BehaviorFragment{}}}
	if before != nil {
		f = proto.CloneOf(before)
	}
	b := f.GetBehavior()
	f.Version++
	f.RecordedAt = timestamppb.New(e.RecordedAt)
	if b.Next == nil {
		b.Next = map[int32]int64{}
	}
	b.Next[r.Partition] = r.Offset + 1
	for id := range slices.Chunk(b.Recent, idSize) {
		if slices.Equal(id, e.ID[:]) {
			return f, nil
		}
	}
	b.Recent = append(b.Recent, e.ID[:]...)
	b.Recent = b.Recent[max(0, len(b.Recent)-maxRecent*idSize):]
	count(b, m, e)
	return f, nil
}

// count adds an event to the sums of a visitor.
func count(b *customer360v1.BehaviorFragment, m *behaviorv1.BehaviorEvent, e event.Event) {
	b.Events++
	name := m.GetType()
	if name == "track" && m.GetEvent() != "" {
		name = m.GetEvent()
	}
	name = shortened(name)
	if _, known := b.Counts[name]; known || len(b.Counts) < maxNames {
		if b.Counts == nil {
			b.Counts = map[string]uint64{}
		}
		b.Counts[name]++
	} else {
		b.OtherEvents++
	}
	at := timestamppb.New(e.OccurredAt)
	if b.FirstSeen == nil || at.AsTime().Before(b.FirstSeen.AsTime()) {
		b.FirstSeen = at
	}
	if b.LastSeen == nil || at.AsTime().After(b.LastSeen.AsTime()) {
		b.LastSeen = at
	}
	// A later page counts, also if it arrives first.
	if m.GetType() == "page" && (b.LastPageAt == nil || !at.AsTime().Before(b.LastPageAt.AsTime())) {
		b.LastPage, b.LastPageAt = shortened(m.GetName()), at
	}
}

// shortened bounds a name that a client chose, at a whole character.
func shortened(s string) string {
	if len(s) <= maxName {
		return s
	}
	return strings.ToValidUTF8(s[:maxName], "")
}

// ExpectedDigest returns the digest of the fragments of an aggregate, of a view that keeps these facts
// and has applied the events, which come in order per stream.
func (facts Facts) ExpectedDigest(events iter.Seq2[event.Event, error]) (*digest.Digest, error) {
	return readmodels.Expected(events, facts.Project)
}
