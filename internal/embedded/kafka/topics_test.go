package kafka

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// After any flipped bit in the list of topics, the list is restored.
func TestFlippedBitsInTopicsAreRepaired(t *testing.T) {
	t.Parallel()
	const list = `{"version":1,"topics":[` +
		`{"name":"millrace.orders","id":"7C4LwhGBpPBLFTsWMQ7YaA==","partitions":4,"replicas":1,"configs":{"retention.ms":"-1"}},` +
		`{"name":"empty","id":"g21rrGe7xLR5FWtPVyTwTA==","partitions":1,"replicas":1,"configs":{"cleanup.policy":"compact"}}]}`
	want, err := parseTopics([]byte(list))
	if err != nil {
		t.Fatal(err)
	}
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	for p := range 4 {
		if err := writeSegment(dir, fmt.Sprintf("millrace.orders-%d", p)); err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Join(dir, topicsFile)
	k := topicsCopier{dir: dir, log: log}
	if err := os.WriteFile(name, []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	k.update()
	for at := range list {
		for bit := range 8 {
			raw := []byte(list)
			raw[at] ^= 1 << bit
			if err := os.WriteFile(name, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := checkTopics(dir, nil, log); err != nil {
				t.Fatalf("bit %d of byte %d: %v", bit, at, err)
			}
			got, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if have, err := parseTopics(got); err != nil || !equalTopics(have, want) {
				t.Fatalf("bit %d of byte %d, which is %q: %s, %v", bit, at, raw[at], got, err)
			}
		}
	}
}

func writeSegment(dir, partition string) error {
	folder := filepath.Join(dir, "partitions", partition)
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, "0.dat"), []byte("x"), 0o600)
}

// A change that a kill interrupted before its response is kept if records depend on it.
func TestInterruptedTopicChange(t *testing.T) {
	t.Parallel()
	old := topic{Name: "old", ID: "7C4LwhGBpPBLFTsWMQ7YaA==", Partitions: 2}
	created := topic{Name: "created", ID: "g21rrGe7xLR5FWtPVyTwTA==", Partitions: 1}
	wide := old
	wide.Partitions = 4
	changed := old
	changed.Configs = map[string]string{"retention.ms": "0"}
	for name, c := range map[string]struct {
		have []topic
		data recordedPartitions
		want []topic
	}{
		"none":    {[]topic{old}, recordedPartitions{"old": 2}, []topic{old}},
		"created": {[]topic{old, created}, recordedPartitions{"old": 2}, []topic{old, created}},
		"created and written to": {[]topic{old, created}, recordedPartitions{"old": 2, "created": 1},
			[]topic{old, created}},
		"deleted":                       {nil, nil, nil},
		"deleted, but the records stay": {nil, recordedPartitions{"old": 2}, []topic{old}},
		"widened":                       {[]topic{wide}, recordedPartitions{"old": 2}, []topic{old}},
		"widened and written to":        {[]topic{wide}, recordedPartitions{"old": 4}, []topic{wide}},
		"settings":                      {[]topic{changed}, recordedPartitions{"old": 2}, []topic{old}},
	} {
		got := merge(topics{formatVersion, []topic{old}}, topics{formatVersion, c.have}, c.data)
		if !equalTopics(got, topics{formatVersion, c.want}) {
			t.Errorf("%s: %+v, want %+v", name, got.Topics, c.want)
		}
	}
}
