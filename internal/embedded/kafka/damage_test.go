package kafka_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	embedded "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
)

// damages are the ways in which a file may be damaged.
var damages = map[string]func(raw []byte) []byte{
	"truncated":     func(raw []byte) []byte { return raw[:len(raw)/2] },
	"emptied":       func([]byte) []byte { return nil },
	"zeroed":        func(raw []byte) []byte { return make([]byte, len(raw)) },
	"a flipped bit": func(raw []byte) []byte { return flip(raw, len(raw)/2) },
	"garbage":       func([]byte) []byte { return []byte("no such thing") },
	"deleted":       nil,
}

func flip(raw []byte, at int) []byte {
	raw = slices.Clone(raw)
	if at < len(raw) {
		raw[at] ^= 1
	}
	return raw
}

func damage(t *testing.T, name string, how func([]byte) []byte) {
	t.Helper()
	if how == nil {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		return
	}
	raw, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, how(raw), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// runs are the ways in which a broker ends before a test damages its files. begin starts one and
// returns the function that ends it.
var runs = map[string]func(t *testing.T, dir string) (addr string, end func()){
	"after a clean stop": func(t *testing.T, dir string) (string, func()) {
		b := start(t, dir)
		return b.Addr(), func() {
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
		}
	},
	"after a kill": func(t *testing.T, dir string) (string, func()) {
		c := startChild(t, dir)
		return c.addr, c.kill
	},
}

// fillLog writes three transactions and creates a topic that remains empty. It returns the records
// that a reader sees, and the ids of the topics.
func fillLog(t *testing.T, addr string) (records []string, ids map[string]kafka.TopicInfo) {
	t.Helper()
	createTopic(t, addr, events)
	createTopic(t, addr, kafka.Topic{Name: "empty", Partitions: 3})
	p := producer(t, addr, "p")
	for i := range 3 {
		produce(t, addr, p, "events", "k", fmt.Sprint(i))
		commit(t, p)
	}
	p.Close()
	return readAll(t, addr, "events"), identities(t, addr)
}

func identities(t *testing.T, addr string) map[string]kafka.TopicInfo {
	t.Helper()
	a := admin(t, addr)
	defer a.Close()
	ids := map[string]kafka.TopicInfo{}
	for _, name := range []string{"events", "empty"} {
		info, err := a.Topic(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		ids[name] = info
	}
	return ids
}

// mustHold checks that a log has what fillLog wrote, and that it accepts more.
func mustHold(t *testing.T, dir string, records []string, ids map[string]kafka.TopicInfo) {
	t.Helper()
	b := start(t, dir)
	if got := readAll(t, b.Addr(), "events"); !slices.Equal(got, records) {
		t.Errorf("the log has %v, want %v", got, records)
	}
	for name, info := range identities(t, b.Addr()) {
		if fmt.Sprint(info) != fmt.Sprint(ids[name]) {
			t.Errorf("topic %s is %+v, was %+v", name, info, ids[name])
		}
	}
	p := producer(t, b.Addr(), "more-"+b.Boot())
	produce(t, b.Addr(), p, "events", "more", "1")
	commit(t, p)
	if got := readAll(t, b.Addr(), "events"); !slices.Equal(got, append(slices.Clone(records), "more=1")) {
		t.Errorf("after another record: %v", got)
	}
}

// ownFiles are the files that the broker can recreate. The list of topics and its copy are
// recreated from each other.
var ownFiles = []string{
	"meta.json", "broker_configs.json", "acls.json", "sasl.json", "quotas.json", "seq_windows.json", "groups.log",
	"pids.log", "stopped.json",
	"stamp", "../kafka.stamp",
	"partitions/events-0/snapshot.json", "partitions/events-0/0.idx",
}

// The broker's own files may be lost or damaged while it runs and while it does not. The next start
// repairs them. Topics, their ids, settings and records are as before.
func TestDamagedSettingsAreRepaired(t *testing.T) {
	t.Parallel()
	repaired := func(t *testing.T, when string, running bool, change func([]byte) []byte, files ...string) {
		t.Parallel()
		dir := filepath.Join(t.TempDir(), "kafka")
		addr, end := runs[when](t, dir)
		records, ids := fillLog(t, addr)
		if !running {
			end()
		}
		for _, file := range files {
			name := filepath.Join(dir, filepath.FromSlash(file))
			if _, err := os.Stat(name); err == nil {
				damage(t, name, change)
			}
		}
		if running {
			createTopic(t, addr, events) // the topic exists already
			end()
		}
		mustHold(t, dir, records, ids)
	}
	for _, list := range []string{"topics.json", "topics.copy"} {
		for how, change := range damages {
			for when := range runs {
				for moment, running := range map[string]bool{"while it runs": true, "while it does not": false} {
					t.Run(strings.Join([]string{list, "and others", how, when, moment}, " "), func(t *testing.T) {
						repaired(t, when, running, change, append([]string{list}, ownFiles...)...)
					})
				}
			}
		}
	}
	for _, file := range append([]string{"topics.json", "topics.copy"}, ownFiles...) { // one at a time
		t.Run(strings.ReplaceAll(file, "/", " "),
			func(t *testing.T) { repaired(t, "after a clean stop", false, nil, file) })
	}
}

// If the list of topics and its copy are both damaged, it cannot be restored. The start fails and
// names a remedy.
func TestLostTopicsPreventStart(t *testing.T) {
	t.Parallel()
	for how, change := range damages {
		for when, begin := range runs {
			if how == "a flipped bit" && when == "after a kill" {
				continue // the damaged list may still be valid, which cannot be noticed
			}
			t.Run(how+" "+when, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				addr, end := begin(t, dir)
				fillLog(t, addr)
				end()
				damage(t, filepath.Join(dir, "topics.json"), change)
				damage(t, filepath.Join(dir, "topics.copy"), change)
				mustNotStart(t, dir, "topics.json", "millrace rebuild")
				mustNotStart(t, dir, "topics.json", "millrace rebuild") // the same on the next start
			})
		}
	}
}

func mustNotStart(t *testing.T, dir, file, remedy string) {
	t.Helper()
	b, err := embedded.Start(t.Context(), embedded.Config{DataDir: dir})
	if err == nil {
		_ = b.Close()
		t.Fatalf("it started although %s is damaged", file)
	}
	var damaged *embedded.DamageError
	if !errors.As(err, &damaged) || !strings.HasSuffix(damaged.File, filepath.FromSlash(file)) ||
		!strings.Contains(err.Error(), remedy) {
		t.Fatalf("the start failed with %q, which does not name %s and %q", err, file, remedy)
	}
}

// Records have no copy. A segment that is damaged before its end, or that changed while no broker
// ran, stops every start, and no start loses more.
func TestDamagedRecordsPreventStart(t *testing.T) {
	t.Parallel()
	segment := filepath.Join("partitions", "events-0", "0.dat")
	at := func(i int) func([]byte) []byte { return func(raw []byte) []byte { return flip(raw, i) } }
	for name, c := range map[string]struct {
		when   string
		change func([]byte) []byte
	}{
		"a bit flipped in the first batch, clean stop": {"after a clean stop", at(65)},
		"a bit flipped in the first batch, kill":       {"after a kill", at(65)},
		"a length flipped in the first batch, kill":    {"after a kill", at(9)},
		"an offset flipped in the first batch, kill":   {"after a kill", at(0)},
		"an offset flipped in the second batch, kill":  {"after a kill", at(70)},
		"the beginning zeroed, kill": {"after a kill",
			func(raw []byte) []byte { clear(raw[:100]); return raw }},
		"the middle zeroed, kill": {"after a kill",
			func(raw []byte) []byte { clear(raw[len(raw)/3 : len(raw)/2]); return raw }},
		"a part taken out, kill": {"after a kill",
			func(raw []byte) []byte { return slices.Delete(raw, 100, 150) }},
		"truncated, clean stop": {"after a clean stop", damages["truncated"]},
		"emptied, clean stop":   {"after a clean stop", damages["emptied"]},
		"zeroed, clean stop":    {"after a clean stop", damages["zeroed"]},
		"deleted, clean stop":   {"after a clean stop", nil},
		"the last byte missing, clean stop": {"after a clean stop",
			func(raw []byte) []byte { return raw[:len(raw)-1] }},
		"a bit flipped at the very end, then more, kill": {"after a kill",
			func(raw []byte) []byte { return append(flip(raw, 80), raw...) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			addr, end := runs[c.when](t, dir)
			records, ids := fillLog(t, addr)
			end()
			path := filepath.Join(dir, segment)
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			damage(t, path, c.change)
			mustNotStart(t, dir, "0.dat", "millrace rebuild")
			mustNotStart(t, dir, "0.dat", "backup")
			if err := os.WriteFile(path, whole, 0o600); err != nil { // the remedy: a backup
				t.Fatal(err)
			}
			mustHold(t, dir, records, ids)
		})
	}
}

// The remedy in the error works: without the partition's folder the log starts and has everything
// else.
func TestLogStartsWithoutDamagedPartition(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr, end := runs["after a clean stop"](t, dir)
	_, ids := fillLog(t, addr)
	end()
	partition := filepath.Join(dir, "partitions", "events-0")
	damage(t, filepath.Join(partition, "0.dat"), damages["zeroed"])
	mustNotStart(t, dir, "0.dat", filepath.Join(dir, "stopped.json"))
	if err := errors.Join(os.Rename(partition, filepath.Join(t.TempDir(), "away")),
		os.Remove(filepath.Join(dir, "stopped.json"))); err != nil {
		t.Fatal(err)
	}
	mustHold(t, dir, nil, ids)
}

// An unreadable batch at the very end may be the result of a power cut. It is truncated, and a copy
// is kept beside the segment.
func TestUnreadableEndIsSetAside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr, end := runs["after a kill"](t, dir)
	records, ids := fillLog(t, addr)
	end()
	segment := filepath.Join(dir, "partitions", "events-0", "0.dat")
	damage(t, segment, func(raw []byte) []byte { return append(raw, make([]byte, 500)...) })
	mustHold(t, dir, records, ids)
	if kept, err := os.ReadFile(segment + ".damaged"); err != nil || len(kept) != 500 {
		t.Errorf("%d bytes were set aside (%v), want 500", len(kept), err)
	}
}

// A folder that was restored from a backup has other records at the offsets that readers know. Its
// topics get new ids, once, so that readers see another log. The folder that was used last keeps
// its ids.
func TestLogFromBackupGetsNewIDs(t *testing.T) {
	t.Parallel()
	for when, begin := range runs {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			dir, backup := filepath.Join(t.TempDir(), "kafka"), filepath.Join(t.TempDir(), "backup")
			addr, end := begin(t, dir)
			records, ids := fillLog(t, addr)
			end()
			if err := os.CopyFS(backup, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			addr, end = begin(t, dir)
			if now := identities(t, addr); fmt.Sprint(now) != fmt.Sprint(ids) {
				t.Errorf("the same folder has topics %v, want %v", now, ids)
			}
			p := producer(t, addr, "q")
			produce(t, addr, p, "events", "k", "later")
			commit(t, p)
			p.Close()
			end()
			if err := errors.Join(os.RemoveAll(dir), os.CopyFS(dir, os.DirFS(backup))); err != nil {
				t.Fatal(err)
			}
			addr, end = begin(t, dir)
			restored := identities(t, addr)
			for name, info := range restored {
				if info.ID == ids[name].ID || info.Partitions != ids[name].Partitions {
					t.Errorf("topic %s is %+v, and was %+v", name, info, ids[name])
				}
			}
			end()
			mustHold(t, dir, records, restored)
		})
	}
}
