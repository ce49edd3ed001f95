package redis_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/internal/redis"
	server "github.com/millrace/millrace/test/servers/redis"
)

var factsAt = time.Date(2026, 1, 5, 9, 0, 0, 0, time.UTC)

// build begins an epoch in place of another one, by a builder that has a minute.
func build(t rapid.TB, f *redis.Facts, replaced string) *redis.FactBuild {
	t.Helper()
	b, err := f.Build(context.Background(), replaced, factsAt, factsAt.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// newFacts returns facts of a test's own, and their epoch, which is empty.
func newFacts(t rapid.TB, c *redis.Client, name string) (*redis.Facts, string) {
	t.Helper()
	f := c.Facts(name)
	before, err := f.Epoch(context.Background())
	if err != nil && !errors.Is(err, redis.ErrLost) {
		t.Fatal(err)
	}
	epoch, err := build(t, f, before).Finish(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return f, epoch
}

// change is a change of a partition with one value of an entity of a shard.
func change(first, next int64, shard int, entity, field, value string) *redis.FactChange {
	c := &redis.FactChange{Partition: "t/0", First: first, After: redis.FactPosition(next, "rest"), Begins: first == 0}
	c.Shards[shard] = []redis.FactEntity{{Key: entity, Values: []redis.FactValue{
		{Offset: first, Field: field, Value: value}}}}
	return c
}

// values returns the fields of an entity, and the position of the partition t/0.
func values(t rapid.TB, f *redis.Facts, epoch string, shard int, entity string) (
	fields map[string]string, position string,
) {
	t.Helper()
	reads := []redis.FactRead{{Shard: shard, Keys: []string{entity}, Known: -1}}
	if err := f.Read(context.Background(), epoch, reads); err != nil {
		t.Fatal(err)
	}
	fields = map[string]string{}
	for pair := range slices.Chunk(reads[0].Entities[0], 2) {
		fields[pair[0]] = pair[1]
	}
	return fields, reads[0].State.Positions["t/0"]
}

// factModel is what a shard must contain: the values of the log up to its position.
type factModel struct {
	log  []redis.FactValue // of the entity "e", by offset
	next int64
}

func (m *factModel) fields() map[string]string {
	fields := map[string]string{}
	for _, v := range m.log[:m.next] {
		if delete(fields, v.Also); v.Value == "" {
			delete(fields, v.Field)
		} else {
			fields[v.Field] = v.Value
		}
	}
	return fields
}

// Whatever ranges of the log writers apply, again, overlapping or out of order, a shard has the values up
// to its position: what it has is skipped, and what does not follow is refused.
func TestFactsFollowTheLog(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, cfg redis.Config) {
		c, name := open(t, cfg), view(t)
		rapid.Check(t, func(t *rapid.T) {
			f, epoch := newFacts(t, c, name)
			m := &factModel{}
			for i := range int64(12) {
				v := redis.FactValue{Offset: i, Field: rapid.SampledFrom([]string{"a", "b", "\x00\xff"}).Draw(t, "field"),
					Value: rapid.SampledFrom([]string{"", "1", "\xfe\x00"}).Draw(t, "value")}
				if rapid.Bool().Draw(t, "instead") {
					v.Also = "gone"
				}
				m.log = append(m.log, v)
			}
			for range rapid.IntRange(1, 6).Draw(t, "steps") {
				first := rapid.Int64Range(0, 11).Draw(t, "first")
				next := rapid.Int64Range(first+1, 12).Draw(t, "next")
				c := &redis.FactChange{Partition: "t/0", First: first, After: redis.FactPosition(next, "rest"), Begins: first == 0}
				for n := range c.Shards {
					c.Shards[n] = []redis.FactEntity{{Key: "e", Values: m.log[first:next]}}
				}
				err := f.Apply(t.Context(), epoch, c)
				gap := first > m.next
				if gap != errors.Is(err, redis.ErrFactGap) || !gap && err != nil {
					t.Fatalf("from %d to %d after %d: error %v", first, next, m.next, err)
				}
				if !gap {
					m.next = max(m.next, next)
				}
				shard := rapid.IntRange(0, redis.FactShards-1).Draw(t, "shard")
				got, position := values(t, f, epoch, shard, "e")
				if want := m.fields(); !maps.Equal(got, want) {
					t.Fatalf("up to %d: %q, want %q", m.next, got, want)
				}
				if m.next > 0 {
					if at, rest, err := redis.ParseFactPosition(position); at != m.next || rest != "rest" || err != nil {
						t.Fatalf("the position is %q, want %d: %v", position, m.next, err)
					}
				}
				counts, err := f.Count(t.Context(), epoch)
				if err != nil || counts[shard] != int64(min(1, len(got))) {
					t.Fatalf("%d entities with %q, %v", counts[shard], got, err)
				}
			}
		})
	})
}

// A state is read only if its count of writes is not known already.
func TestFactsReadsWhatIsNew(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, cfg redis.Config) {
		f, epoch := newFacts(t, open(t, cfg), view(t))
		for first := range int64(2) {
			if err := f.Apply(t.Context(), epoch, change(first, first+1, 3, "e", "f", fmt.Sprint(first))); err != nil {
				t.Fatal(err)
			}
		}
		reads := []redis.FactRead{{Shard: 3, Keys: []string{"e", "none"}, Known: 1}, {Shard: 3, Known: 2},
			{Shard: 4, Known: -1}}
		if err := f.Read(t.Context(), epoch, reads); err != nil {
			t.Fatal(err)
		}
		if r := reads[0]; r.Writes != 2 || r.State == nil || len(r.Entities) != 2 || len(r.Entities[1]) != 0 ||
			!slices.Equal(r.Entities[0], []string{"f", "1"}) {
			t.Errorf("read %+v", r)
		}
		if r := reads[1]; r.Writes != 2 || r.State != nil {
			t.Errorf("a known state is read: %+v", r)
		}
		if r := reads[2]; r.Writes != 2 || r.State.Positions["t/0"] != redis.FactPosition(2, "rest") {
			t.Errorf("a shard without values is %+v", r)
		}
	})
}

// A new epoch is empty until its builder has finished it, and the replaced one is gone: its writers and
// readers learn that it is lost.
func TestFactsEpochIsReplaced(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, cfg redis.Config) {
		f, old := newFacts(t, open(t, cfg), view(t))
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(f.Apply(t.Context(), old, change(0, 1, 3, "e", "f", "1")))
		b := build(t, f, old)
		if _, err := f.Epoch(t.Context()); !errors.Is(err, redis.ErrLost) {
			t.Errorf("while an epoch is built, the error is %v", err)
		}
		must(f.Sweep(t.Context()))
		if err := f.Apply(t.Context(), old, change(1, 2, 3, "e", "f", "2")); !errors.Is(err, redis.ErrLost) {
			t.Errorf("a write to the replaced epoch: error %v", err)
		}
		reads := []redis.FactRead{{Shard: 3, Keys: []string{"e"}, Known: -1}}
		if err := f.Read(t.Context(), old, reads); !errors.Is(err, redis.ErrLost) {
			t.Errorf("a read of the replaced epoch: error %v", err)
		}
		if err := f.Trim(t.Context(), old, &redis.FactTrim{Shard: 3}); !errors.Is(err, redis.ErrLost) {
			t.Errorf("trimming the replaced epoch: error %v", err)
		}
		shards := change(0, 0, 3, "e", "f", "restored").Shards
		must(b.Add(t.Context(), &shards, nil))
		none := &[redis.FactShards][]redis.FactEntity{}
		must(b.Add(t.Context(), none, map[string]string{"t/0": redis.FactPosition(7, "rest")}))
		if n, err := b.Count(t.Context()); n != 1 || err != nil {
			t.Errorf("%d entities, %v", n, err)
		}
		epoch, err := b.Finish(t.Context())
		must(err)
		if again, err := b.Finish(t.Context()); again != epoch || err != nil {
			t.Errorf("finished again: %q, %v, want %q", again, err, epoch)
		}
		if now, err := f.Epoch(t.Context()); now != epoch || err != nil {
			t.Errorf("the epoch is %q, %v, want %q", now, err, epoch)
		}
		if got, position := values(t, f, epoch, 3, "e"); got["f"] != "restored" || position != redis.FactPosition(7, "rest") {
			t.Errorf("read %q at %q", got, position)
		}
		must(f.Apply(t.Context(), epoch, change(7, 8, 3, "e", "f", "")))
		if got, _ := values(t, f, epoch, 3, "e"); len(got) != 0 {
			t.Errorf("read %q after the value was deleted", got)
		}
	})
}

// One process builds at a time. After its time, another one builds; then the first one can neither add, nor
// renew, nor finish, and what it has added is gone.
func TestFactsHaveOneBuilder(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, cfg redis.Config) {
		f := open(t, cfg).Facts(view(t))
		first := build(t, f, "")
		shards := change(0, 0, 3, "e", "f", "first").Shards
		if err := first.Add(t.Context(), &shards, nil); err != nil {
			t.Fatal(err)
		}
		later := func(after time.Duration) (*redis.FactBuild, error) {
			return f.Build(t.Context(), "", factsAt.Add(after), factsAt.Add(after+time.Minute))
		}
		if _, err := later(59 * time.Second); !errors.Is(err, redis.ErrFactsBuilding) {
			t.Errorf("beside another builder: error %v", err)
		}
		if err := first.Keep(t.Context(), factsAt.Add(2*time.Minute)); err != nil {
			t.Error(err)
		}
		if _, err := later(119 * time.Second); !errors.Is(err, redis.ErrFactsBuilding) {
			t.Errorf("beside another builder that has renewed: error %v", err)
		}
		second, err := later(2 * time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
		for name, err := range map[string]error{
			"add":    first.Add(t.Context(), &shards, nil),
			"renew":  first.Keep(t.Context(), factsAt.Add(time.Hour)),
			"finish": func() error { _, err := first.Finish(t.Context()); return err }(),
		} {
			if !errors.Is(err, redis.ErrLost) {
				t.Errorf("the first builder can %s: error %v", name, err)
			}
		}
		if err := first.Abandon(t.Context()); err != nil {
			t.Error(err)
		}
		epoch, err := second.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := values(t, f, epoch, 3, "e"); len(got) != 0 {
			t.Errorf("the epoch has %q of another builder", got)
		}
		if _, err := later(time.Hour); !errors.Is(err, redis.ErrFactsReplaced) {
			t.Errorf("in place of no epoch: error %v", err)
		}
		// A builder that gives up leaves the right to others at once. Giving up a finished epoch changes nothing.
		if err := second.Abandon(t.Context()); err != nil {
			t.Error(err)
		}
		if now, err := f.Epoch(t.Context()); now != epoch || err != nil {
			t.Errorf("the epoch is %q, %v, want %q", now, err, epoch)
		}
		third := build(t, f, epoch)
		if err := third.Abandon(t.Context()); err != nil {
			t.Error(err)
		}
		build(t, f, "")
	})
}

// A lost shard, and a key of another type, are told from a gap.
func TestFactsLoss(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string][]string{
		"a shard":                   {"DEL", "shard"},
		"an older shard":            {"HSET", "shard", "t/0", redis.FactPosition(1, "rest")},
		"an entity of another type": {"SET", "entity"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, epoch := newFacts(t, open(t, one.Config(t)), view(t))
			for first := range int64(2) {
				if err := f.Apply(t.Context(), epoch, change(first, first+1, 3, "e", "f", "1")); err != nil {
					t.Fatal(err)
				}
			}
			key := "millrace:" + view(t) + ":" + epoch + ":" + damage[1] + ":{" + view(t) + ":03}"
			command := append([]string{damage[0], key}, damage[2:]...)
			if damage[0] == "SET" {
				key += ":e"
				if _, err := one.Do(t.Context(), 0, "DEL", key); err != nil {
					t.Fatal(err)
				}
				command = []string{"SET", key, "text"}
			}
			if _, err := one.Do(t.Context(), 0, command...); err != nil {
				t.Fatal(err)
			}
			want := redis.ErrLost
			if name == "an older shard" {
				want = redis.ErrFactGap
			}
			if err := f.Apply(t.Context(), epoch, change(2, 3, 3, "e", "f", "1")); !errors.Is(err, want) {
				t.Errorf("Apply returned %v, want %v", err, want)
			}
			_, err := f.Shards(t.Context(), epoch)
			if lost := errors.Is(err, redis.ErrLost); lost != (name == "a shard") {
				t.Errorf("Shards returned %v", err)
			}
		})
	}
}

// A node that is flushed, or comes back with an older copy, does not get the rest of a build.
func TestFactsLostWhileBuilding(t *testing.T) {
	t.Parallel()
	for _, withData := range []bool{false, true} {
		s := server.Servers{}
		t.Cleanup(func() {
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		})
		f := open(t, s.Config(t)).Facts(view(t))
		b := build(t, f, "")
		shards := change(0, 0, 3, "e", "f", "1").Shards
		if err := errors.Join(b.Add(t.Context(), &shards, nil), s.Save(0), b.Add(t.Context(), &shards, nil), s.Kill(0),
			s.Restart(0, withData)); err != nil {
			t.Fatal(err)
		}
		if err := b.Add(t.Context(), &shards, nil); !errors.Is(err, redis.ErrLost) {
			t.Errorf("with older data: %v: error %v", withData, err)
		}
	}
}

// Trimming drops values and says up to when, and nothing that has changed meanwhile.
func TestFactsTrim(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, cfg redis.Config) {
		f, epoch := newFacts(t, open(t, cfg), view(t))
		for i, note := range []string{"5", "3", "4"} { // the lowest is stored
			c := change(int64(i), int64(i+1), 3, "e", fmt.Sprint("f", i), "v")
			c.Shards[3][0].Note = note
			if err := f.Apply(t.Context(), epoch, c); err != nil {
				t.Fatal(err)
			}
		}
		note := func() (found []string) {
			t.Helper()
			if err := f.Entities(t.Context(), epoch, 3, func(all []string) error {
				found = append(found, all...)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			return found
		}
		if got := note(); !slices.Equal(got, []string{"e", "3"}) {
			t.Fatalf("entities and notes are %q", got)
		}
		trim := func(upto, was string) {
			t.Helper()
			e := redis.FactTrimmed{Key: "e", Was: was, Note: "5",
				Drops: []redis.FactDrop{{Field: "f1", Instead: "d1"}, {Field: "none", Instead: "d2"}}}
			if err := f.Trim(t.Context(), epoch, &redis.FactTrim{Shard: 3, UpTo: upto,
				Entities: []redis.FactTrimmed{e}}); err != nil {
				t.Fatal(err)
			}
		}
		trim("4", "3")
		trim("2", "other") // an earlier time, of a process that has read another note
		got, _ := values(t, f, epoch, 3, "e")
		if want := map[string]string{"f0": "v", "f2": "v", "d1": "-"}; !maps.Equal(got, want) {
			t.Errorf("the fields are %q, want %q", got, want)
		}
		shards, err := f.Shards(t.Context(), epoch)
		if err != nil || shards[3].Trimmed != "4" || shards[4].Trimmed != "" {
			t.Errorf("trimmed up to %q and %q, %v", shards[3].Trimmed, shards[4].Trimmed, err)
		}
		if got := note(); !slices.Equal(got, []string{"e", "5"}) {
			t.Errorf("entities and notes are %q", got)
		}
	})
}

// Facts that are not used are deleted with all their epochs, and a process that still has one of them finds
// that it is lost. Those that are used stay.
func TestUnusedFactsAreDeleted(t *testing.T) {
	t.Parallel()
	servers(t, func(t *testing.T, cfg redis.Config) {
		c := open(t, cfg)
		family := strings.ReplaceAll(view(t), ":", "")
		used, usedEpoch := newFacts(t, c, family+":used")
		unused, epoch := newFacts(t, c, family+":unused")
		building := c.Facts(family + ":building")
		b := build(t, building, "")
		since := factsAt.Add(time.Hour)
		for f, at := range map[*redis.Facts]time.Time{used: since, unused: factsAt, building: factsAt} {
			if err := f.Use(t.Context(), at); err != nil {
				t.Fatal(err)
			}
		}
		for f, epoch := range map[*redis.Facts]string{used: usedEpoch, unused: epoch} {
			if err := f.Apply(t.Context(), epoch, change(0, 1, 3, "e", "f", "1")); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range [][]string{{family + ":building", family + ":unused"}, nil} {
			deleted, err := c.DeleteUnusedFacts(t.Context(), family, since)
			if slices.Sort(deleted); err != nil || !slices.Equal(deleted, want) {
				t.Errorf("deleted %q, %v, want %q", deleted, err, want)
			}
		}
		if got, _ := values(t, used, usedEpoch, 3, "e"); got["f"] != "1" {
			t.Errorf("facts that are used are %q", got)
		}
		if err := unused.Apply(t.Context(), epoch, change(1, 2, 3, "e", "f", "2")); !errors.Is(err, redis.ErrLost) {
			t.Errorf("a write to deleted facts: error %v", err)
		}
		if _, err := b.Finish(t.Context()); !errors.Is(err, redis.ErrLost) {
			t.Errorf("a build of deleted facts was finished: error %v", err)
		}
		if keys, err := c.Keys(t.Context(), family+":unused:"); err != nil || len(keys) != 0 {
			t.Errorf("keys are left: %q, %v", keys, err)
		}
		_, again := newFacts(t, c, family+":unused")
		if got, _ := values(t, unused, again, 3, "e"); len(got) != 0 {
			t.Errorf("a process that comes back finds %q", got)
		}
	})
}

// FuzzParseFactPosition: a stored position is read as it was written, or refused.
func FuzzParseFactPosition(f *testing.F) {
	for _, s := range []string{"", redis.FactPosition(0, ""), redis.FactPosition(1<<62, "id {}"), "-000000000000000001 x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, stored string) {
		next, rest, err := redis.ParseFactPosition(stored)
		if err != nil {
			return
		}
		if again := redis.FactPosition(next, rest); again != stored && again != stored+" " {
			t.Errorf("%q is read as %d and %q", stored, next, rest)
		}
	})
}
