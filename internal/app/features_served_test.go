package app

import (
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/served"
	"github.com/millrace/millrace/features/shop"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
	"github.com/millrace/millrace/internal/client"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/lake/external"
	"github.com/millrace/millrace/lake/wire"
)

// TestServedVectors: vectors of every group are logged while events arrive, and equal those that are
// recomputed from the lake, while customers are merged and parted. A vector that contains an event after
// its positions is found, and so is one of a window that is too long.
func TestServedVectors(t *testing.T) {
	for _, store := range []string{config.OnlineInMemory, config.OnlineInRedis} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			c := embeddedConfig(t)
			c.Features.Online.Store = store
			testServedVectors(t, c)
		})
	}
}

func testServedVectors(t *testing.T, c config.Config) {
	c.Features.Online.LogSample = 1
	m := Shop()
	m.Views = nil
	w := &trade{
		App: startEmbedded(t, c, m, Commands, Relay, Lake, Features, Tracking),
		rnd: rand.New(rand.NewPCG(rand.Uint64(), 0)), now: time.Now().Add(-time.Hour).UTC().Truncate(time.Microsecond),
		oldest: 30 * 24 * time.Hour, orders: map[string]*tradeOrder{},
	}
	w.commands = client.New(w.Addr(), time.Minute)
	t.Cleanup(w.commands.Close)
	for range 5 {
		w.customers = append(w.customers, uuid.NewString())
	}
	entities := map[string][]string{"customer_id": append([]string{"nobody"}, w.customers...), "sku": {"SKU 1", "SKU 2"},
		"visitor_id": {"visitor 1", "visitor 2", w.customers[0]}}
	polltest.Until(t, "the process is ready", func() bool { return w.unready(t.Context()) == nil })
	vectors := featuresv1connect.NewFeatureServiceClient(http.DefaultClient, "http://"+w.Addr())
	asked := int64(0)
	ask := func(g *features.Group, at time.Time) {
		t.Helper()
		of := entities[g.Entity]
		if len(of) == 0 {
			t.Fatalf("no entities of %s", g.Entity)
		}
		_, err := vectors.GetVectors(t.Context(), connect.NewRequest(&featuresv1.GetVectorsRequest{
			Group: g.Name, Entities: of, At: timestamppb.New(at)}))
		if err != nil {
			t.Fatal(err)
		}
		asked += int64(len(of))
	}
	groups := shop.Groups(shop.Options{})
	for range 10 {
		w.sell(t, 12)
		w.browse(t, 10)
		w.link(t, 3)
		for _, g := range groups {
			ask(g, time.Now())
			ask(g, w.now.Add(-time.Duration(w.rnd.Int64N(int64(time.Hour)))))
		}
	}
	polltest.Until(t, "all vectors are logged", func() bool { return w.served.Written() == asked })

	c.Kafka.Brokers = w.kafka.Brokers
	verify := func() ServedCheck {
		t.Helper()
		check, err := VerifyServed(t.Context(), c, groups, 10_000, time.Minute, func(string, int64, int64) {},
			slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return check
	}
	check := verify()
	n := 0
	for _, g := range check.Groups {
		n += g.Equal
	}
	if !check.Equal() || int64(n) != asked || len(check.Groups) != len(groups) || check.Unreadable != 0 {
		t.Fatalf("%d of %d vectors of %d groups are equal: %+v", n, asked, len(groups), check)
	}

	// The newest vector of a customer with orders, as if its positions were those before its last
	// order, and as if its window of 30 days were its lifetime.
	var leak, window *featuresv1.ServedVector
	sample, err := served.Read(t.Context(), w.kafka, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range sample.Vectors {
		if v.GetGroup() == "customer_value" && v.GetFound() && v.GetEntity() == w.customers[0] {
			leak, window = proto.CloneOf(v.ServedVector), proto.CloneOf(v.ServedVector)
		}
	}
	if leak == nil {
		t.Fatal("no vector of a customer with orders was served")
	}
	for _, p := range leak.Positions {
		p.NextOffset = 0
	}
	value := func(v *featuresv1.ServedVector, name string) *featuresv1.ServedValue {
		for _, value := range v.GetValues() {
			if value.GetFeature() == name {
				return value
			}
		}
		t.Fatalf("the vector lacks %s", name)
		return nil
	}
	value(window, "frequency_30d").Kind = &featuresv1.ServedValue_Integer{
		Integer: value(window, "frequency_30d").GetInteger() + 1}
	leak.ServedAt, window.ServedAt = timestamppb.Now(), timestamppb.Now()
	producer, err := kafka.NewProducer(w.kafka)
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	for _, v := range []*featuresv1.ServedVector{leak, window} {
		b, err := proto.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := producer.Produce(t.Context(), kafka.Record{Topic: served.Topic, Partition: 0, Value: b}); err != nil {
			t.Fatal(err)
		}
	}
	check = verify()
	different := 0
	for _, g := range check.Groups {
		different += g.Different
	}
	if last := check.Differences[len(check.Differences)-1]; different != 2 || last.Feature != "frequency_30d" ||
		last.Entity != w.customers[0] {
		t.Errorf("%d vectors differ: %+v", different, check.Differences)
	}
}

// TestServedVectorsCanBeLanded: the contract compiles without other files of Millrace, and has
// columns.
func TestServedVectorsCanBeLanded(t *testing.T) {
	t.Parallel()
	d, err := external.Message(t.Context(), "../../proto/millrace/features/v1/served.proto", "millrace.features.v1.ServedVector")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := wire.Compile(d, wire.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range plan.Fields() {
		names = append(names, f.Name)
	}
	if want := "group version entity at served_at found values positions"; strings.Join(names, " ") != want {
		t.Errorf("the columns are %q; want %s", names, want)
	}
}
