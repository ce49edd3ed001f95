package orderstatus_test

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"strconv"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/readmodels/orderstatus"
	"github.com/millrace/millrace/streams/streamstest"
	server "github.com/millrace/millrace/test/servers/redis"
)

const (
	docsKey      = "millrace:orderstatus:v2:docs:{orderstatus:v2:00}"
	positionsKey = "millrace:orderstatus:v2:positions:{orderstatus:v2:00}"
	refKey       = "millrace:orderstatus:v2:ref:{orderstatus:v2:00}:"
)

// damages are changes to the view's keys by another client or a failing disk. id is one of its
// documents, and value its stored form.
var damages = map[string]func(r *rawRedis, id, value string){
	"a document of garbage":         func(r *rawRedis, id, _ string) { r.do("HSET", docsKey, id, "zz garbage") },
	"an empty document":             func(r *rawRedis, id, _ string) { r.do("HSET", docsKey, id, "") },
	"a document cut short":          func(r *rawRedis, id, value string) { r.do("HSET", docsKey, id, value[:len(value)-5]) },
	"a document of zeroes":          func(r *rawRedis, id, value string) { r.do("HSET", docsKey, id, strings.Repeat("\x00", len(value))) },
	"a flipped bit in the data":     func(r *rawRedis, id, value string) { r.do("HSET", docsKey, id, flip(value, len(value)-3)) },
	"a flipped bit in the version":  func(r *rawRedis, id, value string) { r.do("HSET", docsKey, id, flip(value, 3)) },
	"a document of a later version": func(r *rawRedis, id, value string) { r.do("HSET", docsKey, id, "ffffffffffffffff"+value[16:]) },
	"another document's value": func(r *rawRedis, id, value string) {
		for other := range r.versions {
			if other != id {
				r.do("HSET", docsKey, other, value)
				return
			}
		}
	},
	"a document that is deleted with the mark": func(r *rawRedis, id, _ string) { r.do("HDEL", docsKey, id, "") },
	"a mark of garbage":                        func(r *rawRedis, _, _ string) { r.do("HSET", docsKey, "", "garbage") },
	"documents of another type":                func(r *rawRedis, _, _ string) { r.retype(docsKey) },
	"a position that is not a number":          func(r *rawRedis, _, _ string) { r.do("HSET", positionsKey, "millrace.orders/0", "abc") },
	"an empty position":                        func(r *rawRedis, _, _ string) { r.do("HSET", positionsKey, "millrace.orders/1", "") },
	"a position far ahead":                     func(r *rawRedis, _, _ string) { r.do("HSET", positionsKey, "millrace.orders/2", "99999999 0.7 0") },
	"a position before the beginning":          func(r *rawRedis, _, _ string) { r.do("HSET", positionsKey, "millrace.orders/2", "-3 0.0 0") },
	"a position of no partition":               func(r *rawRedis, _, _ string) { r.do("HSET", positionsKey, "millrace.orders/x", "1 0.1 0") },
	"an epoch of garbage":                      func(r *rawRedis, _, _ string) { r.do("HSET", positionsKey, "~epoch", "garbage") },
	"a count of garbage":                       func(r *rawRedis, _, _ string) { r.do("HSET", positionsKey, "~writes:0", "garbage") },
	"positions of another type":                func(r *rawRedis, _, _ string) { r.retype(positionsKey) },
	"positions that are deleted":               func(r *rawRedis, _, _ string) { r.do("DEL", positionsKey) },
	"a reference that is deleted":              func(r *rawRedis, id, _ string) { r.do("DEL", refKey+referenceOf(id)) },
	"a reference of another type": func(r *rawRedis, id, _ string) {
		r.do("DEL", refKey+referenceOf(id))
		r.do("HSET", refKey+referenceOf(id), "a", "b")
	},
}

func flip(s string, at int) string { return s[:at] + string(s[at]^1) + s[at+1:] }

// TestDamageIsRepaired damages the view's stored data while the view runs or is stopped. The view
// must report the damage, serve what it still has, and rebuild the rest from the log. A query
// returns the correct answer or Unavailable, and never an internal error.
func TestDamageIsRepaired(t *testing.T) {
	t.Parallel()
	one := &server.Servers{}
	for _, on := range []struct {
		name string
		cfg  func(*testing.T) redis.Config
	}{
		{"embedded", func(t *testing.T) redis.Config { return start(t, nil) }},
		{"redis", func(t *testing.T) redis.Config { return start(t, one) }},
	} {
		t.Run(on.name, func(t *testing.T) {
			cfg := on.cfg(t)
			broker := streamstest.NewBroker(t)
			l := streamstest.NewLog(t, broker, event.Order.Topic)
			l.Write(t, randomEvents(t, l, 400, 200)...)
			raw := dial(t, cfg.Addr, l.Versions)
			want, err := orderstatus.ExpectedDigest(l.All())
			if err != nil {
				t.Fatal(err)
			}
			whole := func(t *testing.T, v *orderstatus.View) {
				t.Helper()
				polltest.Until(t, "the view is whole and has no faults", func() bool {
					got, err := v.Digest(t.Context(), event.Order)
					return err == nil && maps.Equal(got.Streams, want.Streams) && !v.Faults().Any()
				})
			}
			for name, damage := range damages {
				for _, moment := range []string{"while it runs", "before it starts"} {
					t.Run(name+" "+moment, func(t *testing.T) {
						v := orderstatus.New(openRedis(t, cfg), streamstest.Quiet)
						r := v.Runtime(broker, nil, streamstest.Quiet)
						id := raw.anyID()
						if moment == "before it starts" {
							feeder := orderstatus.New(openRedis(t, cfg), streamstest.Quiet)
							once := feeder.Runtime(broker, nil, streamstest.Quiet)
							stop := streamstest.Start(t, once)
							streamstest.CatchUp(t, once)
							whole(t, feeder)
							stop()
							damage(raw, id, raw.do("HGET", docsKey, id))
						}
						streamstest.Start(t, r)
						if moment == "while it runs" {
							streamstest.CatchUp(t, r)
							whole(t, v)
							damage(raw, id, raw.do("HGET", docsKey, id))
						}
						queries := orderstatus.NewQueries(v)
						polltest.Until(t, "the order is served", func() bool {
							answer, err := queries.GetOrder(t.Context(), connect.NewRequest(&orderv1.GetOrderRequest{
								Key: &orderv1.GetOrderRequest_OrderId{OrderId: id},
							}))
							switch code := connect.CodeOf(err); {
							case err == nil:
								return answer.Msg.Order.Version == l.Versions[id]
							case code == connect.CodeNotFound &&
								(strings.Contains(name, "deleted") || strings.Contains(name, "another type")):
								// nothing is left that could reveal it
							case code == connect.CodeNotFound && moment == "before it starts": // a running process refuses such queries
							case code != connect.CodeUnavailable:
								t.Errorf("a query is answered with %v", err)
							}
							return false
						})
						// The periodic inspection finds what no query asks for.
						if err := v.Inspect(t.Context()); err != nil {
							t.Log("inspection:", err)
						}
						whole(t, v)
						streamstest.CatchUp(t, r)
					})
				}
			}
		})
	}
}

// rawRedis is a connection that can write anything.
type rawRedis struct {
	t        *testing.T
	conn     net.Conn
	in       *bufio.Reader
	versions map[string]uint64
}

func dial(t *testing.T, addr string, versions map[string]uint64) *rawRedis {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &rawRedis{t, conn, bufio.NewReader(conn), versions}
}

func (r *rawRedis) anyID() string {
	for id := range r.versions {
		return id
	}
	return ""
}

// retype makes a key one of another type, in one step, because the view writes to it meanwhile.
func (r *rawRedis) retype(key string) {
	r.t.Helper()
	r.do("EVAL", "redis.call('DEL', KEYS[1]) return redis.call('SADD', KEYS[1], 'x')", "1", key)
}

// do sends a command and returns the answer, which must be a string.
func (r *rawRedis) do(args ...string) string {
	r.t.Helper()
	command := fmt.Sprintf("*%d\r\n", len(args))
	for _, a := range args {
		command += fmt.Sprintf("$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := io.WriteString(r.conn, command); err != nil {
		r.t.Fatal(err)
	}
	line, err := r.in.ReadString('\n')
	if err != nil || strings.HasPrefix(line, "-") {
		r.t.Fatalf("%q: %q, %v", args, line, err)
	}
	if !strings.HasPrefix(line, "$") {
		return line
	}
	size, err := strconv.Atoi(strings.TrimSpace(line[1:]))
	if err != nil || size < 0 {
		return ""
	}
	b := make([]byte, size+2)
	if _, err := io.ReadFull(r.in, b); err != nil {
		r.t.Fatal(err)
	}
	return string(b[:size])
}
