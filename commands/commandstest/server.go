package commandstest

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/event"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
)

// OpenStore opens an empty store in a temporary folder, and closes it at the end of the test. It is
// an SQLite store, because its tests need no server. Other adapters behave alike: eventstoretest
// checks that.
func OpenStore(t testing.TB, agg event.Aggregate) eventstore.Store {
	t.Helper()
	store, err := sqlite.Open(context.Background(), filepath.Join(t.TempDir(), agg.Service+".db"), agg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store
}

// Server is a running service on loopback. Its clients end with the test, so that no goroutine of a
// connection outlives it.
type Server struct {
	URL   string
	HTTP1 *http.Client // for Connect, gRPC-Web and JSON
	HTTP2 *http.Client // HTTP/2 without TLS, for gRPC
}

// Serve serves a service on a store until the end of the test. handler is a service's NewHandler.
func Serve(
	t testing.TB, store eventstore.Store,
	handler func(eventstore.Store, ...commands.Option) (string, http.Handler), opts ...commands.Option,
) Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(handler(store, opts...))
	server := httptest.NewUnstartedServer(mux)
	server.Config.Protocols = protocols(true, true)
	server.Start()
	// Tests make many concurrent calls, which need as many connections with HTTP/1.
	http1 := &http.Transport{Protocols: protocols(true, false), MaxIdleConnsPerHost: 64}
	http2 := &http.Transport{Protocols: protocols(false, true)}
	t.Cleanup(func() {
		http1.CloseIdleConnections()
		http2.CloseIdleConnections()
		server.Close()
	})
	return Server{URL: server.URL, HTTP1: &http.Client{Transport: http1}, HTTP2: &http.Client{Transport: http2}}
}

// protocols returns the protocols of a client or server: HTTP/1, and HTTP/2 without TLS. A client
// with both would choose HTTP/1, so each client has one.
func protocols(one, two bool) *http.Protocols {
	var p http.Protocols
	p.SetHTTP1(one)
	p.SetUnencryptedHTTP2(two)
	return &p
}

// Rejection returns the detail of a rejected command. The test fails if err is another error or has
// another code.
func Rejection(t testing.TB, err error, code connect.Code) *eventv1.Rejection {
	t.Helper()
	var typed *connect.Error
	if !errors.As(err, &typed) || typed.Code() != code {
		t.Fatalf("want an error of code %v, got %v", code, err)
	}
	for _, d := range typed.Details() {
		if value, err := d.Value(); err == nil {
			if r, ok := value.(*eventv1.Rejection); ok {
				return r
			}
		}
	}
	t.Fatalf("%v has no detail eventv1.Rejection", err)
	return nil
}

// Events returns all events of a store, in the order of their positions. It reads in pages, because
// Read is limited.
func Events(t testing.TB, store eventstore.Store) []event.Event {
	t.Helper()
	var all []event.Event
	for {
		var after event.Position
		if len(all) > 0 {
			after = all[len(all)-1].Position
		}
		events, err := store.Read(context.Background(), after, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(events) == 0 {
			return all
		}
		all = append(all, events...)
	}
}
