package history

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/redis"
)

// extremes are times at which types of times of ClickHouse and of Go begin, end or change the sign, from
// the earliest to the latest time that a fact may have.
var extremes = []time.Time{
	time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC),
	time.Date(1901, 12, 13, 20, 45, 51, 999_999_000, time.UTC), // 2^31 seconds before 1970
	time.Date(1950, 6, 1, 12, 0, 0, 1000, time.UTC),
	time.Date(1969, 12, 31, 23, 59, 59, 999_999_000, time.UTC),
	time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC),
	time.Date(2038, 1, 19, 3, 14, 8, 0, time.UTC), // 2^31 seconds after 1970
	time.Date(2106, 2, 7, 6, 28, 16, 0, time.UTC), // 2^32 seconds: a DateTime begins again
	time.Date(2200, 2, 28, 23, 59, 59, 999_999_000, time.UTC),
	time.Date(2255, 6, 5, 23, 47, 34, 740_993_000, time.UTC), // 2^53+1 microseconds
	time.Date(2261, 12, 31, 23, 59, 59, 999_999_000, time.UTC),
}

// Facts of any time that they may have give the vectors of their definition, from ClickHouse, memory and
// Redis, and the tables have the digest of the log.
func TestFactsOfAllTimes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 31)
	h := open(t, w.config(clickhousetest.OpenStore(t)))
	running(t, h)
	var records []fetchtest.Record
	for i, at := range extremes {
		key := uuid.NewString()
		for n, country := range []string{"GB", "FR"} { // the second one corrects the first one
			if n == 0 || i%2 == 0 {
				records = append(records, w.event(t, int32(i%partitions), fmt.Sprintf("c%d %s %d %d %s",
					i%2, key, at.UnixMicro(), 100*i+n, country)))
			}
		}
	}
	must(t, w.Commit(t.Context(), w.topic, records...))
	for p := range w.ends {
		w.ends[p]++
	}
	w.filled(t, h)

	var times []time.Time
	for _, at := range extremes {
		for _, shift := range []time.Duration{0, -time.Microsecond, time.Hour - time.Microsecond, 7 * 24 * time.Hour} {
			times = append(times, at.Add(shift))
		}
	}
	entities := []string{"c0", "c1", "nobody"}
	for _, at := range times {
		for _, known := range []time.Time{{}, w.now.Add(-time.Microsecond)} {
			have, _, err := h.Vectors(t.Context(), w.group.ID(), entities, at, known)
			must(t, err)
			w.compare(t, have, entities, w.facts, at, known)
		}
	}
	inEachStore(t, func(t *testing.T, client *redis.Client) {
		r, check := w.online(t, nil, client)
		check(w.facts) // waits until it is ready
		q, err := r.Store().Compile(w.group.Name)
		must(t, err)
		for _, at := range times {
			found, err := r.Store().Lookup(t.Context(), q, entities, at, nil)
			must(t, err)
			have := make([]features.Vector, len(found))
			for i, v := range found {
				have[i] = features.Vector{Entity: v.Entity, Found: v.Found, Values: v.Values}
			}
			w.compare(t, have, entities, w.facts, at, time.Time{})
		}
	})
	facts, tiles := h.Contents()[0], h.Contents()[1]
	expected, err := facts.Expected(w.log())
	want := total(t, expected, err)
	digest, err := facts.Digest(t.Context())
	if have := total(t, digest, err); have != want || have.Count != uint64(len(w.facts)) {
		t.Errorf("facts are %+v, want %+v of %d", have, want, len(w.facts))
	}
	source, err := tiles.Source(t.Context())
	want = total(t, source, err)
	digest, err = tiles.Digest(t.Context())
	if have := total(t, digest, err); have != want || have.Count == 0 {
		t.Errorf("tiles are %+v, want %+v", have, want)
	}
}

// Retention removes facts and tiles by their own time, also before 1970 and after 2106, where a DateTime
// has wrapped. Tables that have the expression of earlier versions get the one of today, once.
func TestRetentionOfAllTimes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 32)
	s := clickhousetest.OpenStore(t)
	var log lines
	c := w.config(s)
	c.Retention, c.Logger = time.Hour, slog.New(slog.NewTextHandler(&log, nil))
	prepare := func() *History {
		t.Helper()
		h := open(t, c)
		must(t, newFiller(h, h.tiles[0]).prepare(t.Context()))
		return h
	}
	h := prepare()
	tables := []clickhouse.Table{h.sources[0].facts, h.tiles[0].table}
	if n := log.count("changed the retention"); n != 0 {
		t.Errorf("%d new tables have another retention than they were created with", n)
	}
	for i, column := range []string{"at", "tile"} {
		must(t, s.Exec(t.Context(), fmt.Sprintf("ALTER TABLE %s MODIFY TTL toDateTime(%s) + toIntervalSecond(3600)",
			tables[i].FullName(), column)))
	}
	for range 2 {
		prepare()
		if n := log.count("changed the retention"); n != len(tables) {
			t.Errorf("the retention of %d tables was changed, want %d", n, len(tables))
		}
	}
	var values []string
	for _, at := range extremes {
		values = append(values, fmt.Sprintf("fromUnixTimestamp64Micro(toInt64(%d), 'UTC')", at.UnixMicro()))
	}
	for i, column := range []string{"at", "tile"} {
		must(t, s.Exec(t.Context(), fmt.Sprintf("INSERT INTO %s (entity, %s) SELECT 'c', arrayJoin([%s])",
			tables[i].FullName(), column, strings.Join(values, ", "))))
		must(t, s.Exec(t.Context(), "OPTIMIZE TABLE "+tables[i].FullName()+" FINAL"))
		kept := 0
		for _, at := range extremes {
			if at.After(time.Now()) {
				kept++
			}
		}
		if n := rows(t, s, tables[i], "count()"); n != int64(kept) {
			t.Errorf("%s has %d rows, want the %d whose time is to come", tables[i].Name, n, kept)
		}
	}
}

// lines are the lines of a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// count returns how often a text was logged.
func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}
