package kafka

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
)

// batch returns a batch as in a segment, with irrelevant records.
func batch(base int64, records int32, size int) []byte {
	b := make([]byte, batchHeader+size)
	binary.BigEndian.PutUint64(b, uint64(base))
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-beforeLength))
	b[16] = 2
	binary.BigEndian.PutUint32(b[23:], uint32(records-1))
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[beforeChecked:], castagnoli))
	return b
}

// For any segment, the result of the scan is correct: the batches before the rest are readable, and
// the rest extends to the end.
func FuzzScanSegment(f *testing.F) {
	whole := append(batch(0, 3, 10), batch(3, 1, 0)...)
	f.Add(whole, false)
	f.Add(append(append([]byte(nil), whole...), batch(9, 1, 5)...), true)
	f.Add(whole[:len(whole)-1], false)
	f.Add(make([]byte, 500), false)
	f.Add(append(make([]byte, 70), whole...), true)
	f.Fuzz(func(t *testing.T, content []byte, compacted bool) {
		name := filepath.Join(t.TempDir(), "0.dat")
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		next, tail, err := scanSegment(name, 0, compacted)
		if err != nil {
			t.Fatal(err)
		}
		if tail == nil {
			return
		}
		if next < 0 || tail.at < 0 || tail.at+tail.size != int64(len(content)) ||
			tail.more && tail.moreAt <= tail.at {
			t.Fatalf("next %d, tail %+v of %d bytes", next, *tail, len(content))
		}
		if err := os.WriteFile(name, content[:tail.at], 0o600); err != nil {
			t.Fatal(err)
		}
		if again, none, err := scanSegment(name, 0, compacted); err != nil || none != nil || again != next {
			t.Fatalf("without the rest: next %d, rest %v, %v; want %d", again, none, err, next)
		}
	})
}
