package refusals_test

import (
	"context"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/refusals"
	"github.com/millrace/millrace/streams/streamstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	analytics = customerv1.ConsentPurpose_CONSENT_PURPOSE_ANALYTICS
	marketing = customerv1.ConsentPurpose_CONSENT_PURPOSE_MARKETING

	one   = "00000000-0000-7000-8000-00000000000a"
	other = "00000000-0000-7000-8000-00000000000b"
	// unregistered has no events.
	unregistered = "00000000-0000-7000-8000-00000000000c"
)

// TestRefusals follows a topic: the last word of a customer on a purpose counts, and who was not asked
// refuses nothing.
func TestRefusals(t *testing.T) {
	t.Parallel()
	broker := streamstest.NewBroker(t)
	log := streamstest.NewLog(t, broker, event.Customer.Topic)
	say := func(customer string, purpose customerv1.ConsentPurpose, granted bool) {
		t.Helper()
		data, err := proto.Marshal(&customerv1.CustomerEvent{Event: &customerv1.CustomerEvent_ConsentChanged{
			ConsentChanged: &customerv1.ConsentChanged{Purpose: purpose, Granted: granted}}})
		if err != nil {
			t.Fatal(err)
		}
		log.Write(t, log.Next(event.Customer.Name, customer, data))
	}
	say(one, analytics, false)
	say(one, marketing, false)
	say(one, marketing, true)
	say(other, analytics, true)
	f := refusals.NewFollower(broker, nil, streamstest.Quiet)
	if f.Ready() == nil {
		t.Error("it is ready before it has read anything")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	polltest.Until(t, "the topic is read", func() bool { return f.Ready() == nil })
	for _, c := range []struct {
		customer string
		purpose  customerv1.ConsentPurpose
		want     bool
	}{
		{one, analytics, true}, {"00000000-0000-7000-8000-00000000000A", analytics, true}, {one, marketing, false},
		{other, analytics, false}, {other, marketing, false}, {"", analytics, false},
	} {
		if got := f.Refuses(c.purpose, c.customer); got != c.want {
			t.Errorf("%s refuses %v: %v", c.customer, c.purpose, got)
		}
	}
	// A person who is several customers refuses what one of them does, and what not all of them grant.
	for _, c := range []struct {
		purpose   customerv1.ConsentPurpose
		customers []string
		want      bool
	}{
		{analytics, []string{one, other}, true}, {analytics, []string{other, one}, true}, {analytics, []string{other}, false},
		{marketing, []string{one, other}, true}, {marketing, []string{one, unregistered}, false}, {marketing, []string{other}, false},
	} {
		if got := f.Refuses(c.purpose, c.customers...); got != c.want {
			t.Errorf("%q refuse %v: %v", c.customers, c.purpose, got)
		}
	}
	before, upto, err := refusals.Read(t.Context(), broker, nil, streamstest.Quiet, nil)
	if err != nil {
		t.Fatal(err)
	}
	say(one, analytics, true)
	say(other, marketing, false)
	again, _, err := refusals.Read(t.Context(), broker, nil, streamstest.Quiet, upto)
	if err != nil {
		t.Fatal(err)
	}
	after, _, err := refusals.Read(t.Context(), broker, nil, streamstest.Quiet, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		of     *refusals.Follower
		before bool
	}{"before the changes": {before, true}, "up to the same offsets": {again, true}, "after them": {after, false}} {
		if c.of.Refuses(analytics, one) != c.before || c.of.Refuses(marketing, other) == c.before {
			t.Errorf("read %s: %t, %t", name, c.of.Refuses(analytics, one), c.of.Refuses(marketing, other))
		}
	}
	upto[0] += 100
	if _, _, err := refusals.Read(t.Context(), broker, nil, streamstest.Quiet, upto); err == nil {
		t.Error("offsets after the end of the log are read")
	}
	polltest.Until(t, "the changes count", func() bool {
		return !f.Refuses(analytics, one) && f.Refuses(marketing, other)
	})
}
