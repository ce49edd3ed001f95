package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/go-faster/city"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/internal/clickhouse"
)

// framed returns content in frames, as drivers write them.
func framed(t testing.TB, method compress.Method, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	err := inFrames(compress.NewWriter(0, method), content, func(b []byte) error { _, err := out.Write(b); return err })
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// head returns the head of a frame with a right checksum, if nothing follows it.
func head(method byte, size, contentSize uint32, data ...byte) []byte {
	frame := append([]byte{method}, make([]byte, 8)...)
	binary.LittleEndian.PutUint32(frame[1:], size)
	binary.LittleEndian.PutUint32(frame[5:], contentSize)
	frame = append(frame, data...)
	sum := city.CH128(frame)
	out := binary.LittleEndian.AppendUint64(nil, sum.Low)
	return append(binary.LittleEndian.AppendUint64(out, sum.High), frame...)
}

// Content is the same after frames of any method. It does not depend on how it is read.
func TestFramesRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		method := rapid.SampledFrom([]compress.Method{compress.None, compress.LZ4, compress.ZSTD}).Draw(t, "method")
		var want, stream []byte
		for range rapid.IntRange(0, 4).Draw(t, "frames") {
			part := bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 1, 100).Draw(t, "part"), rapid.IntRange(1, 30_000).Draw(t, "times"))
			want = append(want, part...)
			err := inFrames(compress.NewWriter(0, method), part, func(b []byte) error { stream = append(stream, b...); return nil })
			if err != nil {
				t.Fatal(err)
			}
		}
		got, err := io.ReadAll(newFrames(bytes.NewReader(stream)))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, %v; want %d", len(got), err, len(want))
		}
		theirs, err := io.ReadAll(compress.NewReader(bytes.NewReader(stream)))
		if !errors.Is(err, io.EOF) && err != nil || !bytes.Equal(theirs, want) {
			t.Fatalf("the driver reads %d bytes, %v", len(theirs), err)
		}
	})
}

// Damaged frames have the code of ClickHouse. They allocate no more than they contain.
func TestDamagedFrames(t *testing.T) {
	t.Parallel()
	good := framed(t, compress.LZ4, bytes.Repeat([]byte("abc"), 1000))
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	bomb := framed(t, compress.ZSTD, make([]byte, 1<<20))
	binary.LittleEndian.PutUint32(bomb[frameChecksum+5:], 100)
	for name, stream := range map[string][]byte{
		"cut in the head":     good[:10],
		"cut in the content":  good[:len(good)-1],
		"flipped bit":         flipped,
		"unknown method":      head(0x33, frameHead+1, 1, 'x'),
		"too small":           head(frameNone, 3, 0),
		"too large":           head(frameNone, 1<<31, 1<<31),
		"large content":       head(frameLZ4, frameHead+1, maxFrame+1, 'x'),
		"impossible content":  head(frameLZ4, frameHead+1, maxFrame, 'x'),
		"other content":       head(frameNone, frameHead+1, 2, 'x'),
		"announces megabytes": head(frameNone, maxFrame, maxFrame),
		"wrong sum":           bomb,
		"more than announced": head(frameZSTD, frameHead+uint32(len(bomb)-25), 100, bomb[25:]...),
		"not lz4":             head(frameLZ4, frameHead+4, 8, 0xff, 0xff, 0xff, 0xff),
	} {
		_, err := io.ReadAll(newFrames(bytes.NewReader(stream)))
		if e := (*clickhouse.Error)(nil); !errors.As(err, &e) || e.Code != clickhouse.CodeCannotDecompress {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func FuzzFrames(f *testing.F) {
	for _, method := range []compress.Method{compress.None, compress.LZ4, compress.ZSTD} {
		f.Add(framed(f, method, bytes.Repeat([]byte("abc"), 100)))
	}
	f.Add(head(frameLZ4, frameHead+4, 8, 0xff, 0xff, 0xff, 0xff))
	f.Fuzz(func(t *testing.T, stream []byte) {
		n, err := io.Copy(io.Discard, newFrames(bytes.NewReader(stream)))
		if e := (*clickhouse.Error)(nil); err != nil && !errors.As(err, &e) {
			t.Errorf("error without a code: %v", err)
		}
		if len(stream) == 0 && (n != 0 || err != nil) {
			t.Errorf("no frames have %d bytes, %v", n, err)
		}
	})
}
