package customer360_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/identity"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/readmodels/customer360"
	"github.com/millrace/millrace/streams/streamstest"
)

// segments are those of the tests below.
var segments = []customer360.Segment{
	{Name: "big", Expression: `spent("GBP") > 100.0`, Purpose: marketing},
	{Name: "lapsed", Expression: `orders.count > 0u && !within(orders.last_at, "30d")`, Purpose: marketing},
	{Name: "seen", Expression: `behavior.events > 1u`, Purpose: analytics},
}

// shop is a broker with the topics of a world, and a view that is fed from them.
type shop struct {
	*world
	kafka   kafka.Config
	written map[string]int
	clock   atomic.Int64 // business time of the evaluation, in Unix nanoseconds
}

func newShop(t *testing.T) *shop {
	s := &shop{kafka: streamstest.NewBroker(t), written: map[string]int{}}
	logs := map[string]*streamstest.Log{}
	for _, a := range customer360.Sources() {
		logs[a.Topic] = streamstest.NewLog(t, s.kafka, a.Topic)
	}
	s.world = newWorld(t).on(logs)
	s.clock.Store(monday.AddDate(0, 0, 1).UnixNano())
	return s
}

// write writes what was added since the last call to the log.
func (s *shop) write(t *testing.T) {
	t.Helper()
	for topic, l := range s.logs {
		events := l.Events
		if topic == event.Behavior.Topic {
			events = s.behavior
		}
		l.Write(t, events[s.written[topic]:]...)
		s.written[topic] = len(events)
	}
}

// start feeds a view and evaluates segments until the returned function is called.
func (s *shop) start(t *testing.T, v *customer360.View) (stop func()) {
	t.Helper()
	if err := v.SetSegments(segments, customer360.Limits{}); err != nil {
		t.Fatal(err)
	}
	stopFeed := streamstest.Start(t, v.Runtime(s.kafka, nil, streamstest.Quiet))
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	working.Go(func() {
		err := v.Work(ctx, customer360.WorkConfig{
			Kafka: s.kafka, Logger: streamstest.Quiet, Evaluate: true, TransactionalID: "segments", Lease: lease,
			Now: func() time.Time { return time.Unix(0, s.clock.Load()) },
		})
		if err != nil {
			t.Error(err)
		}
	})
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			working.Wait()
			stopFeed()
		})
	}
	t.Cleanup(stop)
	return stop
}

const lease = 500 * time.Millisecond

// published returns the content of the topic: the last change of each customer in each segment. It
// fails the test if a change is missing, is there twice, or changes nothing.
func (s *shop) published(t *testing.T) map[string]bool {
	t.Helper()
	admin, err := kafka.NewAdmin(s.kafka)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ends, err := admin.EndOffsets(t.Context(), customer360.SegmentTopic)
	if err != nil {
		t.Fatal(err)
	}
	versions, members := map[string]uint64{}, map[string]bool{}
	err = kafka.ReadAll(t.Context(), s.kafka, customer360.SegmentTopic, nil, ends, func(m kafka.Message) error {
		c := &customer360v1.SegmentChange{}
		if err := proto.Unmarshal(m.Value, c); err != nil {
			return err
		}
		key := string(m.Key)
		if key != c.GetSegment()+"|"+c.GetCustomerId() {
			t.Errorf("the key %q of %v", key, c)
		}
		if versions[key]++; c.GetVersion() != versions[key] || c.GetMember() != (c.GetVersion()%2 == 1) {
			t.Errorf("change %d of %s is %v", versions[key], key, c)
		}
		members[key] = c.GetMember()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return members
}

// awaitMembers waits until a segment has these members, by every query.
func awaitMembers(t *testing.T, v *customer360.View, segment string, want ...int) {
	t.Helper()
	queries := customer360.NewQueries(v)
	ids := make([]string, 0, len(want))
	for _, n := range want {
		ids = append(ids, customerID(n))
	}
	var got []string
	streamstest.Eventually(t, fmt.Sprintf("%s has the members %v", segment, want), func() bool {
		got = nil
		for after, done := "", false; !done; {
			page, err := queries.ListSegment(t.Context(), connect.NewRequest(&customer360v1.ListSegmentRequest{Segment: segment, After: after, PageSize: 2}))
			if err != nil {
				return false
			}
			got = append(got, page.Msg.GetCustomerIds()...)
			after, done = page.Msg.GetNext(), page.Msg.GetNext() == ""
		}
		return slices.Equal(got, ids) || len(got)+len(ids) == 0
	})
	count, err := queries.CountSegment(t.Context(), connect.NewRequest(&customer360v1.CountSegmentRequest{Segment: segment}))
	if err != nil || count.Msg.GetMembers() != uint64(len(want)) {
		t.Errorf("%s has %v members, %v, want %d", segment, count, err, len(want))
	}
	exported, err := queries.ExportSegment(t.Context(), connect.NewRequest(&customer360v1.ExportSegmentRequest{Segment: segment}))
	if err != nil || len(exported.Msg.GetProfiles()) != len(want) {
		t.Errorf("%s exports %v, %v", segment, exported, err)
	}
}

// TestMembershipFollowsProfilesAndTime checks that members enter and leave by events, by time, by
// consent and by merges, and that a new leader publishes nothing again.
func TestMembershipFollowsProfilesAndTime(t *testing.T) {
	s, client := newShop(t), newRedis(t)
	v := customer360.New(client, streamstest.Quiet)
	for n := 1; n <= 4; n++ {
		s.register(n)
		s.consent(n, marketing, true)
		s.place(n, n, gbp(int64(50*n)))
	}
	s.consent(4, marketing, false)
	s.write(t)
	stop := s.start(t, v)
	awaitMembers(t, v, "big", 2, 3)
	awaitMembers(t, v, "lapsed")

	s.place(11, 1, gbp(60))
	s.cancel(3)
	s.write(t)
	awaitMembers(t, v, "big", 1, 2)

	s.merge(1, 2, true) // 1 is the canonical one, and 2 leaves
	s.write(t)
	awaitMembers(t, v, "big", 1)
	s.merge(1, 2, false)
	s.write(t)
	awaitMembers(t, v, "big", 1, 2)

	// A visitor's events count once their anonymous id is linked.
	s.consent(2, analytics, true)
	s.visit("browser-1", "a", "")
	s.visit("browser-1", "b", "")
	s.write(t)
	s.link(2, anonymousID, "browser-1", true)
	s.write(t)
	awaitMembers(t, v, "seen", 2)

	// Nobody of them orders for a month.
	s.clock.Store(monday.AddDate(0, 2, 0).UnixNano())
	s.visit("browser-9", "c", "") // wakes the evaluation, whose timer follows the real clock
	s.write(t)
	awaitMembers(t, v, "lapsed", 1, 2)
	s.consent(1, marketing, false)
	s.write(t)
	awaitMembers(t, v, "lapsed", 2)
	awaitMembers(t, v, "big", 2)
	profile, err := customer360.NewQueries(v).GetProfile(t.Context(), connect.NewRequest(byID(2, "")))
	if want := []string{"big", "lapsed", "seen"}; err != nil || !slices.Equal(profile.Msg.GetSegments(), want) {
		t.Errorf("the profile has the segments %v, %v, want %v", profile, err, want)
	}
	before := s.published(t)
	verified := func(want bool) {
		t.Helper()
		evaluated, published, err := v.Membership(t.Context(), monday.AddDate(0, 2, 0))
		if err != nil || evaluated.Total().Count == 0 || (evaluated.Total() == published.Total()) != want {
			t.Errorf("%v should be members and %v are, %v; want them equal: %v", evaluated.Streams, published.Streams, err, want)
		}
	}
	verified(true)
	v.AddMember("big", customerID(4))
	verified(false)

	stop()
	again := customer360.New(client, streamstest.Quiet)
	s.start(t, again)
	awaitMembers(t, again, "big", 2)
	s.register(5)
	s.consent(5, marketing, true)
	s.place(51, 5, gbp(500))
	s.write(t)
	awaitMembers(t, again, "big", 2, 5)
	after := s.published(t)
	delete(after, "big|"+customerID(5))
	delete(after, "lapsed|"+customerID(5))
	if fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the new leader has published %v, before %v", after, before)
	}
}

// TestOnePersonStopsNobody: a customer whose orders have a sum that is too large, and one with whom too many
// are connected, do not keep others from entering and leaving segments.
func TestOnePersonStopsNobody(t *testing.T) {
	s := newShop(t)
	v := customer360.New(newRedis(t), streamstest.Quiet)
	for n := 1; n <= 4; n++ {
		s.register(n)
		s.consent(n, marketing, true)
		s.place(n, n, gbp(200))
	}
	s.place(11, 1, gbp(math.MaxInt64))
	s.place(12, 1, gbp(math.MaxInt64))
	s.write(t)
	s.start(t, v)
	awaitMembers(t, v, "big", 1, 2, 3, 4)
	profile, err := customer360.NewQueries(v).GetProfile(t.Context(), connect.NewRequest(byID(1, "")))
	if err != nil || profile.Msg.GetProfile().GetOrders().GetTotals()[0].GetUnits() != math.MaxInt64 {
		t.Errorf("the profile with the largest sum: %v, %v", profile, err)
	}
	// Whether somebody consents with whom too many are connected is not known.
	for i := range identity.MaxNodes {
		s.link(3, anonymousID, fmt.Sprint("browser-", i), true)
	}
	s.write(t)
	awaitMembers(t, v, "big", 1, 2, 4)
	evaluated, published, err := v.Membership(t.Context(), monday.AddDate(0, 0, 1))
	if err != nil || evaluated.Total() != published.Total() {
		t.Errorf("%v should be members and %v are, %v", evaluated, published, err)
	}
	s.published(t)
}

// childOf is an environment variable that makes this binary feed a view and evaluate segments until
// it is killed: "<brokers> <redis>".
const childOf = "MILLRACE_TEST_CUSTOMER360_CHILD"

// child runs the view as a process does, and prints a line each time that membership has changed.
func child(servers string) int {
	brokers, addr, _ := strings.Cut(servers, " ")
	client, err := redis.Open(context.Background(), redis.Config{Addr: addr})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	v := customer360.New(client, streamstest.Quiet)
	if err := v.SetSegments(segments, customer360.Limits{}); err != nil {
		fmt.Println(err)
		return 1
	}
	// A static member is accepted at once in the place of the killed one.
	cfg := kafka.Config{Brokers: brokers, Logger: slog.New(slog.DiscardHandler), Extra: map[string]string{"group.instance.id": "the-one"}}
	for _, run := range []func() error{
		func() error { return v.Runtime(cfg, nil, streamstest.Quiet).Run(context.Background()) },
		func() error {
			return v.Work(context.Background(), customer360.WorkConfig{
				Kafka: cfg, Logger: streamstest.Quiet, Evaluate: true, TransactionalID: "segments", Lease: lease,
				Now: func() time.Time { return monday.AddDate(0, 0, 1) },
			})
		},
	} {
		go func() {
			fmt.Println(run())
			os.Exit(1)
		}()
	}
	last := uint64(0)
	for range time.Tick(5 * time.Millisecond) {
		if n := v.MembersOf("big"); n != last {
			fmt.Println("members", n)
			last = n
		}
	}
	return 0
}

const kills = 5

// TestKilledWhilePublishing kills the process that evaluates segments while it publishes changes,
// again and again. In the end, each change is on the topic once, and the members are right.
func TestKilledWhilePublishing(t *testing.T) {
	s := newShop(t)
	cfg, client := serveRedis(t)
	const people = 120
	for n := 1; n <= people; n++ {
		s.register(n)
		s.consent(n, marketing, true)
	}
	s.write(t)
	order := 0
	for range kills {
		for range people {
			order++
			s.place(order, 1+rand.IntN(people), gbp(60))
			if order%3 == 0 {
				s.cancel(order - 1 - rand.IntN(min(order-1, 5)))
			}
		}
		written := make(chan struct{})
		go func() {
			defer close(written)
			s.write(t)
		}()
		killChild(t, s.kafka.Brokers+" "+cfg.Addr, 1+rand.IntN(3), written)
		<-written
	}
	v := customer360.New(client, streamstest.Quiet)
	s.start(t, v)
	spent := map[int]int{}
	for stream := range s.logs[event.Order.Topic].Versions {
		var order, customer int
		for _, e := range s.logs[event.Order.Topic].Events {
			if e.Stream != stream {
				continue
			}
			switch {
			case strings.HasSuffix(e.Type, "OrderPlaced"):
				order, customer = 1, customerOf(t, e)
			case strings.HasSuffix(e.Type, "OrderCancelled"):
				order = 0
			}
		}
		spent[customer] += order
	}
	var want []int
	for n := 1; n <= people; n++ {
		if spent[n] >= 2 { // twice 60.50
			want = append(want, n)
		}
	}
	awaitMembers2(t, v, "big", want)
	members := 0
	for key, member := range s.published(t) {
		if strings.HasPrefix(key, "big|") && member {
			members++
		}
	}
	if members != len(want) {
		t.Errorf("the topic has %d members, want %d", members, len(want))
	}
}

// awaitMembers2 is awaitMembers for more members than one exported page has.
func awaitMembers2(t *testing.T, v *customer360.View, segment string, want []int) {
	t.Helper()
	streamstest.Eventually(t, fmt.Sprintf("%s has %d members", segment, len(want)), func() bool {
		page, err := customer360.NewQueries(v).ListSegment(t.Context(), connect.NewRequest(&customer360v1.ListSegmentRequest{Segment: segment, PageSize: 1000}))
		if err != nil || len(page.Msg.GetCustomerIds()) != len(want) {
			return false
		}
		for i, n := range want {
			if page.Msg.GetCustomerIds()[i] != customerID(n) {
				return false
			}
		}
		return true
	})
}

// killChild runs a child and kills it after it has printed this number of changes, or a while after
// everything was written: then, there may be fewer.
func killChild(t *testing.T, servers string, changes int, written <-chan struct{}) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childOf+"="+servers)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	var output []string
	var late <-chan time.Time
	for enough := false; !enough; {
		select {
		case line, running := <-lines:
			if !running {
				t.Fatalf("the child ended by itself: %v: %q", cmd.Wait(), output)
			}
			output = append(output, line)
			if strings.HasPrefix(line, "members ") {
				changes--
			}
			enough = changes == 0
		case <-written:
			written, late = nil, time.After(5*time.Second)
		case <-late:
			enough = true
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for range lines { // until the pipe is closed
	}
	_ = cmd.Wait() // it was killed
}
