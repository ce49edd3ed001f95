package ingest_test

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/ingest/onlineretail"
	"github.com/millrace/millrace/internal/client"
)

// realFile returns the published data set, which is not part of the repository.
func realFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join("..", "..", "shared", "data", "online-retail.parquet")
	if _, err := os.Stat(path); err != nil {
		t.Skipf("the Online Retail data set is not here: %v", err)
	}
	return path
}

func importRetail(t testing.TB, cfg onlineretail.Config) onlineretail.Summary {
	t.Helper()
	summary, err := onlineretail.Import(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if summary.Accepted+summary.Rejected != summary.Read || len(summary.Refused) > 0 {
		t.Fatalf("not every line is accounted for, or commands were refused:\n%v", summary)
	}
	return summary
}

// knownOrder is an order as its events describe it.
type knownOrder struct {
	head  string
	lines []string
	total string
}

func (s services) orders(t testing.TB) map[string]knownOrder {
	t.Helper()
	orders := map[string]knownOrder{}
	for _, e := range s.events(t, event.Order) {
		var m orderv1.OrderEvent
		if err := proto.Unmarshal(e.Data, &m); err != nil {
			t.Fatal(err)
		}
		o := orders[e.Stream]
		var lines []*orderv1.OrderLine
		var total *money.Money
		switch {
		case m.GetPlaced() != nil:
			p := m.GetPlaced()
			o.head = strings.Join([]string{
				p.GetReference(), p.GetCustomerId(), p.GetCountry(), p.GetOrderedAt().AsTime().String(),
			}, "|")
			lines, total = p.GetLines(), p.GetTotal()
		case m.GetLinesAdded() != nil:
			lines, total = m.GetLinesAdded().GetLines(), m.GetLinesAdded().GetTotal()
		}
		for _, l := range lines {
			o.lines = append(o.lines, strings.Join([]string{
				strconv.Itoa(int(l.GetNumber())), l.GetSku(), l.GetDescription(),
				strconv.FormatInt(l.GetQuantity(), 10), event.MoneyString(l.GetUnitPrice()),
			}, "|"))
		}
		o.total = event.MoneyString(total)
		orders[e.Stream] = o
	}
	return orders
}

func sameOrders(t testing.TB, got, want map[string]knownOrder) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d orders, want %d", len(got), len(want))
	}
	for id, w := range want {
		g := got[id]
		if g.head != w.head || g.total != w.total || strings.Join(g.lines, "\n") != strings.Join(w.lines, "\n") {
			t.Fatalf("order %s is\n%+v\nwant\n%+v", id, g, w)
		}
	}
}

// TestGrowingLimit checks that imports with growing limits result in the same orders as one import.
func TestGrowingLimit(t *testing.T) {
	t.Parallel()
	path := realFile(t)
	grown, atOnce := startServices(t, unwrapped), startServices(t, unwrapped)
	rejects := filepath.Join(t.TempDir(), "rejects.csv")
	limits := []int{7, 11, 11, 100, 600} // the first three cut one invoice
	for _, limit := range limits {
		s := importRetail(t, onlineretail.Config{Path: path, BaseURL: grown.url, Limit: limit, RejectsPath: rejects})
		if s.Read != int64(limit) {
			t.Fatalf("read %d lines, want %d", s.Read, limit)
		}
	}
	var last onlineretail.Progress
	whole := importRetail(t, onlineretail.Config{
		Path: path, BaseURL: atOnce.url, Limit: 600, Progress: func(p onlineretail.Progress) { last = p },
	})
	sameOrders(t, grown.orders(t), atOnce.orders(t))
	if last.RowsRead != 600 || last.RowsTotal != 600 || last.Rejected != whole.Rejected || last.Replayed != 0 {
		t.Errorf("the last progress was %+v", last)
	}

	// Importing all or a part of it again changes nothing.
	events := grown.count(t)
	for _, limit := range []int{600, 11} {
		again := importRetail(t, onlineretail.Config{Path: path, BaseURL: grown.url, Limit: limit})
		commands := int64(0)
		for _, n := range again.Commands {
			commands += n
		}
		if again.Replayed != commands {
			t.Errorf("limit %d again: %d of %d commands were replayed", limit, again.Replayed, commands)
		}
	}
	if after := grown.count(t); !maps.Equal(events, after) {
		t.Errorf("events were %v, and are %v", events, after)
	}

	data, err := os.ReadFile(rejects)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if int64(len(lines)) != whole.Rejected || lines[0] != "142,C536379,D,cancellation: returns are not imported" {
		t.Errorf("the rejects file has %d lines for %d rejects, and begins with %q", len(lines), whole.Rejected, lines[0])
	}
}

// TestStopAndResume checks that a stopped import resumes without losing or duplicating lines.
func TestStopAndResume(t *testing.T) {
	t.Parallel()
	path := realFile(t)
	stopped, calm := startServices(t, unwrapped), startServices(t, unwrapped)
	for _, after := range []int64{1, 90, 400, 500} {
		ctx, cancel := context.WithCancel(t.Context())
		stop := func(p onlineretail.Progress) {
			if p.Commands == after {
				cancel()
			}
		}
		_, err := onlineretail.Import(ctx, onlineretail.Config{Path: path, BaseURL: stopped.url, Limit: 600, Progress: stop})
		cancel()
		if err == nil {
			t.Fatalf("the import was stopped after %d commands, but returned no error", after)
		}
	}
	resumed := importRetail(t, onlineretail.Config{Path: path, BaseURL: stopped.url, Limit: 600})
	whole := importRetail(t, onlineretail.Config{Path: path, BaseURL: calm.url, Limit: 600})
	sameOrders(t, stopped.orders(t), calm.orders(t))
	if a, b := stopped.count(t), calm.count(t); !maps.Equal(a, b) {
		t.Errorf("events are %v after a resumed import, want %v", a, b)
	}
	if resumed.Replayed < 500 || resumed.Accepted != whole.Accepted || !maps.Equal(resumed.Reasons, whole.Reasons) {
		t.Errorf("resumed:\n%vuninterrupted:\n%v", resumed, whole)
	}
}

// TestServerFails makes the server drop connections, be unavailable and lose responses, at regular
// intervals, during an import.
func TestServerFails(t *testing.T) {
	t.Parallel()
	path := realFile(t)
	var calls, lost atomic.Int64
	shaky := startServices(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch n := calls.Add(1); {
			case n%7 == 0:
				http.Error(w, "away", http.StatusServiceUnavailable)
			case n%11 == 0:
				panic(http.ErrAbortHandler)
			case n%5 == 0: // the command is executed, but its response is lost
				lost.Add(1)
				h.ServeHTTP(&lostResponse{header: http.Header{}}, r)
				panic(http.ErrAbortHandler)
			default:
				h.ServeHTTP(w, r)
			}
		})
	})
	calm := startServices(t, unwrapped)
	cfg := onlineretail.Config{Path: path, BaseURL: shaky.url, Limit: 300}
	importRetail(t, cfg)
	cfg.BaseURL = calm.url
	importRetail(t, cfg)
	sameOrders(t, shaky.orders(t), calm.orders(t))
	if a, b := shaky.count(t), calm.count(t); !maps.Equal(a, b) || lost.Load() == 0 {
		t.Errorf("events are %v after %d lost responses, want %v", a, lost.Load(), b)
	}
}

// lostResponse is a ResponseWriter that discards its output.
type lostResponse struct{ header http.Header }

func (d *lostResponse) Header() http.Header         { return d.header }
func (d *lostResponse) WriteHeader(int)             {}
func (d *lostResponse) Write(b []byte) (int, error) { return len(b), nil }

// TestOrdersAreRefused makes the server refuse some orders. Their lines are rejected, and the
// import continues.
func TestOrdersAreRefused(t *testing.T) {
	t.Parallel()
	path := realFile(t)
	var refusing atomic.Bool
	var orders atomic.Int64
	s := startServices(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if refusing.Load() && r.URL.Path == orderv1connect.OrderServicePlaceOrderProcedure && orders.Add(1)%4 == 0 {
				refusal := connect.NewError(connect.CodeInvalidArgument, errors.New("not today"))
				if err := connect.NewErrorWriter().Write(w, r, refusal); err != nil {
					t.Error(err)
				}
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	rejects := filepath.Join(t.TempDir(), "rejects.csv")
	refusing.Store(true)
	cfg := onlineretail.Config{Path: path, BaseURL: s.url, Limit: 300, RejectsPath: rejects}
	first, err := onlineretail.Import(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(rejects)
	if err != nil {
		t.Fatal(err)
	}
	lost := int64(strings.Count(string(data), ",not today\n"))
	if lost == 0 || lost != first.Reasons["not today"] ||
		first.Refused["PlaceOrder: not today"] != orders.Load()/4 || first.Accepted+first.Rejected != 300 {
		t.Errorf("the rejects file has %d lines after %d orders:\n%v", lost, orders.Load(), first)
	}
	refusing.Store(false)
	if second := importRetail(t, cfg); second.Accepted != first.Accepted+lost {
		t.Errorf("when the server accepts them:\n%v", second)
	}
}

// TestNoServer checks that the error of an unavailable server contains a remedy.
func TestNoServer(t *testing.T) {
	t.Parallel()
	path := realFile(t)
	s := startServices(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "away", http.StatusServiceUnavailable)
		})
	})
	cfg := onlineretail.Config{Path: path, BaseURL: s.url, Limit: 10, RetryFor: 50 * time.Millisecond}
	_, err := onlineretail.Import(t.Context(), cfg)
	if !errors.Is(err, client.ErrUnreachable) || !strings.Contains(err.Error(), "run the import again") {
		t.Errorf("got %v, want ErrUnreachable and a remedy", err)
	}
}

// BenchmarkYear imports the whole file twice.
func BenchmarkYear(b *testing.B) {
	path := realFile(b)
	for b.Loop() {
		s := startServices(b, unwrapped)
		b.Logf("first: %v", importRetail(b, onlineretail.Config{Path: path, BaseURL: s.url}))
		b.Logf("again: %v", importRetail(b, onlineretail.Config{Path: path, BaseURL: s.url}))
	}
}
