package identification_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	embedded "github.com/millrace/millrace/internal/embedded/redis"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/processes/identification"
	"github.com/millrace/millrace/streams/streamstest"
)

const (
	anonymousID = identityv1.IdentifierKind_IDENTIFIER_KIND_ANONYMOUS_ID
	emailHash   = identityv1.IdentifierKind_IDENTIFIER_KIND_EMAIL_HASH
	phoneHash   = identityv1.IdentifierKind_IDENTIFIER_KIND_PHONE_HASH
	externalID  = identityv1.IdentifierKind_IDENTIFIER_KIND_EXTERNAL_ID

	customer = "019b8d73-dfa0-77b3-b48c-0c15d9771524"
)

var received = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// identify returns an identify event of the customer.
func identify(t testing.TB, id, anonymous, traits string) (event.Event, *behaviorv1.BehaviorEvent) {
	t.Helper()
	m := &behaviorv1.BehaviorEvent{
		MessageId: id, Type: behavior.Identify, UserId: customer, AnonymousId: anonymous, Source: "web", Traits: traits,
		Timestamp: timestamppb.New(received.Add(-time.Second)), ReceivedAt: timestamppb.New(received),
	}
	return envelope(t, m), m
}

func envelope(t testing.TB, m *behaviorv1.BehaviorEvent) event.Event {
	t.Helper()
	e, err := behavior.Envelope(m)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func TestLinks(t *testing.T) {
	t.Parallel()
	kinds := map[string]identityv1.IdentifierKind{"email": emailHash, "mobile": phoneHash, "crm": externalID}
	hash := hashOf("ada@example.com")
	for name, c := range map[string]struct {
		change   func(*behaviorv1.BehaviorEvent)
		want     map[string]identityv1.IdentifierKind // by value; nil: no customer
		unusable int
	}{
		"an anonymous id": {want: map[string]identityv1.IdentifierKind{"a1": anonymousID}},
		"no anonymous id": {func(m *behaviorv1.BehaviorEvent) { m.AnonymousId = "" },
			map[string]identityv1.IdentifierKind{}, 0},
		"an address, as people write it": {func(m *behaviorv1.BehaviorEvent) { m.Traits = `{"email":" Ada@Example.com ","age":3}` },
			map[string]identityv1.IdentifierKind{"a1": anonymousID, hash: emailHash}, 0},
		"an address, hashed by the client": {func(m *behaviorv1.BehaviorEvent) { m.Traits = `{"email":"` + hash + `"}` },
			map[string]identityv1.IdentifierKind{"a1": anonymousID, hash: emailHash}, 0},
		"a number, as people write it": {func(m *behaviorv1.BehaviorEvent) { m.Traits = `{"mobile":"+44 (20) 7946-0018"}` },
			map[string]identityv1.IdentifierKind{"a1": anonymousID, hashOf("+442079460018"): phoneHash}, 0},
		"a number without its country": {func(m *behaviorv1.BehaviorEvent) { m.Traits = `{"mobile":"020 7946 0018","crm":"7"}` },
			map[string]identityv1.IdentifierKind{"a1": anonymousID, "7": externalID}, 1},
		"no address": {func(m *behaviorv1.BehaviorEvent) { m.Traits = `{"email":"ada","crm":7,"mobile":null}` },
			map[string]identityv1.IdentifierKind{"a1": anonymousID}, 2},
		"a user who is no customer": {change: func(m *behaviorv1.BehaviorEvent) { m.UserId = "u-17" }},
		"no user":                   {change: func(m *behaviorv1.BehaviorEvent) { m.UserId = "" }},
	} {
		_, m := identify(t, "1", "a1", "")
		if c.change != nil {
			c.change(m)
		}
		e := envelope(t, m)
		links, unusable := identification.Links(e, m, kinds)
		if unusable != c.unusable || len(links) != len(c.want) || (links == nil) != (c.want == nil) {
			t.Errorf("%s: %v, %d unusable; want %v, %d", name, links, unusable, c.want, c.unusable)
		}
		keys := map[string]bool{}
		for _, link := range links {
			i := link.GetIdentifiers()[0]
			if kind, ok := c.want[i.GetValue()]; !ok || kind != i.GetKind() || link.GetCustomerId() != customer {
				t.Errorf("%s: unexpected %v", name, link)
			}
			if link.GetLinkedAt().AsTime() != e.OccurredAt {
				t.Errorf("%s: linked at %v, want the time of the event", name, link.GetLinkedAt().AsTime())
			}
			keys[link.GetIdempotencyKey()] = true
		}
		if len(keys) != len(links) {
			t.Errorf("%s: the keys of %d links are %v", name, len(links), keys)
		}
	}
	// A client's clock may be ahead, and a command may not be.
	_, m := identify(t, "1", "a1", "")
	m.Timestamp = timestamppb.New(received.Add(time.Hour))
	if links, _ := identification.Links(envelope(t, m), m, nil); links[0].GetLinkedAt().AsTime() != received {
		t.Errorf("linked at %v, want when it was received", links[0].GetLinkedAt().AsTime())
	}
}

// FuzzLinks checks that any traits result in commands that the service can decide.
func FuzzLinks(f *testing.F) {
	f.Add("a1", `{"email":"ada@example.com","mobile":"+442079460018","crm":"7"}`)
	f.Add("", `{"email":{"email":[]}}`)
	kinds := map[string]identityv1.IdentifierKind{"email": emailHash, "mobile": phoneHash, "crm": externalID}
	f.Fuzz(func(t *testing.T, anonymous, traits string) {
		m := &behaviorv1.BehaviorEvent{
			MessageId: "1", Type: behavior.Identify, UserId: customer, AnonymousId: anonymous, Source: "web", Traits: traits,
			Timestamp: timestamppb.New(received), ReceivedAt: timestamppb.New(received),
		}
		e, err := behavior.Envelope(m)
		if err != nil {
			return // no reader accepts it
		}
		links, unusable := identification.Links(e, m, kinds)
		if len(links) > 1+len(kinds) || unusable > len(kinds) {
			t.Fatalf("%d links and %d unusable traits of %d kinds", len(links), unusable, len(kinds))
		}
		for _, link := range links {
			i := link.GetIdentifiers()[0]
			if i.GetValue() == "" || len(link.GetIdempotencyKey()) > 200 {
				t.Fatalf("%v cannot be decided", link)
			}
			if k := i.GetKind(); (k == emailHash || k == phoneHash) && len(i.GetValue()) != 64 {
				t.Fatalf("%v is not a hash", i)
			}
		}
	})
}

// service answers commands as the service identity does: once per key.
type service struct {
	mu       sync.Mutex
	answered map[string]int // how often, by key
	fail     func(n int) error
	calls    int
}

func (s *service) Send(_ context.Context, command proto.Message) (*eventv1.Receipt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.fail != nil {
		if err := s.fail(s.calls); err != nil {
			return nil, err
		}
	}
	link, ok := command.(*identityv1.LinkIdentifiersRequest)
	if !ok {
		return nil, fmt.Errorf("unexpected %T", command)
	}
	s.answered[link.GetIdempotencyKey()]++
	return &eventv1.Receipt{}, nil
}

// keys returns how many different links were answered.
func (s *service) keys() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.answered)
}

// TestNoLinkIsLost checks that every identify event becomes a command while the service fails now and
// then, that a restart continues where the process was, and that a Redis without positions makes it
// read everything again under the same keys.
func TestNoLinkIsLost(t *testing.T) {
	t.Parallel()
	broker := streamstest.NewBroker(t)
	log := streamstest.NewLog(t, broker, event.Behavior.Topic)
	unavailable := connect.NewError(connect.CodeUnavailable, errors.New("for the test"))
	s := &service{answered: map[string]int{}, fail: func(n int) error {
		if n == 1 || n == 5 || n == 25 {
			return unavailable
		}
		return nil
	}}
	run := func(client *redis.Client, write func()) {
		p := identification.New(identification.Config{Redis: client, Commands: s, Logger: streamstest.Quiet})
		stop := streamstest.Start(t, p.Runtime(broker, nil))
		defer stop()
		write()
		polltest.Until(t, "everything is read", func() bool { _, lag := p.Progress(); return lag == 0 })
	}
	client := open(t)
	repeated := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		n := 0
		for _, answers := range s.answered {
			n += answers - 1
		}
		return n
	}
	write := func(from, to int) func() {
		return func() {
			for i := from; i < to; i++ {
				e, m := identify(t, fmt.Sprint(i), fmt.Sprintf("a%d", i), "")
				m.Type, m.Event, m.MessageId = behavior.Track, "Product Viewed", "t"+m.GetMessageId()
				log.Write(t, e, envelope(t, m))
			}
			polltest.Until(t, "every event is a link", func() bool { return s.keys() == to })
		}
	}
	run(client, write(0, 10))
	before := repeated()
	run(client, write(10, 20))
	// At most what had not been saved when the process stopped, or failed, is sent again.
	if again := repeated() - before; again > 20 {
		t.Errorf("%d links were requested again after the restart", again)
	}
	before = repeated()
	run(open(t), func() {
		polltest.Until(t, "everything is delivered again", func() bool { return repeated() >= before+20 })
	})
	if s.keys() != 20 {
		t.Errorf("%d different links, want 20", s.keys())
	}
}

func open(t *testing.T) *redis.Client {
	t.Helper()
	server, err := embedded.Start(t.Context(), embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	client, err := redis.Open(t.Context(), redis.Config{Addr: server.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return client
}
