package tracking_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
	"github.com/millrace/millrace/ingest/tracking"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/polltest"
	kafkaserver "github.com/millrace/millrace/test/servers/kafka"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(envContender); text != "" {
		fmt.Fprintln(os.Stderr, serveContender(text))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

const (
	webKey    = "web-write-key"
	appKey    = "app-write-key"
	pageKey   = "page-write-key"
	shop      = "https://shop.example"
	elsewhere = "https://elsewhere.example"
)

const sources = `
web: {key: web-write-key}
app: {key: app-write-key, types: [track, screen]}
page: {key: page-write-key, origins: ["https://shop.example"]}
`

// world is an intake on a log of its own.
type world struct {
	*tracking.Intake
	kafka kafka.Config
	url   string

	mu      sync.Mutex
	letters []tracking.DeadLetter
	failing error // of WriteDeadLetters
}

// broker starts an embedded broker with an empty topic.
func broker(t testing.TB) kafka.Config {
	t.Helper()
	c := kafka.Config{Brokers: kafkaserver.Embedded(t), ClientID: "test", Logger: slog.New(slog.DiscardHandler)}
	if err := kafka.EnsureTopics(t.Context(), c, kafka.Topic{Name: event.Behavior.Topic, Partitions: 2}); err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs an intake until the test ends, or until stop is called.
func run(t testing.TB, k kafka.Config, change func(*tracking.Config)) (w *world, stop func()) {
	t.Helper()
	known, err := tracking.ParseSources([]byte(sources))
	if err != nil {
		t.Fatal(err)
	}
	w = &world{kafka: k}
	c := tracking.Config{
		Kafka: k, Sources: known, Requests: 64, IDs: 10_000, Logger: slog.New(slog.DiscardHandler),
		WriteDeadLetters: func(_ context.Context, letters []tracking.DeadLetter) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			for i := range letters {
				letters[i].Value = bytes.Clone(letters[i].Value)
			}
			w.letters = append(w.letters, letters...)
			return w.failing
		},
	}
	if change != nil {
		change(&c)
	}
	if w.Intake, err = tracking.New(c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	s := httptest.NewServer(w.Handler())
	w.url = s.URL
	stop = sync.OnceFunc(func() {
		s.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	polltest.Until(t, "events are accepted", w.Available)
	return w, stop
}

// request is a request of a client.
type request struct {
	path, key, body string
	header          map[string]string
	method          string
}

// reply is the intake's answer.
type reply struct {
	status int
	header http.Header
	Success
}

// Success is the JSON body of an answer.
type Success struct {
	Success              bool
	Code, Field, Message string
	Rejected             []struct {
		Index          int
		Field, Message string
	}
}

// send sends a request.
func (w *world) send(t testing.TB, r request) reply {
	t.Helper()
	if r.method == "" {
		r.method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(context.Background(), r.method, w.url+r.path, strings.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	if r.key != "" {
		req.SetBasicAuth(r.key, "")
	}
	for key, value := range r.header {
		req.Header.Set(key, value)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := reply{status: res.StatusCode, header: res.Header}
	if len(b) > 0 && json.Unmarshal(b, &out.Success) != nil {
		t.Fatalf("%s answers %q", r.path, b)
	}
	return out
}

// events returns the messages on the log, by partition and offset.
func (w *world) events(t testing.TB) (all []*behaviorv1.BehaviorEvent) {
	t.Helper()
	admin, err := kafka.NewAdmin(w.kafka)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ends, err := admin.EndOffsets(t.Context(), event.Behavior.Topic)
	if err != nil {
		t.Fatal(err)
	}
	err = kafka.ReadAll(t.Context(), w.kafka, event.Behavior.Topic, map[int32]int64{0: 0, 1: 0}, ends, func(m kafka.Message) error {
		_, e, err := behavior.FromRecord(m.Key, m.Value, m.Headers)
		all = append(all, e)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// ids returns the sorted message ids of events.
func ids(events []*behaviorv1.BehaviorEvent) (all []string) {
	for _, e := range events {
		all = append(all, e.GetMessageId())
	}
	slices.Sort(all)
	return all
}

// TestProtocol checks the answer to each kind of request, and which events are then on the log.
func TestProtocol(t *testing.T) {
	t.Parallel()
	w, _ := run(t, broker(t), nil)
	large := strings.Repeat("x", 33<<10)
	zipped := func(text string) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write([]byte(text))
		_ = z.Close()
		return b.String()
	}
	var want []string // message ids
	for i, c := range []struct {
		name   string
		r      request // %d in the body is replaced by the number of the case
		status int
		field  string
		events int // with message ids CASE, CASE.1 …
	}{
		{"track", request{path: "/v1/track", key: webKey, body: `{"messageId":"%d","userId":"u","event":"Viewed"}`}, 200, "", 1},
		{"identify", request{path: "/v1/identify", key: webKey, body: `{"messageId":"%d","userId":"u","traits":{"email":"a@b"}}`}, 200, "", 1},
		{"page", request{path: "/v1/page", key: webKey, body: `{"messageId":"%d","anonymousId":"a","name":"Home"}`}, 200, "", 1},
		{"screen", request{path: "/v1/screen", key: webKey, body: `{"messageId":"%d","anonymousId":"a","name":"Home"}`}, 200, "", 1},
		{"group", request{path: "/v1/group", key: webKey, body: `{"messageId":"%d","userId":"u","groupId":"g"}`}, 200, "", 1},
		{"alias", request{path: "/v1/alias", key: webKey, body: `{"messageId":"%d","userId":"u","previousId":"a"}`}, 200, "", 1},
		{"the browser's path and key in the body", request{path: "/v1/t", body: `{"messageId":"%d","type":"track","anonymousId":"a","event":"Viewed","writeKey":"web-write-key"}`, header: map[string]string{"Content-Type": "text/plain", "Origin": elsewhere}}, 200, "", 1},
		{"the browser's batch", request{path: "/v1/b", body: `{"batch":[{"messageId":"%d","type":"page","anonymousId":"a"}],"writeKey":"web-write-key","sentAt":"2026-01-01T00:00:00Z"}`}, 200, "", 1},
		{"a batch with the key in an event", request{path: "/v1/batch", body: `{"batch":[{"messageId":"%d","type":"page","anonymousId":"a","writeKey":"web-write-key"}]}`}, 200, "", 1},
		{"an import", request{path: "/v1/import", key: webKey, body: `{"batch":[{"messageId":"%d","type":"page","anonymousId":"a","timestamp":"2012-12-02"}]}`}, 200, "", 1},
		{"a number as id", request{path: "/v1/page", key: webKey, body: `{"messageId":"%d","userId":42}`}, 200, "", 1},
		{"nulls", request{path: "/v1/page", key: webKey, body: `{"messageId":"%d","userId":null,"anonymousId":"a","properties":null,"timestamp":null}`}, 200, "", 1},
		{"fields that nobody knows", request{path: "/v1/page", key: webKey, body: `{"_metadata":{"bundled":[1,{"a":[]}]},"messageId":"%d","userId":"u","channel":"web"}`}, 200, "", 1},
		{"gzip", request{path: "/v1/page", key: webKey, body: zipped(`{"messageId":"13","userId":"u"}`), header: map[string]string{"Content-Encoding": "gzip"}}, 200, "", 1},
		{"a type that the key may send", request{path: "/v1/screen", key: appKey, body: `{"messageId":"%d","userId":"u"}`}, 200, "", 1},
		{"an allowed origin", request{path: "/v1/page", key: pageKey, body: `{"messageId":"%d","userId":"u"}`, header: map[string]string{"Origin": shop}}, 200, "", 1},
		{"no origin", request{path: "/v1/page", key: pageKey, body: `{"messageId":"%d","userId":"u"}`}, 200, "", 1},
		{"names that differ in case", request{path: "/v1/page", key: webKey, body: `{"messageId":"%d","userId":"u","userid":"v","properties":{"sku":1,"SKU":2},"context":{"Consent":7}}`}, 200, "", 1},

		{"no key", request{path: "/v1/page", body: `{"userId":"u"}`}, 401, "writeKey", 0},
		{"an unknown key", request{path: "/v1/page", key: "guess", body: `{"userId":"u"}`}, 401, "writeKey", 0},
		{"an unknown key, a known one in the body", request{path: "/v1/page", key: "guess", body: `{"userId":"u","writeKey":"web-write-key"}`}, 401, "writeKey", 0},
		{"another origin", request{path: "/v1/page", key: pageKey, body: `{"userId":"u"}`, header: map[string]string{"Origin": elsewhere}}, 403, "", 0},
		{"a type that the key may not send", request{path: "/v1/page", key: appKey, body: `{"userId":"u"}`}, 400, "type", 0},
		{"nobody", request{path: "/v1/track", key: webKey, body: `{"event":"Viewed"}`}, 400, "userId", 0},
		{"track without event", request{path: "/v1/track", key: webKey, body: `{"userId":"u"}`}, 400, "event", 0},
		{"group without group", request{path: "/v1/group", key: webKey, body: `{"userId":"u"}`}, 400, "groupId", 0},
		{"alias without new id", request{path: "/v1/alias", key: webKey, body: `{"anonymousId":"a","previousId":"a"}`}, 400, "userId", 0},
		{"alias without old id", request{path: "/v1/alias", key: webKey, body: `{"userId":"u"}`}, 400, "previousId", 0},
		{"another type than the path", request{path: "/v1/track", key: webKey, body: `{"type":"page","userId":"u"}`}, 400, "type", 0},
		{"an unknown type", request{path: "/v1/batch", key: webKey, body: `{"batch":[{"type":"click","userId":"u"}]}`}, 400, "batch[0].type", 0},
		{"no type", request{path: "/v1/batch", key: webKey, body: `{"batch":[{"userId":"u"}]}`}, 400, "batch[0].type", 0},
		{"no batch", request{path: "/v1/batch", key: webKey, body: `{}`}, 400, "batch", 0},
		{"an empty batch", request{path: "/v1/batch", key: webKey, body: `{"batch":[]}`}, 400, "batch", 0},
		{"a batch that is no array", request{path: "/v1/batch", key: webKey, body: `{"batch":{"a":1}}`}, 400, "batch", 0},
		{"a batch of numbers", request{path: "/v1/batch", key: webKey, body: `{"batch":[1]}`}, 400, "batch[0].event", 0},
		{"more events than a batch may have", request{path: "/v1/batch", key: webKey, body: `{"batch":[` + strings.Repeat("0,", 2500) + `0]}`}, 400, "batch", 0},
		{"an array", request{path: "/v1/batch", key: webKey, body: `[]`}, 400, "", 0},
		{"properties that are a list", request{path: "/v1/page", key: webKey, body: `{"userId":"u","properties":[]}`}, 400, "properties", 0},
		{"an event name that is a number", request{path: "/v1/track", key: webKey, body: `{"userId":"u","event":7}`}, 400, "event", 0},
		{"a long id", request{path: "/v1/page", key: webKey, body: `{"userId":"` + strings.Repeat("u", 257) + `"}`}, 400, "userId", 0},
		{"an id with a line break", request{path: "/v1/page", key: webKey, body: `{"userId":"u\n"}`}, 400, "userId", 0},
		{"a time that is none", request{path: "/v1/page", key: webKey, body: `{"userId":"u","timestamp":"yesterday"}`}, 400, "timestamp", 0},
		{"consent with escapes", request{path: "/v1/page", key: webKey, body: `{"userId":"u","context":{"c\u006fnsent":{"categoryPreferences":{"ads":"yes"}}}}`}, 400, "context.consent.categoryPreferences.ads", 0},
		{"consent that is text", request{path: "/v1/page", key: webKey, body: `{"userId":"u","context":{"consent":{"categoryPreferences":{"ads":"yes"}}}}`}, 400, "context.consent.categoryPreferences.ads", 0},
		{"a field twice", request{path: "/v1/page", key: webKey, body: `{"userId":"u","user\u0049d":"v"}`}, 400, "userId", 0},
		{"a field that nobody knows, twice", request{path: "/v1/page", key: webKey, body: `{"userId":"u","channel":1,"channel":1}`}, 400, "channel", 0},
		{"a property twice", request{path: "/v1/page", key: webKey, body: `{"userId":"u","properties":{"sku":1,"a":{},"sku":2}}`}, 400, "properties", 0},
		{"a purpose twice", request{path: "/v1/page", key: webKey, body: `{"userId":"u","context":{"consent":{"categoryPreferences":{"ads":false,"ads":true}}}}`}, 400, "context", 0},
		{"two batches", request{path: "/v1/batch", key: webKey, body: `{"batch":[{"type":"page","userId":"u"}],"batch":[]}`}, 400, "batch", 0},
		{"a property twice, in a batch", request{path: "/v1/batch", key: webKey, body: `{"batch":[{"type":"page","userId":"u","properties":{"a":[{"":1,"":1}]}}]}`}, 400, "batch[0].properties", 0},
		{"a large event", request{path: "/v1/page", key: webKey, body: `{"userId":"u","properties":{"a":"` + large + `"}}`}, 400, "event", 0},
		{"a large body", request{path: "/v1/batch", key: webKey, body: `{"batch":[` + strings.Repeat(`"`+large+`",`, 20) + `0]}`}, 413, "", 0},
		{"a large body, compressed", request{path: "/v1/batch", key: webKey, body: zipped(strings.Repeat(" ", 600<<10)), header: map[string]string{"Content-Encoding": "gzip"}}, 413, "", 0},
		{"half a body", request{path: "/v1/page", key: webKey, body: `{"userId":`}, 400, "", 0},
		{"two bodies", request{path: "/v1/page", key: webKey, body: `{"userId":"u"}{"userId":"u"}`}, 400, "", 0},
		{"no body", request{path: "/v1/page", key: webKey}, 400, "", 0},
		{"no gzip", request{path: "/v1/page", key: webKey, body: `{}`, header: map[string]string{"Content-Encoding": "gzip"}}, 400, "", 0},
		{"another encoding", request{path: "/v1/page", key: webKey, body: `{}`, header: map[string]string{"Content-Encoding": "br"}}, 415, "", 0},
	} {
		c.r.body = strings.ReplaceAll(c.r.body, "%d", fmt.Sprint(i))
		got := w.send(t, c.r)
		if got.status != c.status || got.Success.Success != (c.status == 200) || got.Field != c.field || got.status != 200 && got.Message == "" {
			t.Errorf("%s: %d %+v, want %d for field %q", c.name, got.status, got.Success, c.status, c.field)
		}
		if c.field != "" && got.status == 400 && !strings.HasPrefix(got.Message, c.field+": ") {
			t.Errorf("%s: the message %q does not begin with the field", c.name, got.Message)
		}
		for range c.events {
			want = append(want, fmt.Sprint(i))
		}
	}
	slices.Sort(want)
	if got := ids(w.events(t)); !slices.Equal(got, want) {
		t.Errorf("on the log are %v, want %v", got, want)
	}
	if len(w.letters) > 0 {
		t.Errorf("dead letters: %v", w.letters)
	}
}

// TestBatchWithInvalidEvents checks that the valid events of a batch are accepted and the others
// become dead letters: clients drop a whole batch that gets a 400.
func TestBatchWithInvalidEvents(t *testing.T) {
	t.Parallel()
	w, _ := run(t, broker(t), nil)
	got := w.send(t, request{path: "/v1/batch", key: webKey, body: `{"batch":[
		{"messageId":"a","type":"page","userId":"u"}, {"messageId":"b","type":"track","userId":"u"}, 7,
		{"messageId":"c","type":"page","userId":"u"}, {"messageId":"d","type":"page","userId":"u","traits":{"b":1,"b":2}}]}`})
	if got.status != 200 || len(got.Rejected) != 3 || got.Rejected[0].Index != 1 || got.Rejected[0].Field != "event" {
		t.Fatalf("%+v", got)
	}
	if have := ids(w.events(t)); !slices.Equal(have, []string{"a", "c"}) {
		t.Errorf("on the log are %v", have)
	}
	if got.Rejected[2].Index != 4 || got.Rejected[2].Message != `has the key "b" twice` {
		t.Errorf("an ambiguous event: %+v", got.Rejected[2])
	}
	if len(w.letters) != 3 || string(w.letters[0].Value) != `{"messageId":"b","type":"track","userId":"u"}` ||
		w.letters[0].ID != event.BehaviorID("web", "b") || !strings.Contains(w.letters[0].Reason.Error(), "event: is missing") {
		t.Errorf("dead letters: %+v", w.letters)
	}
	// If dead letters cannot be written, the client must send the batch again.
	w.failing = errors.New("no")
	if got := w.send(t, request{path: "/v1/batch", key: webKey,
		body: `{"batch":[{"messageId":"e","type":"page","userId":"u"},7]}`}); got.status != 503 || got.header.Get("Retry-After") == "" {
		t.Errorf("%+v", got)
	}
}

// TestFields checks what becomes of the fields of an event, and the correction of its time.
func TestFields(t *testing.T) {
	t.Parallel()
	w, _ := run(t, broker(t), nil)
	before := time.Now()
	got := w.send(t, request{path: "/v1/batch", key: webKey, body: `{
		"sentAt": "2020-01-01T00:00:10Z", "context": {"library": {"name": "test"}},
		"batch": [
		{"messageId": "1", "type": "track", "event": "Bought", "userId": "u", "anonymousId": "a", "timestamp": "2020-01-01T00:00:07.5Z",
		 "properties": {"b": [1, 2.50, "\u00e9"],  "a": null}, "context": {"consent": {"categoryPreferences": {"ads": false, "stats": true}}}},
		{"messageId": "2", "type": "page", "name": "Home", "category": "Start", "anonymousId": "a", "sentAt": "2020-01-01T00:00:20Z", "timestamp": "2020-01-01T00:00:20Z"},
		{"messageId": "3", "type": "group", "userId": "u", "groupId": "g", "traits": {"plan": "x"}},
		{"messageId": "4", "type": "alias", "userId": "u", "previousId": "a", "timestamp": "2020-01-01T01:00:10+01:00"}]}`})
	if got.status != 200 {
		t.Fatalf("%+v", got)
	}
	all := w.events(t)
	slices.SortFunc(all, func(a, b *behaviorv1.BehaviorEvent) int { return strings.Compare(a.GetMessageId(), b.GetMessageId()) })
	bought, home, group, alias := all[0], all[1], all[2], all[3]
	received := bought.GetReceivedAt().AsTime()
	if received.Before(before.Truncate(time.Microsecond)) || received.After(time.Now()) {
		t.Errorf("received at %v", received)
	}
	for name, c := range map[string][2]any{
		"event":                {bought.GetEvent(), "Bought"},
		"user":                 {bought.GetUserId() + bought.GetAnonymousId(), "ua"},
		"source":               {bought.GetSource(), "web"},
		"properties":           {bought.GetProperties(), `{"b":[1,2.50,"\u00e9"],"a":null}`},
		"context":              {bought.GetContext(), `{"consent":{"categoryPreferences":{"ads":false,"stats":true}}}`},
		"consent":              {fmt.Sprint(bought.GetConsent()), "map[ads:false stats:true]"},
		"time":                 {bought.GetTimestamp().AsTime(), received.Add(-2500 * time.Millisecond)},
		"sent":                 {bought.GetSentAt().AsTime(), time.Date(2020, 1, 1, 0, 0, 10, 0, time.UTC)},
		"original":             {bought.GetOriginalTimestamp().AsTime(), time.Date(2020, 1, 1, 0, 0, 7, 500_000_000, time.UTC)},
		"page":                 {home.GetName() + " " + home.GetCategory(), "Home Start"},
		"context of the batch": {home.GetContext(), `{"library":{"name":"test"}}`},
		"own sentAt":           {home.GetTimestamp().AsTime(), received},
		"group":                {group.GetGroupId() + " " + group.GetTraits(), `g {"plan":"x"}`},
		"no time":              {group.GetTimestamp().AsTime(), received},
		"previous id":          {alias.GetPreviousId(), "a"},
		"a time zone":          {alias.GetTimestamp().AsTime(), received},
	} {
		if c[0] != c[1] {
			t.Errorf("%s: %v, want %v", name, c[0], c[1])
		}
	}
}

// TestCORS checks what pages of browsers may do.
func TestCORS(t *testing.T) {
	t.Parallel()
	w, _ := run(t, broker(t), func(c *tracking.Config) {
		c.Sources, _ = tracking.ParseSources([]byte(`page: {key: page-write-key, origins: ["https://shop.example"]}`))
	})
	open, _ := run(t, broker(t), nil)
	preflight := func(w *world, origin string) reply {
		return w.send(t, request{method: http.MethodOptions, path: "/v1/t", header: map[string]string{
			"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type,x-retry-count"}})
	}
	for name, c := range map[string]struct {
		reply reply
		want  string
	}{
		"a page of the shop asks":               {preflight(w, shop), shop},
		"a page of another site asks":           {preflight(w, elsewhere), ""},
		"any page asks, if a source allows any": {preflight(open, elsewhere), "*"},
		"a page of the shop sends":              {w.send(t, request{path: "/v1/p", key: pageKey, body: `{"userId":"u"}`, header: map[string]string{"Origin": shop}}), shop},
		"a page of another site sends":          {w.send(t, request{path: "/v1/p", key: pageKey, body: `{"userId":"u"}`, header: map[string]string{"Origin": elsewhere}}), ""},
		"a page reads its mistake":              {w.send(t, request{path: "/v1/p", key: pageKey, body: `{`, header: map[string]string{"Origin": shop}}), shop},
		"a page sends with an open key":         {open.send(t, request{path: "/v1/p", key: webKey, body: `{"userId":"u"}`, header: map[string]string{"Origin": elsewhere}}), "*"},
	} {
		if got := c.reply.header.Get("Access-Control-Allow-Origin"); got != c.want {
			t.Errorf("%s: it is allowed for %q, want %q", name, got, c.want)
		}
		if c.reply.header.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%s: credentials are allowed", name)
		}
	}
	if got := preflight(w, shop).header.Get("Access-Control-Allow-Headers"); !strings.Contains(got, "X-Retry-Count") || !strings.Contains(got, "Authorization") {
		t.Errorf("allowed headers: %s", got)
	}
}

// TestCopies checks that an event that is sent again is written once: at the same time, later, after
// a restart, and through another process.
func TestCopies(t *testing.T) {
	t.Parallel()
	k := broker(t)
	w, stop := run(t, k, nil)
	body := func(id string) request {
		return request{path: "/v1/page", key: webKey, body: `{"messageId":"` + id + `","userId":"u"}`}
	}
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for _, id := range []string{"a", "b", "c"} {
				if got := w.send(t, body(id)); got.status != 200 {
					t.Errorf("%+v", got)
				}
			}
		})
	}
	all.Wait()
	if got := w.send(t, request{path: "/v1/batch", key: webKey, body: `{"batch":[{"messageId":"d","type":"page","userId":"u"},
		{"messageId":"d","type":"page","userId":"u"},{"messageId":"a","type":"page","userId":"u"}]}`}); got.status != 200 {
		t.Errorf("%+v", got)
	}
	// The same id of another source is another event.
	if got := w.send(t, request{path: "/v1/screen", key: appKey, body: `{"messageId":"a","userId":"u"}`}); got.status != 200 {
		t.Errorf("%+v", got)
	}
	want := []string{"a", "a", "b", "c", "d"}
	if got := ids(w.events(t)); !slices.Equal(got, want) {
		t.Fatalf("on the log are %v, want %v", got, want)
	}
	if s := w.Stats(); s.Accepted != 5 || s.Duplicates != 16*3-3+2 {
		t.Errorf("%+v", s)
	}
	// Another process learns of them from the log, and of what is written after it has started.
	other, _ := run(t, k, nil)
	other.send(t, body("b"))
	w.send(t, body("e"))
	polltest.Until(t, "the other process has read the new event", func() bool { return other.Stats().IDs == 6 })
	other.send(t, body("e"))
	stop()
	again, _ := run(t, k, nil)
	again.send(t, body("c"))
	if got := ids(again.events(t)); !slices.Equal(got, append(want, "e")) {
		t.Errorf("on the log are %v", got)
	}
}

// TestUnavailableLog checks that clients are asked to send again while the log is gone, and that
// the intake recovers.
func TestUnavailableLog(t *testing.T) {
	t.Parallel()
	k := broker(t)
	k.Brokers = "127.0.0.1:1"
	known, err := tracking.ParseSources([]byte(sources))
	if err != nil {
		t.Fatal(err)
	}
	i, err := tracking.New(tracking.Config{Kafka: k, Sources: known, Requests: 8, IDs: 10, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- i.Run(ctx) }()
	s := httptest.NewServer(i.Handler())
	defer s.Close()
	w := &world{Intake: i, url: s.URL}
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	got := w.send(t, request{path: "/v1/page", key: webKey, body: `{"userId":"u"}`})
	if got.status != 503 || got.header.Get("Retry-After") == "" || got.Code != "unavailable" {
		t.Errorf("%+v", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestOverload checks that excess requests are refused so that clients retry them.
func TestOverload(t *testing.T) {
	t.Parallel()
	block, entered := make(chan struct{}), make(chan struct{}, 1)
	w, _ := run(t, broker(t), func(c *tracking.Config) {
		c.Requests = 1
		c.WriteDeadLetters = func(context.Context, []tracking.DeadLetter) error {
			entered <- struct{}{}
			<-block
			return nil
		}
	})
	var all sync.WaitGroup
	all.Go(func() {
		w.send(t, request{path: "/v1/batch", key: webKey, body: `{"batch":[7,{"type":"page","userId":"u"}]}`})
	})
	<-entered
	got := w.send(t, request{path: "/v1/page", key: webKey, body: `{"userId":"u"}`})
	if got.status != 429 || got.header.Get("Retry-After") == "" || got.Code != "overloaded" {
		t.Errorf("%+v", got)
	}
	close(block)
	all.Wait()
}

// TestRate checks that a source that sends more than its rate is refused until later, and that the others
// are not.
func TestRate(t *testing.T) {
	t.Parallel()
	w, _ := run(t, broker(t), func(c *tracking.Config) {
		var err error
		c.Sources, err = tracking.ParseSources([]byte("slow: {key: slow-write-key, rate: 1}\nweb: {key: web-write-key}"))
		if err != nil {
			t.Fatal(err)
		}
	})
	batch := request{path: "/v1/batch", key: "slow-write-key", body: `{"batch":[` + strings.TrimSuffix(
		strings.Repeat(`{"type":"page","userId":"u"},`, 2500), ",") + `]}`}
	if got := w.send(t, batch); got.status != 200 {
		t.Fatalf("the first batch: %+v", got)
	}
	got := w.send(t, batch)
	if got.status != 429 || got.Code != "rate_exceeded" || got.header.Get("Retry-After") == "" ||
		!strings.Contains(got.Message, "slow may send 1 events per second") {
		t.Errorf("the second batch: %+v", got)
	}
	batch.key = webKey
	if got := w.send(t, batch); got.status != 200 {
		t.Errorf("another source: %+v", got)
	}
	if s := w.Stats(); s.Accepted != 5000 || s.Overloaded != 1 {
		t.Errorf("%+v", s)
	}
}

// TestPlanAndConsent checks what is written, dropped, reduced, and set aside.
func TestPlanAndConsent(t *testing.T) {
	t.Parallel()
	plan, err := tracking.ParsePlan([]byte(`
track:
  Product Viewed:
    properties:
      sku: {type: string, required: true}
      price: {type: number}
`))
	if err != nil {
		t.Fatal(err)
	}
	w, _ := run(t, broker(t), func(c *tracking.Config) {
		c.Plan = plan
		c.Consent = tracking.Consent{Purposes: map[string]string{"stats": tracking.Drop, "ads": tracking.Reduce}}
	})
	for i, c := range []struct{ event, properties, consent string }{
		0: {"Product Viewed", `{"sku":"1","price":2.5}`, `{"stats":true,"ads":true}`},
		1: {"Product Viewed", `{"sku":"1"}`, `{}`},
		2: {"Product Viewed", `{"price":2.5}`, `{}`},
		3: {"Product Seen", `{}`, `{}`},
		4: {"Product Viewed", `{"sku":"1"}`, `{"stats":false}`},
		5: {"Product Viewed", `{"sku":"1"}`, `{"ads":false}`},
		6: {"Product Viewed", `{"sku":1}`, `{"ads":false}`},
		7: {"Product Viewed", `{"SKU":"1"}`, `{}`},
		8: {"Product Viewed", `{"sku":"1"}`, `{"stats":false},"CategoryPreferences":{"stats":true}`},
	} {
		got := w.send(t, request{path: "/v1/track", key: webKey, body: fmt.Sprintf(
			`{"messageId":"%d","event":%q,"userId":"u","anonymousId":"a","properties":%s,"context":{"ip":"192.0.2.1","consent":{"categoryPreferences":%s}}}`,
			i, c.event, c.properties, c.consent)})
		if got.status != 200 {
			t.Errorf("%d: %+v", i, got)
		}
	}
	all := w.events(t)
	if got := ids(all); !slices.Equal(got, []string{"0", "1", "5"}) {
		t.Errorf("on the log are %v", got)
	}
	for _, e := range all {
		if e.GetMessageId() == "5" && (e.GetUserId() != "" || e.GetContext() != "" || e.GetAnonymousId() == "a" ||
			!slices.Equal(e.GetReducedFor(), []string{"ads"}) || e.GetProperties() != `{"sku":"1"}`) {
			t.Errorf("the reduced event is %v", e)
		}
	}
	var reasons []string
	for _, l := range w.letters {
		reasons = append(reasons, l.Reason.Error())
		if strings.Contains(string(l.Value), "192.0.2.1") != (l.ID != event.BehaviorID("web", "6")) {
			t.Errorf("dead letter %s holds %s", l.Reason, l.Value)
		}
	}
	want := []string{"properties.sku: is missing", `event: "Product Seen" is not in the tracking plan`, "properties.sku: want string, not integer",
		"properties.sku: is missing"}
	if !slices.Equal(reasons, want) {
		t.Errorf("reasons %q, want %q", reasons, want)
	}
	if s := w.Stats(); s.DeadLetters != 4 || s.Dropped != 2 || s.Accepted != 3 {
		t.Errorf("%+v", s)
	}
}

// refusals are those of users, by user and purpose.
type refusals struct {
	unknown atomic.Bool
	of      map[string]string
}

func (r *refusals) Ready() error {
	if r.unknown.Load() {
		return errors.New("the consents are being read")
	}
	return nil
}

func (r *refusals) Refuses(user, purpose string) bool { return r.of[user] == purpose }

// TestRefusals checks that what a user refuses elsewhere counts more than what an event says, and that
// nothing is accepted as long as it is unknown.
func TestRefusals(t *testing.T) {
	t.Parallel()
	known := &refusals{of: map[string]string{"drop": "stats", "reduce": "ads", "neither": "other"}}
	w, _ := run(t, broker(t), func(c *tracking.Config) {
		c.Consent = tracking.Consent{Refusals: known,
			Purposes: map[string]string{"stats": tracking.Drop, "ads": tracking.Reduce}}
	})
	send := func(user string) int {
		return w.send(t, request{path: "/v1/track", key: webKey, body: fmt.Sprintf(`{"messageId":%q,"event":"e",`+
			`"userId":%q,"context":{"consent":{"categoryPreferences":{"stats":true,"ads":true}}}}`, user, user)}).status
	}
	known.unknown.Store(true)
	if status := send("early"); status != http.StatusServiceUnavailable || w.Available() {
		t.Errorf("while refusals are unknown, the answer is %d, and available %t", status, w.Available())
	}
	known.unknown.Store(false)
	for _, user := range []string{"drop", "reduce", "neither", "unasked"} {
		if status := send(user); status != http.StatusOK {
			t.Errorf("%s: %d", user, status)
		}
	}
	users := map[string]string{} // by message id
	for _, e := range w.events(t) {
		users[e.GetMessageId()] = e.GetUserId()
	}
	if want := map[string]string{"reduce": "", "neither": "neither", "unasked": "unasked"}; !maps.Equal(users, want) {
		t.Errorf("on the log are %v, want %v", users, want)
	}
}

// TestKeysAreSecret checks that no answer and no error shows a key.
func TestKeysAreSecret(t *testing.T) {
	t.Parallel()
	w, _ := run(t, broker(t), nil)
	got := w.send(t, request{path: "/v1/page", key: "guess-" + uuid.NewString(), body: `{"userId":"u"}`})
	if strings.Contains(fmt.Sprint(got), "guess-") || strings.Contains(fmt.Sprint(got), webKey) {
		t.Errorf("%+v", got)
	}
	for name, file := range map[string]string{
		"a short key": `web: {key: abcdefg}`, "a key with a colon": `web: {key: "abcdefg:hijk"}`, "an unknown field": `web: {kee: abcdefghij}`,
		"a list": `[abcdefg]`, "twice the same": "web: {key: abcdefghij}\napp: {key: abcdefghij}", "not YAML": "web: {key: 'abcdefg",
		"a bad origin": `web: {key: abcdefghij, origins: [shop.example]}`, "a bad type": `web: {key: abcdefghij, types: [click]}`,
		"a bad name": `"we b": {key: abcdefghij}`, "nothing": ``, "a negative rate": `web: {key: abcdefghij, rate: -1}`,
		"a rate that is too high": `web: {key: abcdefghij, rate: 1000001}`,
	} {
		if _, err := tracking.ParseSources([]byte(file)); err == nil || strings.Contains(err.Error(), "abcdefg") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
