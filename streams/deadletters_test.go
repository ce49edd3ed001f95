package streams_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/streams"
)

// Any record becomes a dead letter: complete if it fits, and otherwise shortened, so that no sink
// blocks forever. It is never a tombstone, which compaction would delete.
func TestDeadLettersOfEverySize(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, on kafka.Config) {
		writer := streams.NewDeadLetters(on)
		defer writer.Close()
		large := strings.Repeat("0123456789abcdef", 100_000) // 1.6 MB
		sink := newLog(t, on).Topic
		records := map[string]streams.DeadLetter{
			"small":          {Key: []byte("k"), Value: []byte("value"), Headers: []event.Header{{Key: "from", Value: []byte("elsewhere")}}},
			"no value":       {Key: []byte("k")},
			"empty value":    {Key: []byte("k"), Value: []byte{}},
			"no key":         {Value: []byte("value")},
			"large value":    {Key: []byte("k"), Value: []byte(large), Headers: []event.Header{{Key: "from", Value: []byte("elsewhere")}}},
			"just too large": {Key: []byte("k"), Value: []byte(large[:999_990])},
			"large key":      {Key: []byte(large), Value: []byte("value")},
			"large header":   {Key: []byte("k"), Value: []byte("value"), Headers: []event.Header{{Key: "big", Value: []byte(large)}, {Key: "from", Value: []byte("elsewhere")}}},
			"large reason":   {Key: []byte("k"), Value: []byte("value"), Reason: errors.New(large)},
			"all large":      {Key: []byte(large), Value: []byte(large), Headers: []event.Header{{Key: "big", Value: []byte(large)}}, Reason: errors.New(large)},
		}
		for name, r := range records {
			r.Sink, r.Topic, r.Partition, r.Offset = sink, name, 3, 7
			if r.Reason == nil {
				r.Reason = errors.New("not an event")
			}
			if err := writer.Write(t.Context(), r); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		letters, _ := readDeadLetters(t, on, sink)
		for name, r := range records {
			m, ok := letters[sink+"|"+name+"|3|7"]
			if !ok || m.Value == nil {
				t.Errorf("%s: there is no dead letter, or it is a tombstone", name)
				continue
			}
			if header(m, streams.HeaderDeadLetterReason) == "" ||
				!strings.HasPrefix(string(r.Key), header(m, streams.HeaderDeadLetterKey)) ||
				!bytes.HasPrefix(r.Value, m.Value) {
				t.Errorf("%s: dead letter has %d bytes and headers %.200q", name, len(m.Value), m.Headers)
			}
			size, sum := header(m, streams.HeaderDeadLetterSize), header(m, streams.HeaderDeadLetterSHA256)
			if !strings.Contains(name, "large") || name == "large reason" {
				if !bytes.Equal(m.Value, r.Value) || size+sum != "" {
					t.Errorf("%s: dead letter is %q, size %q", name, m.Value, size)
				}
				continue
			}
			want := sha256.Sum256(r.Value)
			if size != strconv.Itoa(len(r.Value)) || sum != hex.EncodeToString(want[:]) || len(m.Value) > 4<<10 {
				t.Errorf("%s: size header %s, hash header %s, %d bytes kept", name, size, sum, len(m.Value))
			}
			if len(r.Headers) > 0 && r.Headers[len(r.Headers)-1].Key == "from" && header(m, "from") != "elsewhere" {
				t.Errorf("%s: its headers are %.200q", name, m.Headers)
			}
		}
	})
}
