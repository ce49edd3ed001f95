package abuse

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"

	"github.com/millrace/millrace/ingest/tracking"
)

// feastAttack asks Feast's HTTP API for features with bodies of the wrong shape, unknown names,
// values of any type, and more entities and features than a request may have.
func feastAttack(r *rand.Rand, base string) (*http.Request, error) {
	entities := pick(r, []string{
		`{"customer_id":["a","b"]}`, `{"sku":["22423"]}`, `{"sku":["22423"],"customer_id":["a","b"]}`, `{}`, `null`, `[]`,
		`{"sku":[` + strings.TrimSuffix(strings.Repeat(`"a",`, 20_000), ",") + `]}`,
		`{"sku":[` + strings.TrimSuffix(strings.Repeat(`1,`, 9_000), ",") + `]}`,
		fmt.Sprintf(`{"customer_id":[%s]}`, value(r)), fmt.Sprintf(`{"sku":%s}`, value(r)), fmt.Sprintf(`{%q:["a"]}`, text(r)),
		`{"sku":["a"],"sku":["b","c"]}`,
	})
	features := pick(r, []string{
		`["customer_value:orders_30d"]`, `["customer_activity:orders_1h","customer_activity:orders_1h"]`, `["nothing:a"]`, `[":"]`,
		`["customer_activity:` + strings.Repeat("x", 3000) + `"]`, `[]`, `null`, `"sku"`, fmt.Sprintf("[%s]", value(r)),
		`[` + strings.TrimSuffix(strings.Repeat(`"product_popularity:a",`, 2000), ",") + `]`,
		`["product_popularity:order_lines_30d","customer_value:orders_30d"]`,
	})
	name := pick(r, []string{"features", "features", "features", "feature_service"})
	body := fmt.Sprintf(`{"entities":%s,%q:%s,"full_feature_names":%s}`, entities, name, features,
		pick(r, []string{"true", "false", value(r)}))
	if r.IntN(4) == 0 {
		body = text(r)
	}
	path := "/get-online-features"
	if r.IntN(8) == 0 {
		path = pick(r, []string{"/", "/health", "/push", "/materialize", "/get-online-features/"})
	}
	req, err := post(base+path, pick(r, []string{"application/json", "text/plain", ""}), body)
	if err == nil && r.IntN(8) == 0 {
		req.Method = pick(r, []string{"GET", "PUT", "OPTIONS", "DELETE"})
	}
	return req, err
}

// trackingAttack sends events to the intake: valid ones with strange values, invalid ones, bodies of
// the wrong shape or size, and wrong compression, keys and origins.
func trackingAttack(r *rand.Rand, base string) (*http.Request, error) {
	single := []string{"track", "identify", "page", "screen", "group", "alias", "t", "i", "p", "s", "g", "a"}
	path, body := "/v1/"+pick(r, single), visit(r)
	switch r.IntN(6) {
	case 0, 1:
		path = "/v1/" + pick(r, []string{"batch", "b", "import"})
		body = fmt.Sprintf(`{"batch":[%s,%s,%s],"sentAt":%s,"context":%s}`, visit(r), visit(r), pick(r,
			[]string{visit(r), value(r)}), value(r), value(r))
	case 2:
		path = "/v1/" + pick(r, []string{"batch", "b"})
		body = `{"batch":[` + strings.Repeat(pick(r, []string{"0,", "{},", "[],", `"",`}), r.IntN(100_000)) + `0]}`
	case 3:
		body = text(r)
	}
	if r.IntN(16) == 0 {
		path = pick(r, []string{"/", "/v1/", "/v1/nothing", "/v1/batch/", "/readyz", "/v1/../v1/track"})
	}
	zipped := r.IntN(4) == 0
	if zipped {
		body = compress(r, body)
	}
	req, err := post(base+path, pick(r, []string{"application/json", "text/plain", ""}), body)
	if err != nil {
		return nil, err
	}
	if zipped {
		req.Header.Set("Content-Encoding", pick(r, []string{"gzip", "gzip", "GZIP", "gzip, gzip", "br"}))
	}
	if r.IntN(16) > 0 {
		req.SetBasicAuth(pick(r, []string{tracking.DemoKey, tracking.DemoKey, tracking.DemoKey, "guess", ""}), "")
	}
	if r.IntN(8) == 0 {
		req.Header.Set(pick(r, []string{"Origin", "Host", "X-Forwarded-For", "Authorization"}),
			pick(r, []string{"null", "https://shop.example", "Basic !", "Basic " + strings.Repeat("a", 3000)}))
	}
	if r.IntN(16) == 0 {
		req.Method = pick(r, []string{"GET", "PUT", "OPTIONS", "DELETE", "HEAD"})
	}
	return req, nil
}

// visit returns an event whose fields may have any value.
func visit(r *rand.Rand) string {
	b := strings.Builder{}
	fmt.Fprintf(&b, `{"anonymousId":"a%d","messageId":"abuse-%d"`, r.IntN(50), r.Int64())
	for _, field := range []struct{ name, usual string }{
		{"type", `"track"`}, {"event", `"Product Viewed"`}, {"userId", `"u"`}, {"groupId", `"g"`}, {"previousId", `"p"`},
		{"properties", `{"sku":"22423","price":2.55}`}, {"traits", `{"email":"a@example.com"}`},
		{"context", `{"consent":{"categoryPreferences":{"ads":false}}}`}, {"timestamp", `"2026-01-31T12:00:00Z"`},
		{"sentAt", `"0001-01-02"`}, {"name", `"Home"`},
	} {
		switch r.IntN(12) {
		case 0:
			fmt.Fprintf(&b, `,%q:%s`, field.name, value(r))
		case 1, 2, 3, 4, 5, 6:
			fmt.Fprintf(&b, `,%q:%s`, field.name, field.usual)
		}
	}
	return b.String() + "}"
}

// value returns a JSON value that is rarely the wanted one, and sometimes not JSON.
func value(r *rand.Rand) string {
	if r.IntN(8) == 0 {
		return text(r)
	}
	return pick(r, []string{
		"null", "true", "0", "-1", "1e400", "18446744073709551616", `""`, `"\u0000"`, `"\ud800"`, `"\u202e"`, "[]", "{}", `[null]`,
		`{"":{"":[]}}`, `{"a":1,"a":2}`, `{"consent":7}`, `{"consent":{"categoryPreferences":{"ads":"no"}}}`,
		`"9999-12-31T23:59:59.999999999Z"`, `"0001-01-01"`, `"2026-13-45"`, `"` + strings.Repeat("x", 40_000) + `"`,
		`"` + strings.Repeat("é", 200) + `"`, strings.Repeat("[", 100) + strings.Repeat("]", 100), `{"a":` + strings.Repeat(" ", 40_000) + `1}`,
	})
}

// compress returns a text in gzip, a large one, or a damaged one.
func compress(r *rand.Rand, body string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if r.IntN(8) == 0 {
		body = strings.Repeat(" ", 4<<20)
	}
	_, _ = z.Write([]byte(body)) // a buffer accepts everything
	_ = z.Close()
	out := b.Bytes()
	if r.IntN(4) == 0 {
		out[r.IntN(len(out))] ^= 0x55
	}
	return string(out)
}
