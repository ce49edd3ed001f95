package customer_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/commandstest"
	"github.com/millrace/millrace/commands/customer"
	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	"github.com/millrace/millrace/gen/millrace/customer/v1/customerv1connect"
)

func registration() *customerv1.RegisterCustomerRequest {
	return &customerv1.RegisterCustomerRequest{
		CustomerId: id, Reference: "17850", Name: "Alice Liddell", Email: "alice@example.com",
		Country: "United Kingdom", RegisteredAt: timestamppb.New(monday),
	}
}

// All procedures, over gRPC, with reads through a snapshot.
func TestCustomerOverTheWire(t *testing.T) {
	t.Parallel()
	store := commandstest.OpenStore(t, event.Customer)
	// Snapshots after every second event, so that GetCustomer uses one.
	s := commandstest.Serve(t, store, customer.NewHandler, commands.WithSnapshotEvery(2))
	client := customerv1connect.NewCustomerServiceClient(s.HTTP2, s.URL, connect.WithGRPC())
	ctx := t.Context()

	_, err := client.GetCustomer(ctx, connect.NewRequest(&customerv1.GetCustomerRequest{CustomerId: id}))
	if r := commandstest.Rejection(t, err, connect.CodeNotFound); r.GetRule() != "customer_unknown" ||
		r.GetField() != "customer_id" {
		t.Errorf("nobody: %v", r)
	}
	if res, err := client.RegisterCustomer(ctx, connect.NewRequest(registration())); err != nil ||
		res.Msg.GetCustomerId() != id {
		t.Fatalf("register: %v, %v", res, err)
	}
	if _, err := client.ChangeAddress(ctx, connect.NewRequest(&customerv1.ChangeAddressRequest{
		CustomerId: strings.ToUpper(id), Address: address("York"),
	})); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*customerv1.SetConsentRequest{
		{CustomerId: id, Purpose: analytics, Granted: true}, {CustomerId: id, Purpose: marketing, Granted: true},
		{CustomerId: id, Purpose: analytics}, {CustomerId: id, Purpose: analytics},
	} {
		if _, err := client.SetConsent(ctx, connect.NewRequest(c)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := client.GetCustomer(ctx, connect.NewRequest(&customerv1.GetCustomerRequest{CustomerId: id}))
	want := &customerv1.GetCustomerResponse{
		CustomerId: id, Reference: "17850", Name: "Alice Liddell", Email: "alice@example.com", Country: "United Kingdom",
		Address: address("York"), Consents: []customerv1.ConsentPurpose{marketing}, Version: 5,
	}
	if err != nil || !proto.Equal(got.Msg, want) {
		t.Errorf("got %v, %v\nwant %v", got, err, want)
	}

	created, err := client.RegisterCustomer(ctx, connect.NewRequest(&customerv1.RegisterCustomerRequest{Country: "France"}))
	if err != nil || created.Msg.GetCustomerId() == "" || created.Msg.GetCustomerId() == id {
		t.Errorf("without an id: %v, %v", created, err)
	}
}

// broken is a store whose errors contain the data that it was given.
type broken struct{ eventstore.Store }

func (b broken) Append(_ context.Context, batch eventstore.Batch) (eventstore.Appended, error) {
	return eventstore.Appended{}, errors.Join(errors.New("disk full"), batch.Validate())
}

// TestErrorsContainNoPersonalData checks that no error discloses personal data, neither to the
// caller, who may be another person, nor in the log.
func TestErrorsContainNoPersonalData(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	logger := commands.WithLogger(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	store := commandstest.OpenStore(t, event.Customer)
	s := commandstest.Serve(t, store, customer.NewHandler, logger)
	whole := customerv1connect.NewCustomerServiceClient(s.HTTP1, s.URL)
	s = commandstest.Serve(t, broken{store}, customer.NewHandler, logger)
	failing := customerv1connect.NewCustomerServiceClient(s.HTTP1, s.URL)

	var messages []string
	register := func(c customerv1connect.CustomerServiceClient, change func(*customerv1.RegisterCustomerRequest)) {
		m := registration()
		change(m)
		if _, err := c.RegisterCustomer(t.Context(), connect.NewRequest(m)); err != nil {
			messages = append(messages, err.Error())
		}
	}
	register(whole, func(*customerv1.RegisterCustomerRequest) {})
	// Already registered, not an e-mail address, a name that is too long, and a store that fails.
	register(whole, func(*customerv1.RegisterCustomerRequest) {})
	register(whole, func(m *customerv1.RegisterCustomerRequest) { m.Email = "alice@@example.com" })
	register(whole, func(m *customerv1.RegisterCustomerRequest) { m.Name = strings.Repeat("Alice Liddell", 100) })
	register(failing, func(m *customerv1.RegisterCustomerRequest) {
		m.CustomerId = "0196f0c4-0000-7000-8000-000000000002"
	})
	if len(messages) != 4 || log.Len() == 0 {
		t.Fatalf("want 4 errors and a log, got %q and %q", messages, log.String())
	}
	for _, text := range append(messages, log.String()) {
		personal := func(p string) bool { return strings.Contains(text, p) }
		if slices.ContainsFunc([]string{"Alice", "Liddell", "alice@"}, personal) {
			t.Errorf("personal data in: %s", text)
		}
	}
}
