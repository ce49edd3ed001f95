package rpc_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/internal/rpc"
)

// goTexts are texts of Go's errors, which mean nothing to a client in another language.
var goTexts = []string{"strconv", "json:", "proto:", "*errors", "base64.", "illegal base64", "http:"}

// Faults in a request's headers, encodings and parameters are reported as the client's in every
// protocol, without terms of Go.
func TestInvalidRequests(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.Handle(orderv1connect.NewOrderQueryServiceHandler(queries{},
		rpc.HandlerOptions(slog.New(slog.DiscardHandler), time.Now)...))
	s := httptest.NewUnstartedServer(rpc.Intake(mux))
	s.EnableHTTP2 = true // gRPC requires it
	s.StartTLS()
	t.Cleanup(s.Close)

	const good = `{"reference":"536"}`
	empty := frame(0, 0, "")
	for name, c := range map[string]struct {
		contentType string // empty means GET
		headers     string // "Name: value"
		body        string // or the parameters of GET
		http        int
		grpc        string
	}{
		"Connect, a timeout in words":        {"application/json", "Connect-Timeout-Ms: soon", good, 400, ""},
		"Connect, a negative timeout":        {"application/json", "Connect-Timeout-Ms: -1", good, 400, ""},
		"Connect, a timeout with a fraction": {"application/json", "Connect-Timeout-Ms: 1e3", good, 400, ""},
		"Connect, an endless timeout":        {"application/json", "Connect-Timeout-Ms: 99999999999", good, 400, ""},
		"Connect, another version":           {"application/json", "Connect-Protocol-Version: 9", good, 400, ""},
		"Connect, not compressed":            {"application/json", "Content-Encoding: gzip", good, 400, ""},
		"Connect, another compression":       {"application/json", "Content-Encoding: br", good, 501, ""},
		"Connect, another charset":           {"application/json; charset=utf-16", "", good, 415, ""},
		"Connect, not its type":              {"application/xml", "", "<a/>", 415, ""},
		"Connect, a field given twice":       {"application/json", "", `{"reference":"5","reference":"6"}`, 400, ""},
		"Connect, text for a number":         {"application/json", "", `{"reference":5}`, 400, ""},

		"Connect GET, no encoding":          {"", "", "message=%7B%7D", 415, ""},
		"Connect GET, an unknown encoding":  {"", "", "encoding=xml&message=%7B%7D", 415, ""},
		"Connect GET, half a message":       {"", "", "encoding=json&message=%7B", 400, ""},
		"Connect GET, no message":           {"", "", "encoding=json", 400, ""},
		"Connect GET, another version":      {"", "", "encoding=json&message=%7B%7D&connect=v9", 400, ""},
		"Connect GET, not compressed":       {"", "", "encoding=json&message=e30&base64=1&compression=gzip", 400, ""},
		"Connect GET, bad escapes":          {"", "", "encoding=json&message=%zz", 400, ""},
		"Connect GET, not base64 by a flag": {"", "", "encoding=json&message=e30&base64=2", 400, ""},

		"gRPC, a timeout in words":          {"application/grpc+proto", "Grpc-Timeout: soon", empty, 200, "3"},
		"gRPC, a timeout without a unit":    {"application/grpc+proto", "Grpc-Timeout: 10", empty, 200, "3"},
		"gRPC, an endless timeout":          {"application/grpc+proto", "Grpc-Timeout: 99999999999S", empty, 200, "3"},
		"gRPC, another compression":         {"application/grpc+proto", "Grpc-Encoding: br", empty, 200, "12"},
		"gRPC, another codec":               {"application/grpc+xml", "", empty, 415, ""},
		"gRPC, no message":                  {"application/grpc+proto", "", "", 200, "12"},
		"gRPC-Web, a timeout in words":      {"application/grpc-web+proto", "Grpc-Timeout: soon", empty, 200, "3"},
		"gRPC-Web, a negative timeout":      {"application/grpc-web+proto", "Grpc-Timeout: -1S", empty, 200, "3"},
		"gRPC-Web, another compression":     {"application/grpc-web+proto", "Grpc-Encoding: br", empty, 200, "12"},
		"gRPC-Web, not the JSON it says":    {"application/grpc-web+json", "", frame(0, 3, "abc"), 200, "3"},
		"gRPC-Web, a field there is not":    {"application/grpc-web+json", "", frame(0, 7, `{"x":1}`), 200, "3"},
		"gRPC-Web, text of the old browser": {"application/grpc-web-text", "", "AAAAAAA=", 415, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			method, to, body := http.MethodPost, s.URL+getOrder, c.body
			if c.contentType == "" {
				method, to, body = http.MethodGet, to+"?"+c.body, ""
			}
			req, err := http.NewRequestWithContext(t.Context(), method, to, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if c.contentType != "" {
				req.Header.Set("Content-Type", c.contentType)
			}
			if key, value, ok := strings.Cut(c.headers, ": "); ok {
				req.Header.Set(key, value)
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
			status := grpcStatus(res, answer)
			if status == "" {
				status = res.Trailer.Get("Grpc-Status")
			}
			response := string(answer) + res.Header.Get("Grpc-Message") + res.Trailer.Get("Grpc-Message")
			if plain, err := url.PathUnescape(response); err == nil {
				response = plain
			}
			if res.StatusCode != c.http || status != c.grpc {
				t.Errorf("%s %q, want %d %q: %q", res.Status, status, c.http, c.grpc, response)
			}
			for _, text := range goTexts {
				if strings.Contains(response, text) {
					t.Errorf("it says %q", response)
				}
			}
		})
	}
}
