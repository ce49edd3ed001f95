package kafka

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// largestFrame is the longest request taken. Kafka's own limit is 100 MiB; no client of ours sends
// a hundredth of it.
const largestFrame = 32 << 20

// largeFrame is a length that kfake hears of only once the whole request is there. A connection
// that announces much and sends nothing takes no memory, however many there are.
const largeFrame = 1 << 20

// frames looks at the length that each request begins with. kfake allocates what it says before it
// reads on, up to 4 GiB, and bytes that are not a Kafka request can say anything. A connection that
// announces more than largestFrame is closed.
type frames struct {
	net.Conn
	log *slog.Logger

	head [4]byte // of the next request, the first have bytes
	have int
	left int64  // of the present one
	body []byte // of a large one, which has arrived, what is not read yet

	key     [2]byte // of the present request's kind, the first keyed bytes
	keyed   int
	changes atomic.Bool // one of the requests may have changed the list of topics
	changed func()      // is called then, before an answer goes out
}

// Write keeps a change of the list of topics before its client learns of it.
func (f *frames) Write(p []byte) (int, error) {
	if f.changes.Load() {
		f.changed()
	}
	return f.Conn.Write(p)
}

// kind notes the beginning of a request.
func (f *frames) kind(p []byte) {
	if f.keyed == len(f.key) {
		return
	}
	f.keyed += copy(f.key[f.keyed:], p)
	if f.keyed < len(f.key) {
		return
	}
	switch kmsg.Key(binary.BigEndian.Uint16(f.key[:])) {
	case kmsg.CreateTopics, kmsg.DeleteTopics, kmsg.CreatePartitions, kmsg.AlterConfigs, kmsg.IncrementalAlterConfigs:
		f.changes.Store(true)
	}
}

func (f *frames) Read(p []byte) (int, error) {
	if len(f.body) > 0 {
		n := copy(p, f.body)
		if f.body = f.body[n:]; len(f.body) == 0 {
			f.body = nil
		}
		return n, nil
	}
	if f.left > 0 {
		n, err := f.Conn.Read(p[:min(int64(len(p)), f.left)])
		f.left -= int64(n)
		f.kind(p[:n])
		return n, err
	}
	n, err := f.Conn.Read(p[:min(len(p), len(f.head)-f.have)])
	f.have += copy(f.head[f.have:], p[:n])
	if f.have < len(f.head) {
		return n, err
	}
	f.keyed = 0
	f.have, f.left = 0, int64(binary.BigEndian.Uint32(f.head[:]))
	if f.left > largestFrame {
		f.log.Warn("kafka: a connection is closed that announces too large a request, or does not speak Kafka's protocol",
			"bytes", f.left, "most", largestFrame, "from", f.RemoteAddr())
		return 0, fmt.Errorf("a request of %d bytes: the most is %d", f.left, largestFrame)
	}
	if f.left > largeFrame && err == nil {
		var body bytes.Buffer // grows with what arrives
		if _, err := io.CopyN(&body, f.Conn, f.left); err != nil {
			return 0, err
		}
		f.body, f.left = body.Bytes(), 0
		f.kind(f.body)
	}
	return n, err
}
