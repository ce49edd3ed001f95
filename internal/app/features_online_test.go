package app

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"

	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/client"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/polltest"
)

// An order is in its customer's vector once the vector is asked for with the order's token, by
// FeatureService and by Feast's API, and after a restart.
func TestVectorsOfAnOrder(t *testing.T) {
	for _, store := range []string{config.OnlineInMemory, config.OnlineInRedis} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			c := embeddedConfig(t)
			c.Features.Online.Store = store
			testVectorsOfAnOrder(t, c)
		})
	}
}

func testVectorsOfAnOrder(t *testing.T, c config.Config) {
	roles := []Role{Commands, Relay, Features}
	p := startEmbedded(t, c, Shop(), roles...)
	commands := client.New(p.Addr(), time.Minute)
	defer commands.Close()
	customer := uuid.NewString()
	receipt, err := commands.Send(t.Context(), &orderv1.PlaceOrderRequest{
		Currency: "GBP", Country: "GB", CustomerId: proto.String(customer), IdempotencyKey: "one",
		Lines: []*orderv1.NewLine{{Sku: "MUG", Description: "Mug", Quantity: 2,
			UnitPrice: &money.Money{CurrencyCode: "GBP", Units: 4, Nanos: 500_000_000}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	check := func(p *App, token string) {
		t.Helper()
		polltest.Until(t, "the process is ready", func() bool { return p.unready(t.Context()) == nil })
		vectors := featuresv1connect.NewFeatureServiceClient(http.DefaultClient, "http://"+p.Addr())
		res, err := vectors.GetVectors(t.Context(), connect.NewRequest(&featuresv1.GetVectorsRequest{
			Group: "customer_value", Features: []string{"monetary_sum_lifetime"}, Entities: []string{customer}, Token: token}))
		if err != nil {
			t.Fatal(err)
		}
		if v := res.Msg.GetVectors()[0].GetValues()[0]; v.GetNumber() != 9 ||
			v.GetStatus() != featuresv1.ValueStatus_VALUE_STATUS_PRESENT {
			t.Errorf("the vector has %v, want 9", v)
		}
		body := `{"entities":{"customer_id":["` + customer + `"]},"features":["customer_value:monetary_sum_lifetime"]}`
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
			"http://"+p.addr("feast")+"/get-online-features", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		got, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = got.Body.Close() }()
		var answer struct {
			Results []struct{ Values []any }
		}
		if err := json.NewDecoder(got.Body).Decode(&answer); err != nil || len(answer.Results) != 2 ||
			answer.Results[1].Values[0] != 9. {
			t.Errorf("Feast's API answered %d %+v, %v", got.StatusCode, answer, err)
		}
	}
	check(p, receipt.GetToken())
	// Who refuses analytics is answered as somebody without orders.
	for _, command := range []proto.Message{
		&customerv1.RegisterCustomerRequest{CustomerId: customer, Country: "GB", IdempotencyKey: "two"},
		&customerv1.SetConsentRequest{CustomerId: customer, Granted: true,
			Purpose: customerv1.ConsentPurpose_CONSENT_PURPOSE_ANALYTICS, IdempotencyKey: "three"},
		&customerv1.SetConsentRequest{CustomerId: customer, Purpose: customerv1.ConsentPurpose_CONSENT_PURPOSE_ANALYTICS,
			IdempotencyKey: "withdrawn"},
	} {
		if _, err := commands.Send(t.Context(), command); err != nil {
			t.Fatal(err)
		}
	}
	polltest.Until(t, "the customer is not found", func() bool {
		res, err := featuresv1connect.NewFeatureServiceClient(http.DefaultClient, "http://"+p.Addr()).GetVectors(t.Context(),
			connect.NewRequest(&featuresv1.GetVectorsRequest{Group: "customer_value", Entities: []string{customer}}))
		return err == nil && res.Msg.GetVectors()[0].GetValues()[0].GetStatus() == featuresv1.ValueStatus_VALUE_STATUS_NOT_FOUND
	})
	ofLog := c
	ofLog.Kafka.Brokers = p.addresses["kafka"]
	refuses, _, err := TrainingConsents(t.Context(), ofLog, nil, slog.New(slog.DiscardHandler))
	if err != nil || !refuses(CustomerEntity, customer) || refuses(CustomerEntity, uuid.NewString()) ||
		refuses("sku", customer) {
		t.Errorf("for training sets, who refuses is wrong: %v", err)
	}
	if _, err := commands.Send(t.Context(), &customerv1.SetConsentRequest{CustomerId: customer, Granted: true,
		Purpose: customerv1.ConsentPurpose_CONSENT_PURPOSE_ANALYTICS, IdempotencyKey: "four"}); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	check(startEmbedded(t, c, Shop(), roles...), receipt.GetToken())
}
