package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/go-faster/city"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// ClickHouse's compression of a stream is a sequence of frames: a checksum of the rest of the
// frame, a byte for the method, the size of the frame without the checksum, the size of its
// content, and the compressed content. Drivers send blocks of rows in such frames (decompress=1)
// and expect answers in them (compress=1).

// The layout of a frame, and the largest one: that of the driver's own reader.
const (
	frameChecksum = 16
	frameHead     = 1 + 4 + 4 // method and sizes
	maxFrame      = 128 << 20
)

// Methods of frames.
const (
	frameNone = 0x02
	frameLZ4  = 0x82
	frameZSTD = 0x90
)

// frames reads the content of frames. Any fault of a frame is a CANNOT_DECOMPRESS.
type frames struct {
	r       io.Reader
	frame   []byte // without the checksum
	content []byte
	rest    []byte // of the content that is not read yet
}

// newFrames returns a reader of the content of the frames in r.
func newFrames(r io.Reader) *frames { return &frames{r: r} }

// Read reads content. It returns io.EOF only between two frames.
func (f *frames) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if err := f.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// next reads a frame.
func (f *frames) next() error {
	var head [frameChecksum + frameHead]byte
	if _, err := io.ReadFull(f.r, head[:]); errors.Is(err, io.EOF) {
		return io.EOF
	} else if err != nil {
		return cannotDecompress(fmt.Errorf("read the head of a frame: %w", err))
	}
	size := binary.LittleEndian.Uint32(head[frameChecksum+1:])
	contentSize := binary.LittleEndian.Uint32(head[frameChecksum+5:])
	if size < frameHead || size > maxFrame || contentSize > maxFrame {
		return cannotDecompress(fmt.Errorf("a frame of %d bytes with a content of %d: the limit is %d",
			size, contentSize, maxFrame))
	}
	var err error
	if f.frame, err = readGrowing(f.r, append(f.frame[:0], head[frameChecksum:]...), int(size)); err != nil {
		return cannotDecompress(fmt.Errorf("read a frame of %d bytes: %w", size, err))
	}
	sum := city.CH128(f.frame)
	if sum.Low != binary.LittleEndian.Uint64(head[:]) || sum.High != binary.LittleEndian.Uint64(head[8:]) {
		return cannotDecompress(errors.New("the checksum of a frame is wrong"))
	}
	if f.content, err = decompress(f.content, f.frame[0], f.frame[frameHead:], int(contentSize)); err != nil {
		return cannotDecompress(err)
	}
	f.rest = f.content
	return nil
}

// readGrowing reads into b until it has size bytes. It allocates what arrives, not what a head
// announces.
func readGrowing(r io.Reader, b []byte, size int) ([]byte, error) {
	const step = 1 << 20
	for len(b) < size {
		n := min(step, size-len(b))
		if cap(b)-len(b) < n {
			b = append(make([]byte, 0, min(size, 2*len(b)+n)), b...)
		}
		if _, err := io.ReadFull(r, b[len(b):len(b)+n]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return b, err
		}
		b = b[:len(b)+n]
	}
	return b, nil
}

// zstdDecoders are reused: each one has large tables.
var zstdDecoders = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(maxFrame))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
}}

// decompress returns the content of a frame, which must have exactly the announced size. It uses
// the memory of buf if that is large enough.
func decompress(buf []byte, method byte, data []byte, size int) ([]byte, error) {
	if method == frameNone {
		if len(data) != size {
			return buf, fmt.Errorf("a frame has %d bytes, not %d", len(data), size)
		}
		return append(buf[:0], data...), nil
	}
	// Each byte of LZ4 yields 255 bytes at most. What cannot be true is not allocated.
	if method == frameLZ4 && size/255 > len(data) {
		return buf, fmt.Errorf("a frame of %d bytes announces %d", len(data), size)
	}
	var n int
	var err error
	switch method {
	case frameLZ4:
		if cap(buf) < size {
			buf = make([]byte, size)
		}
		buf = buf[:size]
		n, err = lz4.UncompressBlock(data, buf)
	case frameZSTD:
		d := zstdDecoders.Get().(*zstd.Decoder)
		buf, err = d.DecodeAll(data, buf[:0])
		zstdDecoders.Put(d)
		n = len(buf)
	default:
		return buf, fmt.Errorf("frames of method 0x%02x are not supported", method)
	}
	if err == nil && n != size {
		err = fmt.Errorf("a frame has %d bytes, not %d", n, size)
	}
	return buf, err
}

// compressionOf returns the method of the frames that a client expects, or compress.NumMethods for
// an answer without frames.
func compressionOf(params url.Values) (method compress.Method, framed bool) {
	if params.Get("compress") != "1" {
		return compress.None, false
	}
	switch strings.ToUpper(params.Get("network_compression_method")) {
	case "ZSTD":
		return compress.ZSTD, true
	case "NONE":
		return compress.None, true
	}
	return compress.LZ4, true
}

// maxFrameContent is the content of a frame of an answer, in bytes.
const maxFrameContent = 1 << 20

// inFrames passes piece to emit as frames.
func inFrames(w *compress.Writer, piece []byte, emit func([]byte) error) error {
	for len(piece) > 0 {
		n := min(len(piece), maxFrameContent)
		if err := w.Compress(piece[:n]); err != nil {
			return fmt.Errorf("compress the answer: %w", err)
		}
		if err := emit(w.Data); err != nil {
			return err
		}
		piece = piece[n:]
	}
	return nil
}
