package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"

	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	"github.com/millrace/millrace/gen/millrace/customer360/v1/customer360v1connect"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
)

// Customers of shopper.
const (
	known    = "019b8d73-dfa0-77b3-b48c-0c15d9771521"
	refusing = "019b8d73-dfa0-77b3-b48c-0c15d9771522"
	granting = "019b8d73-dfa0-77b3-b48c-0c15d9771523" // without an order
	stranger = "019b8d73-dfa0-77b3-b48c-0c15d9771524"
)

// shopper serves features and profiles of a few customers. It counts the profiles that it is asked for.
type shopper struct {
	featuresv1connect.UnimplementedFeatureServiceHandler
	customer360v1connect.UnimplementedCustomerQueryServiceHandler
	denied   bool // profiles are
	profiles int
}

// GetVectors implements featuresv1connect.FeatureServiceHandler.
func (s *shopper) GetVectors(_ context.Context, r *connect.Request[featuresv1.GetVectorsRequest]) (
	*connect.Response[featuresv1.GetVectorsResponse], error) {
	res := &featuresv1.GetVectorsResponse{Features: []string{"orders_7d"}}
	for _, entity := range r.Msg.GetEntities() {
		v := &featuresv1.Value{Status: featuresv1.ValueStatus_VALUE_STATUS_NOT_FOUND}
		if entity == known {
			v = &featuresv1.Value{Status: featuresv1.ValueStatus_VALUE_STATUS_PRESENT, Kind: &featuresv1.Value_Integer{Integer: 42}}
		}
		res.Vectors = append(res.Vectors, &featuresv1.Vector{Entity: entity, Values: []*featuresv1.Value{v}})
	}
	return connect.NewResponse(res), nil
}

// GetProfile implements customer360v1connect.CustomerQueryServiceHandler.
func (s *shopper) GetProfile(_ context.Context, r *connect.Request[customer360v1.GetProfileRequest]) (
	*connect.Response[customer360v1.GetProfileResponse], error) {
	s.profiles++
	id := r.Msg.GetCustomerId()
	switch {
	case s.denied:
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("no right to profiles"))
	case id == stranger:
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such customer"))
	}
	return connect.NewResponse(&customer360v1.GetProfileResponse{Profile: &customer360v1.Profile{Consents: []*customer360v1.Consent{
		{Purpose: customerv1.ConsentPurpose_CONSENT_PURPOSE_MARKETING},
		{Purpose: customerv1.ConsentPurpose_CONSENT_PURPOSE_ANALYTICS, Granted: id != refusing},
	}}}), nil
}

// TestRefusedCustomers: a customer who refuses analytics is shown as refused to callers who may read
// profiles, and as not found to others. Profiles of others are not asked for.
func TestRefusedCustomers(t *testing.T) {
	s := &shopper{}
	mux := http.NewServeMux()
	mux.Handle(featuresv1connect.NewFeatureServiceHandler(s))
	mux.Handle(customer360v1connect.NewCustomerQueryServiceHandler(s))
	server := httptest.NewUnstartedServer(mux)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	get := func(words string) string {
		t.Helper()
		out, err := run(t, append(strings.Fields("features get "+words), "--addr", strings.TrimPrefix(server.URL, "http://"))...)
		if err != nil {
			t.Fatalf("%s: %v", words, err)
		}
		return out
	}
	row := func(out string) string {
		for line := range strings.Lines(out) {
			if strings.Contains(line, "orders_7d") {
				return strings.Join(strings.Fields(strings.ReplaceAll(line, "│", " ")), " ")
			}
		}
		return out
	}
	all := strings.Join([]string{known, refusing, granting, stranger}, " ")
	if got, want := row(get("customer_activity "+all)), "orders_7d 42 refused not found not found"; got != want || s.profiles != 3 {
		t.Errorf("%s after %d profiles, want %s after 3", got, s.profiles, want)
	}
	if out := get("customer_activity " + all + " -o json"); strings.Contains(out, "refused") || s.profiles != 3 {
		t.Errorf("JSON is not that of the API:\n%s", out)
	}
	if got, want := row(get("product_popularity "+refusing)), "orders_7d not found"; got != want || s.profiles != 3 {
		t.Errorf("a product: %s after %d profiles, want %s", got, s.profiles, want)
	}
	s.denied = true
	if got, want := row(get("customer_activity "+all)), "orders_7d 42 not found not found not found"; got != want || s.profiles != 4 {
		t.Errorf("without the right: %s after %d profiles, want %s after 4", got, s.profiles, want)
	}
}
