package tracking_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/tracking"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/server"
)

// BenchmarkIntake compares the processor time per event with that of a bare handler of net/http,
// which reads the body and writes the same records to Kafka. Each is a process of its own, started
// from this test binary. They get the same requests in turn, on the same broker. The unit %-of-bare
// is the throughput per core of the intake, relative to the bare handler.
func BenchmarkIntake(b *testing.B) {
	for _, c := range []struct {
		name     string
		path     string
		events   int // of a request
		requests int // of a round
	}{
		{"one event", "/v1/track", 1, 1500},
		{"batch of 15", "/v1/batch", 15, 200}, // the default of Segment's client for Node.js
		{"batch of 100", "/v1/batch", 100, 40},
	} {
		b.Run(c.name, func(b *testing.B) {
			k := broker(b)
			if err := kafka.EnsureTopics(b.Context(), k, kafka.Topic{Name: bareTopic, Partitions: 2}); err != nil {
				b.Fatal(err)
			}
			intake := serveApart(b, contender{Brokers: k.Brokers})
			var sent atomic.Int64
			round := func(base string) {
				if err := sendAll(b.Context(), base+c.path, c.requests, c.events, &sent); err != nil {
					b.Fatal(err)
				}
			}
			round(intake)
			bare := serveApart(b, contender{Brokers: k.Brokers, Events: c.events, Records: savedRecords(b, k)})
			round(bare)
			var spent struct{ intake, bare time.Duration }
			for b.Loop() {
				for base, into := range map[string]*time.Duration{intake: &spent.intake, bare: &spent.bare} {
					before := processorTime(b, base)
					round(base)
					*into += processorTime(b, base) - before
				}
			}
			events := float64(b.N * c.requests * c.events)
			b.ReportMetric(float64(spent.intake.Nanoseconds())/1000/events, "cpu-µs/event")
			b.ReportMetric(float64(spent.bare.Nanoseconds())/1000/events, "bare-cpu-µs/event")
			b.ReportMetric(100*float64(spent.bare)/float64(spent.intake), "%-of-bare")
		})
	}
}

// bareTopic is the topic of the bare handler. The intake reads the ids of its own topic.
const bareTopic = "bare"

// contender says what a process of the benchmark serves: the intake, or the bare handler if it has
// records.
type contender struct {
	Brokers string
	Events  int    // that the bare handler writes for each request
	Records string // file with the records that it writes
}

// envContender contains a contender, if this process was started by the benchmark.
const envContender = "MILLRACE_BENCHMARK_CONTENDER"

// serveContender serves until the process is killed. It prints its address.
func serveContender(text string) error {
	var c contender
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	ctx := context.Background()
	handler := bareHandler
	if c.Records == "" {
		handler = intakeHandler
	}
	api, err := handler(ctx, c)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/", api)
	mux.HandleFunc("GET /processor-time", func(w http.ResponseWriter, _ *http.Request) {
		var used syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = fmt.Fprint(w, used.Utime.Nano()+used.Stime.Nano())
	})
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	if c.Records != "" {
		return (&http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}).Serve(l)
	}
	// The intake is behind the same server as in a process of Millrace.
	bodies := &server.Bodies{Timeout: time.Minute, MaxBytes: 256 << 20}
	server.New(server.Config{Limits: server.Limits{Connections: 1024, PerAddress: 1024}, IdleTimeout: time.Minute,
		Logger: slog.New(slog.DiscardHandler)}, bodies.Guard(mux)).Start(l, time.Second)
	select {}
}

// intakeHandler returns the handler of an intake that accepts events.
func intakeHandler(ctx context.Context, c contender) (http.Handler, error) {
	i, err := tracking.New(tracking.Config{
		Kafka:   kafka.Config{Brokers: c.Brokers, ClientID: "intake", Logger: slog.New(slog.DiscardHandler)},
		Sources: tracking.DemoSources(), Requests: 256, IDs: 1_000_000, Logger: slog.New(slog.DiscardHandler),
		WriteDeadLetters: func(_ context.Context, letters []tracking.DeadLetter) error {
			return fmt.Errorf("a dead letter: %w", letters[0].Reason)
		},
	})
	if err != nil {
		return nil, err
	}
	go i.Run(ctx) //nolint:errcheck // requests would fail
	for !i.Available() {
		time.Sleep(10 * time.Millisecond) // between two polls
	}
	return i.Handler(), nil
}

// bareHandler returns a handler that reads the body and writes the next records.
func bareHandler(_ context.Context, c contender) (http.Handler, error) {
	text, err := os.ReadFile(c.Records)
	if err != nil {
		return nil, err
	}
	var records []kafka.Record
	if err := json.Unmarshal(text, &records); err != nil {
		return nil, err
	}
	p, err := kafka.NewProducer(kafka.Config{Brokers: c.Brokers, ClientID: "bare",
		Logger: slog.New(slog.DiscardHandler), Extra: map[string]string{"linger.ms": "2"}}) // as in the intake
	if err != nil {
		return nil, err
	}
	var next atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		if err == nil {
			at := int(next.Add(int64(c.Events))) % (len(records) - c.Events + 1)
			err = p.ProduceAll(r.Context(), records[at:at+c.Events])
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"success":true}`+"\n")
	}), nil
}

// serveApart starts a contender in a process of its own, and returns its URL.
func serveApart(b *testing.B, c contender) string {
	b.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(b.Context(), os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), envContender+"="+string(text)), os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	var address string
	if _, err := fmt.Fscan(out, &address); err != nil {
		b.Fatal("a contender does not start: ", err)
	}
	return "http://" + address
}

// processorTime returns the processor time that a contender has used.
func processorTime(b *testing.B, base string) time.Duration {
	b.Helper()
	text, err := call(b.Context(), http.MethodGet, base+"/processor-time", nil)
	if err != nil {
		b.Fatal(err)
	}
	used, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return time.Duration(used)
}

// savedRecords saves the records that the intake has written, and returns the file.
func savedRecords(b *testing.B, k kafka.Config) string {
	b.Helper()
	admin, err := kafka.NewAdmin(k)
	if err != nil {
		b.Fatal(err)
	}
	defer admin.Close()
	ends, err := admin.EndOffsets(b.Context(), event.Behavior.Topic)
	if err != nil {
		b.Fatal(err)
	}
	var records []kafka.Record
	err = kafka.ReadAll(b.Context(), k, event.Behavior.Topic, map[int32]int64{0: 0, 1: 0}, ends, func(m kafka.Message) error {
		r := kafka.Record{Topic: bareTopic, Partition: kafka.AnyPartition, Key: bytes.Clone(m.Key), Value: bytes.Clone(m.Value)}
		for _, h := range m.Headers {
			r.Headers = append(r.Headers, event.Header{Key: h.Key, Value: bytes.Clone(h.Value)})
		}
		records = append(records, r)
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	text, err := json.Marshal(records)
	path := filepath.Join(b.TempDir(), "records.json")
	if err = cmp.Or(err, os.WriteFile(path, text, 0o600)); err != nil {
		b.Fatal(err)
	}
	return path
}

// sendAll sends requests over 32 connections. Every event of the benchmark has another id.
func sendAll(ctx context.Context, to string, requests, events int, sent *atomic.Int64) error {
	const connections = 32
	g, ctx := errgroup.WithContext(ctx)
	var begun atomic.Int64
	for range connections {
		g.Go(func() error {
			for begun.Add(1) <= int64(requests) {
				if _, err := call(ctx, http.MethodPost, to, body(events, sent)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// call makes a request, and expects 200.
func call(ctx context.Context, method, to string, body io.Reader) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, to, body)
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(tracking.DemoKey, "")
	res, err := benchmarkClient.Do(req)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(res.Body)
	if err = errors.Join(err, res.Body.Close()); err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, text)
	}
	return text, err
}

var benchmarkClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: time.Minute}

// body returns the body of a request with events as the browser's client sends them.
func body(events int, sent *atomic.Int64) io.Reader {
	var b strings.Builder
	one := func() {
		n := sent.Add(1)
		words := func(n int64) string { // the events of a shop have much in common, but not everything
			return fmt.Sprintf("%s-%s-%s", colours[n%7], things[n/7%11], strconv.FormatInt(n*7919%1_000_003, 36))
		}
		what := words(n)
		fmt.Fprintf(&b, viewed, n*7919%86_400_000, n, n*104_729%1_000_003, n%5000, what, float64(n%10_000)/100, words(n/3),
			what, words(n+1), words(n+1), what, what, 100+n%31)
	}
	if events == 1 {
		one()
		return strings.NewReader(b.String())
	}
	b.WriteString(`{"batch":[`)
	for i := range events {
		if i > 0 {
			b.WriteByte(',')
		}
		one()
	}
	b.WriteString(`],"sentAt":"2026-01-31T12:00:01.250Z","writeKey":"demo-write-key"}`)
	return strings.NewReader(b.String())
}

var (
	colours = [...]string{"white", "red", "blue", "green", "black", "pink", "silver"}
	things  = [...]string{"mug", "lantern", "clock", "bunting", "tray", "cushion", "candle", "hook", "tin", "doorbell", "bag"}
)

const viewed = `{"timestamp":"2026-01-31T12:00:00.123Z","integrations":{},"type":"track","event":"Product Viewed",` +
	`"messageId":"ajs-next-17698%08d-%024d","anonymousId":"5f2c0b5e-0f64-4c3a-9f55-%012d","userId":null,` +
	`"properties":{"sku":"%d","name":"%s","price":%.2f,"currency":"GBP","position":3,` +
	`"category":"Lighting","list":"search results","query":"%s"},` +
	`"context":{"page":{"path":"/products/%s","referrer":"https://www.example.com/search?q=%s",` +
	`"search":"?q=%s","title":"%s","url":"https://www.example.com/products/%s"},` +
	`"userAgent":"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%d.0.0.0 Safari/537.36",` +
	`"userAgentData":{"brands":[{"brand":"Chromium","version":"130"},{"brand":"Not?A_Brand","version":"99"}],"mobile":false,"platform":"Linux"},` +
	`"locale":"en-GB","library":{"name":"analytics.js","version":"npm:next-1.81.0"},"timezone":"Europe/London"},` +
	`"_metadata":{"bundled":["Segment.io"],"unbundled":[],"bundledIds":[]}}`
