package app

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/millrace/millrace/event"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/tracing/tracingtest"
)

// canaries are texts of the kinds that must not be in logs, spans and metrics. No program writes them
// by itself.
var canaries = []string{
	"Ada Canaryname", "ada.canary@mail.example", "+44 7700 900123", "Canary Lane 12", "4929 1234 5678 9015",
}

// Tokens and keys of the test. They must not appear either.
const (
	goodToken  = "canary-token-of-the-shop-0123456789abcdef"
	wrongToken = "canary-token-of-a-stranger-0123456789abcdef"
	writeKey   = "canary-write-key-0123456789"
)

// lockedBuffer is a log that several goroutines write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestNoPersonalDataInTelemetry: names, addresses, numbers and secrets in every field of every command
// and query, in tracking, in headers and in records that others write are in no log, span or metric,
// whether the system accepts or rejects them, and after a restart.
func TestNoPersonalDataInTelemetry(t *testing.T) {
	t.Parallel()
	c := embeddedConfig(t)
	useEngine(t, &c)
	c.Log.Level = slog.LevelDebug
	dir := t.TempDir()
	c.Auth.Tokens, c.Tracking.Keys = filepath.Join(dir, "tokens"), filepath.Join(dir, "keys.yaml")
	for path, text := range map[string]string{
		c.Auth.Tokens:   "shop:" + goodToken + "\n",
		c.Tracking.Keys: "web: {key: " + writeKey + "}\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.Auth.Rights = map[string][]string{"shop": {"all"}}
	to := tracingtest.NewReceiver(t)
	c.Telemetry.Traces.Endpoint, c.Telemetry.Traces.Ratio = to.URL, 1
	var log lockedBuffer
	metrics := ""
	for run := range 2 { // the second one reads again what the first has stored
		p, err := start(t.Context(), Shop(), c, Roles(), c.Log.Logger(&log))
		if err != nil {
			t.Fatal(err)
		}
		stop := sync.OnceValue(p.Close)
		t.Cleanup(func() { _ = stop() })
		polltest.Until(t, "the process is ready", func() bool { return p.unready(t.Context()) == nil })
		if run == 0 {
			accepted(t, p)
			everyField(t, p)
			tracked(t, p)
			foreignRecords(t, p)
		}
		polltest.Until(t, "the dead letters are written", func() bool {
			_, text := answer(t, p.AdminAddr(), "/millrace.admin.v1.AdminService/ListDeadLetters", "{}", goodToken)
			return strings.Contains(text, "orderstatus") && strings.Contains(text, "lake/orders_events")
		})
		metrics += scrape(t, p)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(log.String(), "became dead letters") {
		t.Errorf("the log has no dead letters, so it shows nothing:\n%s", log.String())
	}
	if len(to.Spans("")) < 100 {
		t.Errorf("only %d spans were received", len(to.Spans("")))
	}
	spans := string(bytes.Join(to.Raw(), nil))
	for _, secret := range append(slices.Clone(canaries), goodToken, wrongToken, writeKey) {
		for where, text := range map[string]string{"log": log.String(), "spans": spans, "metrics": metrics} {
			if at := strings.Index(text, secret); at >= 0 {
				t.Errorf("the %s contains %q: …%s…", where, secret, text[max(0, at-300):min(len(text), at+100)])
			}
		}
	}
}

// answer posts JSON and returns the status and body of the answer.
func answer(t *testing.T, addr, path, body, token string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{
		"Content-Type": {"application/json"}, "Authorization": {"Bearer " + token},
		"X-Correlation-Id": {canaries[0]}, "User-Agent": {canaries[1]}, "Cookie": {"session=" + canaries[2]},
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// accepted sends commands that are accepted, with personal data where it belongs.
func accepted(t *testing.T, p *App) {
	t.Helper()
	for path, command := range map[string]proto.Message{
		"/millrace.customer.v1.CustomerService/RegisterCustomer": &customerv1.RegisterCustomerRequest{
			CustomerId: uuid.NewString(), Name: canaries[0], Email: canaries[1], Reference: canaries[2], Country: canaries[3],
			IdempotencyKey: canaries[4]},
		"/millrace.order.v1.OrderService/PlaceOrder": &orderv1.PlaceOrderRequest{
			Currency: "GBP", Country: canaries[3], Reference: canaries[2], IdempotencyKey: canaries[1],
			Lines: []*orderv1.NewLine{{Sku: "MUG", Description: canaries[0], Quantity: 1, UnitPrice: &money.Money{CurrencyCode: "GBP", Units: 3}}}},
	} {
		body, err := protojson.Marshal(command)
		if err != nil {
			t.Fatal(err)
		}
		for _, body := range []string{string(body), strings.Replace(string(body), canaries[0], "Ada", 1)} {
			// The second is refused: the same key with another request.
			status, text := answer(t, p.Addr(), path, body, goodToken)
			if want := strings.Contains(body, canaries[0]); (status == http.StatusOK) != want {
				t.Errorf("%s: %d %s", path, status, text)
			}
		}
	}
}

// everyField calls every method of every service with each canary in every text field.
func everyField(t *testing.T, p *App) {
	t.Helper()
	calls := 0
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			service := f.Services().Get(i)
			addr := p.Addr()
			switch name := string(service.FullName()); {
			case !strings.HasPrefix(name, "millrace."):
				continue
			case strings.HasPrefix(name, "millrace.admin."), strings.HasPrefix(name, "millrace.flags."):
				addr = p.AdminAddr()
			}
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				if m.IsStreamingServer() || m.IsStreamingClient() {
					continue
				}
				for n, canary := range canaries {
					request := dynamicpb.NewMessage(m.Input())
					fill(request, canary, 0)
					body, err := protojson.Marshal(request)
					if err != nil {
						t.Fatal(err)
					}
					token := goodToken
					if n == 0 {
						token = wrongToken
					}
					answer(t, addr, "/"+string(service.FullName())+"/"+string(m.Name()), string(body), token)
					calls++
				}
			}
		}
		return true
	})
	if calls < 100 {
		t.Errorf("only %d calls were made", calls)
	}
	for _, canary := range canaries {
		answer(t, p.Addr(), "/v1/sql", "SELECT '"+canary+"' FROM nothing", goodToken)
		answer(t, p.Addr(), "/v1/sql?query="+uuid.NewString(), `{"`+canary+`"`, goodToken)
	}
}

// fill sets the fields of a request: texts to the canary, and messages to a few levels.
func fill(m protoreflect.Message, canary string, depth int) {
	for i := range m.Descriptor().Fields().Len() {
		f := m.Descriptor().Fields().Get(i)
		set := func(v protoreflect.Value) {
			if f.IsList() {
				m.Mutable(f).List().Append(v)
			} else {
				m.Set(f, v)
			}
		}
		switch {
		case f.IsMap():
		case f.Kind() == protoreflect.StringKind:
			set(protoreflect.ValueOfString(canary))
		case f.Kind() == protoreflect.BytesKind:
			set(protoreflect.ValueOfBytes([]byte(canary)))
		case f.Kind() == protoreflect.EnumKind:
			set(protoreflect.ValueOfEnum(1))
		case f.Message() != nil && depth < 3 && strings.HasPrefix(string(f.Message().FullName()), "millrace."):
			inner := dynamicpb.NewMessage(f.Message())
			fill(inner, canary, depth+1)
			set(protoreflect.ValueOfMessage(inner))
		}
	}
}

// tracked sends events of visitors.
func tracked(t *testing.T, p *App) {
	t.Helper()
	for i, canary := range canaries {
		value, err := json.Marshal(canary)
		if err != nil {
			t.Fatal(err)
		}
		id := uuid.NewString()
		for path, body := range map[string]string{
			"/v1/identify": `{"messageId":"i` + id + `","userId":"` + uuid.NewString() + `","traits":{"name":` + string(value) +
				`,"email":` + string(value) + `,"phone":` + string(value) + `,"address":{"street":` + string(value) + `}}}`,
			"/v1/track": `{"messageId":"t` + id + `","event":"Paid","anonymousId":` + string(value) +
				`,"properties":{"card":` + string(value) + `}}`,
			"/v1/page":  `{"messageId":` + string(value) + `,"name":` + string(value) + `,"userId":` + string(value) + `}`,
			"/v1/group": `{"broken":` + string(value),
		} {
			key := writeKey
			if i == 0 {
				key = wrongToken
			}
			track(t, p, path, key, body)
		}
	}
}

// foreignRecords writes records to the topic of orders that no relay wrote: keys, headers and values of
// others.
func foreignRecords(t *testing.T, p *App) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	producer, err := kafka.NewTransactionalProducer(p.kafka, "canaries"+p.boot)
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	if err := producer.Init(ctx); err != nil {
		t.Fatal(err)
	}
	if err := producer.Begin(); err != nil {
		t.Fatal(err)
	}
	for _, canary := range canaries {
		whole := map[string]string{
			"ce_specversion": "1.0", "ce_id": uuid.NewString(), "ce_type": "millrace.order.v1.OrderPlaced",
			"ce_source": "/millrace/order", "ce_subject": canary, "ce_time": "2026-01-02T03:04:05Z",
			"ce_recordedtime": "2026-01-02T03:04:05Z", "ce_streamversion": "1", "ce_storeposition": "0.1",
		}
		broken := []map[string]string{whole, {}}
		for name := range whole {
			one := maps.Clone(whole)
			one[name] = canary
			if name == "ce_subject" {
				one[name] = "another"
			}
			broken = append(broken, one)
		}
		for _, headers := range broken {
			record := kafka.Record{Topic: event.Order.Topic, Key: []byte(canary), Value: []byte(canary)}
			for key, value := range headers {
				record.Headers = append(record.Headers, event.Header{Key: key, Value: []byte(value)})
			}
			if err := producer.Produce(ctx, record); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := producer.Commit(ctx); err != nil {
		t.Fatal(err)
	}
}
