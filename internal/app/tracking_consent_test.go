package app

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	"github.com/millrace/millrace/ingest/tracking"
	"github.com/millrace/millrace/internal/client"
	"github.com/millrace/millrace/internal/polltest"
)

// TestTrackedEventsOfCustomersWhoRefuse checks that the intake drops the events of a customer who
// refuses a purpose with SetConsent, whatever the events say, also after a restart, and until the
// customer consents again.
func TestTrackedEventsOfCustomersWhoRefuse(t *testing.T) {
	t.Parallel()
	c := embeddedConfig(t)
	c.Tracking.Consent = map[string]string{"analytics": tracking.Drop, "ads": tracking.Reduce}
	roles := []Role{Commands, Relay, Tracking}
	p := startEmbedded(t, c, Shop(), roles...)
	ready := func() {
		t.Helper()
		polltest.Until(t, "the process is ready", func() bool { return p.unready(t.Context()) == nil })
	}
	ready()
	refusing, other := uuid.NewString(), uuid.NewString()
	consent := func(granted bool) {
		t.Helper()
		commands := client.New(p.Addr(), time.Minute)
		defer commands.Close()
		for _, command := range []proto.Message{
			&customerv1.RegisterCustomerRequest{CustomerId: refusing, Country: "GB", IdempotencyKey: "registered"},
			&customerv1.SetConsentRequest{CustomerId: refusing, Granted: granted,
				Purpose: customerv1.ConsentPurpose_CONSENT_PURPOSE_ANALYTICS, IdempotencyKey: uuid.NewString()},
		} {
			if _, err := commands.Send(t.Context(), command); err != nil {
				t.Fatal(err)
			}
		}
	}
	// dropped sends an event of a user, and reports whether it was dropped.
	dropped := func(user string) bool {
		t.Helper()
		before := p.tracking.Stats()
		status := track(t, p, "/v1/track", "demo-write-key", fmt.Sprintf(`{"messageId":%q,"event":"Product Viewed",`+
			`"userId":%q,"context":{"consent":{"categoryPreferences":{"analytics":true}}}}`, uuid.NewString(), user))
		after := p.tracking.Stats()
		if status != http.StatusOK || after.Accepted+after.Dropped != before.Accepted+before.Dropped+1 {
			t.Fatalf("the intake answered %d and counts %+v after %+v", status, after, before)
		}
		return after.Dropped > before.Dropped
	}
	consent(true)
	consent(false)
	polltest.Until(t, "the refusal counts", func() bool { return dropped(refusing) })
	if dropped(other) {
		t.Error("an event of another user was dropped")
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = startEmbedded(t, c, Shop(), roles...)
	ready()
	if !dropped(refusing) || dropped(other) {
		t.Error("after a restart, the refusal does not count")
	}
	consent(true)
	polltest.Until(t, "the consent counts", func() bool { return !dropped(refusing) })
}

// TestPurposesOfEventsOnly checks that the topic of customers is not read for purposes that only events
// have: the role then needs no right to it.
func TestPurposesOfEventsOnly(t *testing.T) {
	t.Parallel()
	c := embeddedConfig(t)
	c.Tracking.Consent = map[string]string{"ads": tracking.Drop}
	p := startEmbedded(t, c, Shop(), Tracking)
	if p.refusals != nil {
		t.Error("the consents of customers are read")
	}
}
