package customer_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/commandstest"
	"github.com/millrace/millrace/commands/customer"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
)

const (
	id        = "0196f0c4-0000-7000-8000-000000000001"
	marketing = customerv1.ConsentPurpose_CONSENT_PURPOSE_MARKETING
	analytics = customerv1.ConsentPurpose_CONSENT_PURPOSE_ANALYTICS
)

var monday = time.Date(2010, 12, 6, 8, 26, 0, 0, time.UTC)

func register(name string) customer.Register {
	return customer.Register{
		CustomerID: id, Reference: "17850", Name: name, Email: "alice@example.com", Country: "United Kingdom", At: monday,
	}
}

func registered(name string) *customerv1.CustomerEvent {
	return &customerv1.CustomerEvent{Event: &customerv1.CustomerEvent_Registered{Registered: &customerv1.CustomerRegistered{
		CustomerId: id, Reference: "17850", Name: name, Email: "alice@example.com", Country: "United Kingdom", RegisteredAt: timestamppb.New(monday),
	}}}
}

func address(city string) *customerv1.Address {
	return &customerv1.Address{
		Recipient: "Alice", Lines: []string{"1 High Street"}, PostalCode: "AB1 2CD", City: city, Country: "GB",
	}
}

func move(city string) customer.ChangeAddress {
	return customer.ChangeAddress{CustomerID: id, Address: address(city), At: monday}
}

func moved(city string) *customerv1.CustomerEvent {
	return &customerv1.CustomerEvent{Event: &customerv1.CustomerEvent_AddressChanged{AddressChanged: &customerv1.AddressChanged{
		CustomerId: id, Address: address(city), ChangedAt: timestamppb.New(monday),
	}}}
}

func consent(p customerv1.ConsentPurpose, granted bool) customer.SetConsent {
	return customer.SetConsent{CustomerID: id, Purpose: p, Granted: granted, At: monday}
}

func consented(p customerv1.ConsentPurpose, granted bool) *customerv1.CustomerEvent {
	return &customerv1.CustomerEvent{Event: &customerv1.CustomerEvent_ConsentChanged{ConsentChanged: &customerv1.ConsentChanged{
		CustomerId: id, Purpose: p, Granted: granted, ChangedAt: timestamppb.New(monday),
	}}}
}

// Each spec is a history, a command, and the events or the rejection that follow.
func TestCustomerLifecycle(t *testing.T) {
	t.Parallel()
	type events = []*customerv1.CustomerEvent
	var (
		alice   = registered("Alice")
		unknown = &commands.RejectedError{Code: commands.NotFound, Rule: "customer_unknown", Field: "customer_id"}
	)
	commandstest.Check(t, customer.Decider(), map[string]commandstest.Spec[customer.Command, *customerv1.CustomerEvent]{
		"a customer registers":                   {When: register("Alice"), Then: events{alice}},
		"an address is given":                    {Given: events{alice}, When: move("York"), Then: events{moved("York")}},
		"another address replaces it":            {Given: events{alice, moved("York")}, When: move("Bath"), Then: events{moved("Bath")}},
		"the same address is nothing":            {Given: events{alice, moved("York")}, When: move("York")},
		"consent is given":                       {Given: events{alice}, When: consent(marketing, true), Then: events{consented(marketing, true)}},
		"consent given already is nothing":       {Given: events{alice, consented(marketing, true)}, When: consent(marketing, true)},
		"consent to another purpose is its own":  {Given: events{alice, consented(marketing, true)}, When: consent(analytics, true), Then: events{consented(analytics, true)}},
		"consent is withdrawn":                   {Given: events{alice, consented(marketing, true)}, When: consent(marketing, false), Then: events{consented(marketing, false)}},
		"consent never given is refused":         {Given: events{alice}, When: consent(marketing, false), Then: events{consented(marketing, false)}},
		"consent refused already is nothing":     {Given: events{alice, consented(marketing, false)}, When: consent(marketing, false)},
		"consent refused may be given":           {Given: events{alice, consented(marketing, false)}, When: consent(marketing, true), Then: events{consented(marketing, true)}},
		"a refusal is for one purpose":           {Given: events{alice, consented(marketing, false)}, When: consent(analytics, false), Then: events{consented(analytics, false)}},
		"consent withdrawn may be given again":   {Given: events{alice, consented(marketing, true), consented(marketing, false)}, When: consent(marketing, true), Then: events{consented(marketing, true)}},
		"no second registration of an id":        {Given: events{alice}, When: register("Bob"), Refused: &commands.RejectedError{Code: commands.AlreadyExists, Rule: "customer_already_registered", Field: "customer_id"}},
		"no address of somebody unknown":         {When: move("York"), Refused: unknown},
		"no consent of somebody unknown":         {When: consent(marketing, true), Refused: unknown},
		"no withdrawal of somebody unknown":      {When: consent(marketing, false), Refused: unknown},
		"consent withdrawn already stays so":     {Given: events{alice, consented(marketing, true), consented(marketing, false)}, When: consent(marketing, false)},
		"an address does not depend on consents": {Given: events{alice, consented(analytics, true)}, When: move("York"), Then: events{moved("York")}},
	})
}

// The state survives its encoding in a snapshot.
func TestCustomerSnapshots(t *testing.T) {
	t.Parallel()
	commandstest.Snapshots(t, customer.Decider(), func(t *rapid.T, _ customer.State) customer.Command {
		purpose := rapid.SampledFrom([]customerv1.ConsentPurpose{marketing, analytics}).Draw(t, "purpose")
		city := rapid.SampledFrom([]string{"York", "Bath"}).Draw(t, "city")
		granted := rapid.Bool().Draw(t, "granted")
		return rapid.SampledFrom([]customer.Command{register(city), move(city), consent(purpose, granted)}).Draw(t, "command")
	})
}
