package customer

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	"github.com/millrace/millrace/gen/millrace/customer/v1/customerv1connect"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
)

// NewHandler returns CustomerService on a store of event.Customer, and the path to mount it on.
func NewHandler(store eventstore.Store, opts ...commands.Option) (string, http.Handler) {
	h := handler{commands.NewRunner(store, event.Customer, Decider(), opts...)}
	return customerv1connect.NewCustomerServiceHandler(h, commands.HandlerOptions(opts...)...)
}

// handler implements CustomerService: it maps requests to commands and states to responses.
type handler struct {
	customers *commands.Runner[State, Command, *customerv1.CustomerEvent]
}

// RegisterCustomer registers a customer, under the id of the request or a new one.
func (h handler) RegisterCustomer(
	ctx context.Context, req *connect.Request[customerv1.RegisterCustomerRequest],
) (*connect.Response[customerv1.RegisterCustomerResponse], error) {
	m, id := req.Msg, commands.ID(req.Msg.GetCustomerId())
	register := Register{
		CustomerID: id, Reference: m.GetReference(), Name: m.GetName(), Email: m.GetEmail(), Country: m.GetCountry(),
		At: h.customers.Time(m.GetRegisteredAt()),
	}
	respond := func(_ State, r *eventv1.Receipt) *customerv1.RegisterCustomerResponse {
		return &customerv1.RegisterCustomerResponse{CustomerId: id, Receipt: r}
	}
	return commands.Do(ctx, req, h.customers.On(id, register), respond)
}

// ChangeAddress replaces the delivery address.
func (h handler) ChangeAddress(
	ctx context.Context, req *connect.Request[customerv1.ChangeAddressRequest],
) (*connect.Response[customerv1.ChangeAddressResponse], error) {
	m, id := req.Msg, commands.ID(req.Msg.GetCustomerId())
	change := ChangeAddress{CustomerID: id, Address: m.GetAddress(), At: h.customers.Time(m.GetChangedAt())}
	respond := func(_ State, r *eventv1.Receipt) *customerv1.ChangeAddressResponse {
		return &customerv1.ChangeAddressResponse{Receipt: r}
	}
	return commands.Do(ctx, req, h.customers.On(id, change), respond)
}

// SetConsent gives or withdraws consent to one purpose.
func (h handler) SetConsent(
	ctx context.Context, req *connect.Request[customerv1.SetConsentRequest],
) (*connect.Response[customerv1.SetConsentResponse], error) {
	m, id := req.Msg, commands.ID(req.Msg.GetCustomerId())
	set := SetConsent{
		CustomerID: id, Purpose: m.GetPurpose(), Granted: m.GetGranted(), At: h.customers.Time(m.GetChangedAt()),
	}
	respond := func(_ State, r *eventv1.Receipt) *customerv1.SetConsentResponse {
		return &customerv1.SetConsentResponse{Receipt: r}
	}
	return commands.Do(ctx, req, h.customers.On(id, set), respond)
}

// GetCustomer reads the customer's stream, not a view, so the answer is current.
func (h handler) GetCustomer(
	ctx context.Context, req *connect.Request[customerv1.GetCustomerRequest],
) (*connect.Response[customerv1.GetCustomerResponse], error) {
	id := commands.ID(req.Msg.GetCustomerId())
	s, version, err := h.customers.Load(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := s.mustBeRegistered(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&customerv1.GetCustomerResponse{
		CustomerId: id, Reference: s.Reference, Name: s.Name, Email: s.Email, Country: s.Country, Address: s.Address,
		Consents: s.Consents, Version: version,
	}), nil
}
