package training

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// spillBuffer is the buffer of each temporary file. As many files as there are ranges are open.
const spillBuffer = 16 << 10

// spill is a temporary file of records, written once and then read once. Nothing but this process
// reads it, so its format has no version and no checks beyond those of the ends of records.
type spill struct {
	file *os.File
	w    *bufio.Writer
	r    *bufio.Reader
	buf  []byte // of the record that is written, or the text that was read
	err  error  // the first one
}

// createSpill creates a temporary file.
func createSpill(dir, name string) (*spill, error) {
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600) //nolint:gosec // in a folder of this run
	if err != nil {
		return nil, fmt.Errorf("create a temporary file: %w", err)
	}
	return &spill{file: f, w: bufio.NewWriterSize(f, spillBuffer)}, nil
}

// createSpills creates a temporary file for each range.
func createSpills(dir, name string, n int) ([]*spill, error) {
	all := make([]*spill, 0, n)
	for i := range n {
		s, err := createSpill(dir, fmt.Sprintf("%s-%d", name, i))
		if err != nil {
			return nil, errors.Join(err, closeSpills(all))
		}
		all = append(all, s)
	}
	return all, nil
}

func closeSpills(all []*spill) error {
	var err error
	for _, s := range all {
		err = errors.Join(err, s.close())
	}
	return err
}

// close closes the file. A nil spill is none.
func (s *spill) close() error {
	if s == nil {
		return nil
	}
	return s.file.Close()
}

// rewind ends writing and begins reading.
func (s *spill) rewind() error {
	err := firstError(s.err, s.w.Flush())
	if err == nil {
		_, err = s.file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("write a temporary file: %w", err)
	}
	s.w, s.r = nil, bufio.NewReaderSize(s.file, spillBuffer)
	return nil
}

// firstError returns a, or b if a is nil.
func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// write writes what was put into buf.
func (s *spill) write() error {
	_, err := s.w.Write(s.buf)
	s.buf = s.buf[:0]
	if err != nil {
		return fmt.Errorf("write a temporary file: %w", err)
	}
	return nil
}

func (s *spill) putInt(v int64) { s.buf = binary.AppendVarint(s.buf, v) }

func (s *spill) putText(v string) {
	s.buf = binary.AppendUvarint(s.buf, uint64(len(v)))
	s.buf = append(s.buf, v...)
}

// more reports whether there is another record.
func (s *spill) more() bool {
	if s.err != nil {
		return false
	}
	_, err := s.r.Peek(1)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return err == nil
}

func (s *spill) int() int64 {
	v, err := binary.ReadVarint(s.r)
	s.err = firstError(s.err, err)
	return v
}

func (s *spill) word() uint64 {
	var b [8]byte
	_, err := io.ReadFull(s.r, b[:])
	s.err = firstError(s.err, err)
	return binary.LittleEndian.Uint64(b[:])
}

func (s *spill) byte() byte {
	b, err := s.r.ReadByte()
	s.err = firstError(s.err, err)
	return b
}

func (s *spill) text() string { return string(s.bytes()) }

// bytes reads a text, which is valid until the next one is read.
func (s *spill) bytes() []byte {
	n, err := binary.ReadUvarint(s.r)
	if s.err = firstError(s.err, err); s.err != nil {
		return nil
	}
	s.buf = slices.Grow(s.buf[:0], int(n))[:n]
	_, err = io.ReadFull(s.r, s.buf)
	s.err = firstError(s.err, err)
	return s.buf
}

// failed returns the first error of reading.
func (s *spill) failed() error {
	if s.err != nil {
		return fmt.Errorf("read a temporary file: %w", s.err)
	}
	return nil
}

// appendResults appends the results of a row to b.
func appendResults(b []byte, values []exact.Result) []byte {
	for _, v := range values {
		b = append(b, byte(v.Kind))
		switch v.Kind {
		case exact.IntResult:
			b = binary.AppendVarint(b, v.Int)
		case exact.FloatResult:
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v.Float))
		case exact.TextResult:
			b = binary.AppendUvarint(b, uint64(len(v.Text)))
			b = append(b, v.Text...)
		case exact.TextsResult:
			b = binary.AppendVarint(b, int64(len(v.Texts)))
			for _, text := range v.Texts {
				b = binary.AppendUvarint(b, uint64(len(text)))
				b = append(b, text...)
			}
		}
	}
	return b
}

// results reads the results of the next row.
func (s *spill) results(values []exact.Result) error {
	for i := range values {
		v := exact.Result{Kind: exact.ResultKind(s.byte())}
		switch v.Kind {
		case exact.IntResult:
			v.Int = s.int()
		case exact.FloatResult:
			v.Float = math.Float64frombits(s.word())
		case exact.TextResult:
			v.Text = s.text()
		case exact.TextsResult:
			for range s.int() {
				v.Texts = append(v.Texts, s.text())
			}
		}
		values[i] = v
	}
	return s.failed()
}

// dividedRequest is a request and the ranges by which its facts are read later.
type dividedRequest struct {
	Request
	division division
	people   *people // nil if the groups do not follow the identity graph
}

// spilled is Facts in temporary files, a file for each source and range.
type spilled struct {
	sources map[string]*spilledSource
}

// spilledSource is the facts of one source.
type spilledSource struct {
	division division
	people   *people
	files    []*spill
	rows     int64
}

// newSpilled creates the files for the facts of sources.
func newSpilled(dir string, requests []dividedRequest) (*spilled, error) {
	s := &spilled{sources: map[string]*spilledSource{}}
	for _, r := range requests {
		files, err := createSpills(dir, "facts-"+r.Source.Name, r.division.ranges())
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.sources[r.Source.Name] = &spilledSource{division: r.division, people: r.people, files: files}
	}
	return s, nil
}

func (s *spilled) close() error {
	var err error
	for _, source := range s.sources {
		err = errors.Join(err, closeSpills(source.files))
	}
	return err
}

// add writes a fact of an entity, and of each person that has it as a member.
func (s *spilled) add(r Request, f *features.Fact) error {
	source := s.sources[r.Source.Name]
	err := source.add(r, f, f.Entity, f.Key)
	if source.people == nil {
		return err
	}
	for _, name := range source.people.of[f.Entity] {
		err = firstError(err, source.add(r, f, name, features.MemberKey(f.Key, f.Entity)))
	}
	return err
}

// add writes a fact, without the values that the request does not want.
func (s *spilledSource) add(r Request, f *features.Fact, entity, key string) error {
	to := s.files[s.division.of(entity)]
	s.rows++
	to.putText(entity)
	to.putText(key)
	to.putInt(f.At.UnixMicro())
	to.putInt(f.Known.UnixMicro())
	to.putInt(f.Origin.Offset)
	to.putInt(int64(f.Origin.Index))
	if f.Retracted {
		to.buf = append(to.buf, 1)
	} else {
		to.buf = append(to.buf, 0)
	}
	for _, column := range r.Columns {
		v := exact.Value{}
		if column < len(f.Values) { // a retracted fact may have none
			v = f.Values[column]
		}
		to.buf = append(to.buf, byte(v.Kind))
		switch v.Kind {
		case exact.Number:
			n, fits := v.Int.Int64()
			if !fits {
				to.buf[len(to.buf)-1] = wideNumber
				for _, word := range v.Int {
					to.buf = binary.LittleEndian.AppendUint64(to.buf, word)
				}
				break
			}
			to.putInt(n)
		case exact.Text:
			to.putText(v.Text)
		}
	}
	return to.write()
}

// wideNumber is the kind of a number in a temporary file that is not an int64.
const wideNumber = 255

// Positions implements Facts. It is not called: the positions are those of the log.
func (s *spilled) Positions(context.Context, []*features.Source) (Positions, error) {
	return nil, errors.New("temporary files have no positions")
}

// Count implements Facts.
func (s *spilled) Count(_ context.Context, r Request) (int64, error) {
	return s.sources[r.Source.Name].rows, nil
}

// Read implements Facts. Each range is read once.
func (s *spilled) Read(ctx context.Context, r Request, each func(*Batch) error) error {
	source := s.sources[r.Source.Name]
	from := source.files[source.division.of(r.Range.From)]
	if err := from.rewind(); err != nil {
		return err
	}
	var b Batch
	b.reset(len(r.Columns))
	for from.more() {
		if err := s.next(r, from, &b); err != nil {
			return err
		}
		if b.Rows == batchRows {
			if err := each(&b); err != nil {
				return err
			}
			b.reset(len(r.Columns))
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
	}
	if b.Rows > 0 {
		if err := each(&b); err != nil {
			return err
		}
	}
	return errors.Join(from.failed(), os.Remove(from.file.Name()))
}

// next appends the next fact to a batch.
func (s *spilled) next(r Request, from *spill, b *Batch) error {
	b.Rows++
	b.Entity.Append(from.text())
	b.Key.Append(from.text())
	b.At, b.Known = append(b.At, from.int()), append(b.Known, from.int())
	b.Offset, b.Index = append(b.Offset, from.int()), append(b.Index, int32(from.int()))
	b.Retracted = append(b.Retracted, from.byte() == 1)
	for i, column := range r.Columns {
		to := &b.Values[i]
		kind := from.byte()
		to.Null = append(to.Null, kind == byte(exact.Null))
		var number int64
		var text string
		switch kind {
		case byte(exact.Number):
			number = from.int()
		case byte(exact.Text):
			text = from.text()
		case wideNumber:
			if to.Wide == nil {
				to.Wide = map[int]exact.Int{}
			}
			to.Wide[b.Rows-1] = exact.Int{from.word(), from.word(), from.word(), from.word()}
		}
		if r.Source.Columns[column].Kind == exact.Text {
			to.Text.Append(text)
		} else {
			to.Int = append(to.Int, number)
		}
	}
	return from.failed()
}
