package kafka

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

// kfake truncates a segment at the first batch that it cannot read, and continues. That is right if
// a kill interrupted the last write. But it would lose every record behind a damaged one. So all
// segments are checked before kfake reads them.

// Layout of a record batch: base offset (8 bytes), length of the rest (4), leader epoch (4), magic
// (1), checksum of everything after it (4), attributes (2), last offset delta (4), and more.
const (
	batchHeader   = 61
	beforeLength  = 12
	beforeChecked = 21
	maxBatchBytes = 1 << 30 // as in kfake
	maxOffsetGap  = 1 << 40 // maximum gap in offsets that compaction may leave
)

// batchAt parses a header. ok reports whether it is plausible.
func batchAt(header []byte) (base int64, size int, last int64, ok bool) {
	base = int64(binary.BigEndian.Uint64(header))
	length := int64(int32(binary.BigEndian.Uint32(header[8:])))
	delta := int64(int32(binary.BigEndian.Uint32(header[23:])))
	ok = base >= 0 && length >= batchHeader-beforeLength && length <= maxBatchBytes && header[16] == 2 && delta >= 0
	return base, beforeLength + int(length), base + delta, ok
}

// checkSegments checks the segments of all partitions. After a clean stop, every batch must be
// readable. After a kill, the last segment of a partition may end with an incomplete one.
func checkSegments(dir string, clean bool, log *slog.Logger) error {
	partitions, err := find(dir, "partitions/*")
	if err != nil {
		return err
	}
	compacted, err := compactedPartitions(dir)
	if err != nil {
		return err
	}
	var all errgroup.Group
	// Checking is bound by the CPU, so partitions are checked in parallel.
	all.SetLimit(runtime.GOMAXPROCS(0))
	for _, partition := range partitions {
		all.Go(func() error { return checkPartition(partition, slices.Contains(compacted, partition), clean, log) })
	}
	return all.Wait()
}

// checkPartition checks that the segments are readable, in order and without gaps. Compaction may
// leave gaps.
func checkPartition(partition string, compacted, clean bool, log *slog.Logger) error {
	names, err := find(partition, "*.dat")
	if err != nil {
		return err
	}
	type segment struct {
		base int64
		name string
	}
	var segments []segment
	// A segment's name is its first offset.
	for _, name := range names {
		base, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(name), ".dat"), 10, 64)
		if err == nil { // otherwise the file is not kfake's
			segments = append(segments, segment{base, name})
		}
	}
	slices.SortFunc(segments, func(a, b segment) int { return cmp.Compare(a.base, b.base) })
	// next is the offset that the next segment must begin with.
	next := int64(0)
	for i, s := range segments {
		// A gap between segments means that one is missing. Only compaction may leave gaps.
		if s.base < next || s.base > next && i > 0 && !compacted {
			return lostRecords(s.name, fmt.Sprintf("the previous segment ends at offset %d", next))
		}
		end, tail, err := scanSegment(s.name, s.base, compacted)
		if err != nil {
			return err
		}
		next = end
		if tail == nil {
			continue
		}
		switch {
		case i < len(segments)-1 || clean: // not interrupted by a kill
			return lostRecords(s.name, fmt.Sprintf("the batch at byte %d is unreadable", tail.at))
		case tail.more:
			return lostRecords(s.name,
				fmt.Sprintf("the batch at byte %d is unreadable, but the one at byte %d is not", tail.at, tail.moreAt))
		}
		// It is as a kill leaves it, and kfake truncates it.
		if tail.torn {
			continue
		}
		if err := tail.save(s.name, log); err != nil {
			return err
		}
	}
	return nil
}

// unreadableTail is the unreadable end of a segment.
type unreadableTail struct {
	at, size int64
	torn     bool  // it is an incomplete batch, as a kill leaves it
	more     bool  // it contains a readable batch, so it is damage and not an interrupted write
	moreAt   int64 // position of that batch
}

// save copies what kfake is about to truncate. A power cut may cause it, and so may damage.
func (t *unreadableTail) save(segment string, log *slog.Logger) (err error) {
	from, err := os.Open(segment) //nolint:gosec // our own directory
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	aside := segment + asideSuffix
	to, err := os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) //nolint:gosec // our own directory
	if err != nil {
		return err
	}
	_, err = io.Copy(to, io.NewSectionReader(from, t.at, t.size))
	log.Warn("embedded kafka: truncating the unreadable end of a segment, after a power cut or damage. "+
		"If events of Millrace's own topics are missing, their relay notices it",
		"segment", segment, "bytes", t.size, "set_aside", aside)
	return errors.Join(err, to.Close())
}

// scanSegment reads the batches of a segment whose first offset is next. It returns the offset
// after the last one, and the unreadable rest. Each batch must begin where the previous one ends,
// unless compaction removed some. This matters because a batch's checksum does not cover its
// offset.
func scanSegment(name string, next int64, compacted bool) (int64, *unreadableTail, error) {
	f, err := os.Open(name) //nolint:gosec // our own directory
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return 0, nil, err
	}
	r := bufio.NewReaderSize(f, 1<<20)
	at, gap := int64(0), int64(0)
	for at < info.Size() {
		// A base offset below next would repeat records, and one above next+gap would skip some.
		size, end, err := readBatch(r, next, next+gap, info.Size()-at)
		if err != nil {
			return 0, nil, err
		}
		if size == 0 {
			left := &unreadableTail{at: at, size: info.Size() - at}
			if left.torn, err = torn(f, at, left.size, next); err != nil {
				return 0, nil, err
			}
			left.moreAt, left.more, err = findBatch(f, at+1, next, info.Size())
			return next, left, err
		}
		at, next = at+size, end
		if compacted {
			gap = maxOffsetGap
		}
	}
	return next, nil, nil
}

// torn reports whether the end of a segment is an incomplete batch.
func torn(f io.ReaderAt, at, size, least int64) (bool, error) {
	// Even the header is incomplete.
	if size < batchHeader {
		return true, nil
	}
	header := make([]byte, batchHeader)
	if _, err := f.ReadAt(header, at); err != nil {
		return false, err
	}
	base, length, _, ok := batchAt(header)
	return ok && base >= least && int64(length) > size, nil
}

// readBatch reads one batch of at most left bytes with a base offset from least to most. size is 0
// if it is not readable.
func readBatch(r *bufio.Reader, least, most, left int64) (size, next int64, err error) {
	header, err := r.Peek(batchHeader)
	if err != nil {
		return 0, 0, ignoreEOF(err)
	}
	base, length, last, ok := batchAt(header)
	if !ok || base < least || base > most || int64(length) > left {
		return 0, 0, nil
	}
	want := binary.BigEndian.Uint32(header[17:]) // before header is overwritten by the next Peek
	if _, err := r.Discard(beforeChecked); err != nil {
		return 0, 0, ignoreEOF(err)
	}
	// The batch may be larger than the buffer, so the checksum is computed piece by piece.
	sum := uint32(0)
	for todo := length - beforeChecked; todo > 0; {
		some, err := r.Peek(min(todo, r.Size()))
		if err != nil {
			return 0, 0, ignoreEOF(err)
		}
		sum = crc32.Update(sum, castagnoli, some)
		todo -= len(some)
		if _, err := r.Discard(len(some)); err != nil {
			return 0, 0, err
		}
	}
	if sum != want {
		return 0, 0, nil
	}
	return int64(length), last + 1, nil
}

// findBatch looks for a readable batch, beginning at from.
func findBatch(f io.ReaderAt, from, least, size int64) (at int64, found bool, err error) {
	const window = 1 << 20
	r := bufio.NewReaderSize(nil, window)
	buf := make([]byte, window+batchHeader)
	for ; from+batchHeader <= size; from += window {
		n, err := f.ReadAt(buf, from)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, false, err
		}
		// Check each position: the next intact batch need not be aligned to anything.
		for i := 0; i < window && i+batchHeader <= n; i++ {
			base, length, _, ok := batchAt(buf[i:])
			at := from + int64(i)
			if !ok || base < least || at+int64(length) > size {
				continue
			}
			// A plausible header may be chance. The checksum decides.
			r.Reset(io.NewSectionReader(f, at, int64(length)))
			if got, _, err := readBatch(r, least, math.MaxInt64, int64(length)); err != nil || got > 0 {
				return at, err == nil, err
			}
		}
	}
	return 0, false, nil
}
