// Package ingest_test runs the demo and the import against the real services.
package ingest_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/catalog"
	"github.com/millrace/millrace/commands/customer"
	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/commands/identity"
	"github.com/millrace/millrace/commands/inventory"
	"github.com/millrace/millrace/commands/order"
	"github.com/millrace/millrace/event"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// services are the four services on SQLite, behind one address.
type services struct {
	url    string
	stores map[event.Aggregate]eventstore.Store
}

func startServices(t testing.TB, wrap func(http.Handler) http.Handler) services {
	t.Helper()
	s := services{stores: map[event.Aggregate]eventstore.Store{}}
	mux := http.NewServeMux()
	dir := t.TempDir()
	for aggregate, handler := range map[event.Aggregate]func(eventstore.Store, ...commands.Option) (string, http.Handler){
		event.Customer: customer.NewHandler, event.Product: catalog.NewHandler,
		event.Stock: inventory.NewHandler, event.Order: order.NewHandler, event.Identity: identity.NewHandler,
	} {
		store, err := sqlite.Open(context.Background(), filepath.Join(dir, aggregate.Name+".db"), aggregate)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := store.Close(); err != nil {
				t.Error(err)
			}
		})
		s.stores[aggregate] = store
		mux.Handle(handler(store))
	}
	server := httptest.NewUnstartedServer(wrap(mux))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func unwrapped(h http.Handler) http.Handler { return h }

// events reads a store to its end.
func (s services) events(t testing.TB, aggregate event.Aggregate) []event.Event {
	t.Helper()
	var all []event.Event
	var after event.Position
	for {
		page, err := s.stores[aggregate].Read(context.Background(), after, 10_000)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			return all
		}
		all = append(all, page...)
		after = page[len(page)-1].Position
	}
}

// count counts all events of all stores.
func (s services) count(t testing.TB) map[string]int {
	t.Helper()
	n := map[string]int{}
	for aggregate := range s.stores {
		for _, e := range s.events(t, aggregate) {
			n[e.Type]++
		}
	}
	return n
}
