package rpc_test

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/internal/rpc"
	"github.com/millrace/millrace/internal/server"
)

// intake serves queries behind Intake.
func intake(t testing.TB) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(orderv1connect.NewOrderQueryServiceHandler(queries{},
		rpc.HandlerOptions(slog.New(slog.DiscardHandler), time.Now)...))
	bodies := &server.Bodies{Timeout: time.Minute, MaxBytes: 16 << 20}
	s := httptest.NewServer(bodies.Guard(rpc.Intake(mux)))
	t.Cleanup(s.Close)
	return s
}

func frame(flags byte, size uint32, message string) string {
	return string(flags) + string(binary.BigEndian.AppendUint32(nil, size)) + message
}

// A request that is damaged in transit is reported as the client's fault in every protocol.
func TestBrokenFramesAreInvalid(t *testing.T) {
	t.Parallel()
	s := intake(t)
	for name, c := range map[string]struct {
		body, encoding, want string
	}{
		"half a head":            {"\x00\x00\x00", "", "3"},
		"a message cut short":    {frame(0, 10, "abc"), "", "3"},
		"flags that are none":    {frame(0x40, 0, ""), "", "3"},
		"trailers in a request":  {frame(0x80, 0, ""), "", "3"},
		"compressed by nothing":  {frame(1, 3, "abc"), "", "3"},
		"compressed by nonsense": {frame(1, 3, "abc"), "gzip", "3"},
		"not Protobuf":           {frame(0, 3, "\xff\xff\xff"), "", "3"},
		"too long":               {frame(0, 100<<20, "abc"), "", "8"},
		"another after it":       {frame(0, 0, "") + "\x07", "", "3"},
		"an empty message":       {frame(0, 0, ""), "", "3"}, // neither key is given: the contract's own rule, or answered
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+getOrder, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/grpc-web+proto")
		if c.encoding != "" {
			req.Header.Set("Grpc-Encoding", c.encoding)
		}
		res, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		status := grpcStatus(res, body)
		if status != c.want && (name != "an empty message" || status != "0") {
			t.Errorf("%s: status %q, want %s: %q", name, status, c.want, body)
		}
	}
}

// grpcStatus returns the status at the end of a gRPC-Web body, or in the header if there is no
// body.
func grpcStatus(res *http.Response, body []byte) string {
	if s := res.Header.Get("Grpc-Status"); s != "" {
		return s
	}
	for line := range strings.Lines(string(body)) {
		if at := strings.Index(line, "grpc-status: "); at >= 0 {
			return strings.TrimSpace(line[at+len("grpc-status: "):])
		}
	}
	return ""
}

func TestBadBase64IsInvalid(t *testing.T) {
	t.Parallel()
	s := intake(t)
	for message, want := range map[string]int{"!!!!": 400, "a": 400, "EgM1MzY=": 200, "EgM1MzY": 200,
		"+/+/": 400, "": 200} {
		q := url.Values{"message": {message}, "base64": {"1"}, "encoding": {"proto"}, "connect": {"v1"}}
		res, err := s.Client().Get(s.URL + getOrder + "?" + q.Encode())
		if err != nil {
			t.Fatal(err)
		}
		var answer struct{ Code string }
		_ = json.NewDecoder(res.Body).Decode(&answer) // an answer in Protobuf has none
		_ = res.Body.Close()
		if res.StatusCode != want && message != "" || answer.Code == "internal" || answer.Code == "unknown" {
			t.Errorf("%q: %s %s, want %d", message, res.Status, answer.Code, want)
		}
	}
}

func TestOverloadedHasRetryAfter(t *testing.T) {
	t.Parallel()
	err := rpc.Overloaded(server.ErrOverloaded)
	if err.Code() != connect.CodeResourceExhausted || err.Meta().Get("Retry-After") == "" {
		t.Errorf("%v %v", err, err.Meta())
	}
}

// Whatever bytes arrive, in any protocol, no response blames the server.
func FuzzIntake(f *testing.F) {
	f.Add("application/grpc-web+proto", "", []byte(frame(0, 3, "abc")))
	f.Add("application/grpc+proto", "gzip", []byte(frame(1, 3, "abc")))
	f.Add("application/connect+json", "gzip", []byte(frame(2, 2, "{}")))
	f.Add("application/json", "br", []byte(`{"reference":"5"}`))
	f.Add("application/grpc-web-text", "identity", []byte("AAAAAAA="))
	s := intake(f)
	f.Fuzz(func(t *testing.T, contentType, encoding string, body []byte) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+getOrder,
			strings.NewReader(string(body)))
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{"Content-Type": contentType, "Grpc-Encoding": encoding,
			"Content-Encoding": encoding} {
			if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Skip("no header")
			}
			req.Header.Set(name, value)
		}
		res, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if status := grpcStatus(res, answer); res.StatusCode == http.StatusInternalServerError || status == "2" ||
			status == "13" {
			t.Errorf("%s, status %q: %q", res.Status, status, answer)
		}
	})
}
