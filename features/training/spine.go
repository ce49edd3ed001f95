package training

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"github.com/millrace/millrace/features"
)

// ErrSpine means that a spine cannot be used. The text names the column, and the row if it is one.
var ErrSpine = errors.New("spine")

func spineError(format string, a ...any) error {
	return fmt.Errorf("%w: %w", ErrSpine, fmt.Errorf(format, a...))
}

// spine is an open spine file.
type spine struct {
	file    *os.File
	parquet *parquet.File
	keys    []leaf // by entity of the groups
	at      leaf
	known   leaf // index -1 if the spine has no column of known times
	latest  bool // everything is known
	lag     int64
}

// leaf is one of the columns that the join reads.
type leaf struct {
	name  string
	index int                                           // among the leaves of the schema
	text  func(v parquet.Value) string                  // of a key
	time  func(v parquet.Value) (micros int64, ok bool) // of a time; false if it is out of range
}

// spineKey is what the join reads of a row.
type spineKey struct {
	entities  []string // by entity of the groups; valid until the next row
	at, known int64
}

// openSpine opens a spine and checks the columns that the configuration names.
func openSpine(c *Config) (_ *spine, err error) {
	f, err := os.Open(c.Spine)
	if err != nil {
		return nil, spineError("%w", err)
	}
	s := &spine{file: f, known: leaf{index: -1}, latest: c.Known == KnownLatest, lag: c.Lag.Microseconds()}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if s.parquet, err = openParquet(f); err != nil {
		return nil, spineError("%s: %w", c.Spine, err)
	}
	for _, entity := range entitiesOf(c.Groups) {
		key, err := s.find("key of "+entity, c.Keys[entity])
		if err != nil {
			return nil, err
		}
		if err := key.keys(entity, identityOf(c.Groups, entity), s.column(key)); err != nil {
			return nil, err
		}
		s.keys = append(s.keys, key)
	}
	if s.at, err = s.find("at", c.At); err != nil {
		return nil, err
	}
	if c.Known != KnownAt && c.Known != KnownLatest {
		if s.known, err = s.find("known", c.Known); err != nil {
			return nil, err
		}
	}
	for _, l := range []*leaf{&s.at, &s.known} {
		if l.index >= 0 {
			if err := l.times(s.column(*l)); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// openParquet opens a Parquet file. The library panics about some damaged files.
func openParquet(f *os.File) (file *parquet.File, err error) {
	defer damaged(&err, "its footer")
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	// The library allocates what the last bytes say is the size of the footer.
	var end [8]byte
	if _, err := f.ReadAt(end[:], max(info.Size()-8, 0)); err != nil ||
		int64(binary.LittleEndian.Uint32(end[:])) > info.Size()-12 {
		return nil, errors.New("not a readable Parquet file: it does not end with a footer; other formats, such as CSV, " +
			"have to be converted")
	}
	file, err = parquet.OpenFile(f, info.Size(), parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true))
	if err != nil {
		return nil, fmt.Errorf("not a readable Parquet file: %w", err)
	}
	// What the footer says about sizes must fit into the file.
	for i, group := range file.Metadata().RowGroups {
		for _, c := range group.Columns {
			name := strings.Join(c.MetaData.PathInSchema, ".")
			m := c.MetaData
			if m.TotalCompressedSize < 0 || m.TotalCompressedSize > info.Size() || m.DataPageOffset < 0 ||
				m.DataPageOffset > info.Size() || m.NumValues < 0 || group.NumRows < 0 {
				return nil, fmt.Errorf("column %s: row group %d lies outside of the file", name, i)
			}
		}
	}
	return file, nil
}

// damaged turns a panic of the Parquet library into an error about what was read.
func damaged(err *error, what string) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("%s is damaged: %v", what, r)
	}
}

// close closes the file.
func (s *spine) close() error { return s.file.Close() }

// find returns a column by its name. use is the parameter that names it.
func (s *spine) find(use, name string) (leaf, error) {
	var names []string
	for _, f := range s.parquet.Schema().Fields() {
		names = append(names, f.Name())
		if f.Name() != name {
			continue
		}
		l, ok := s.parquet.Schema().Lookup(name)
		if !f.Leaf() || f.Repeated() || !ok {
			return leaf{}, spineError("%s: column %s has a nested or repeated type, want a single value", use, name)
		}
		return leaf{name: name, index: l.ColumnIndex}, nil
	}
	return leaf{}, spineError("%s: there is no column %s; the spine has %s", use, name, strings.Join(names, ", "))
}

// column returns the type of a column.
func (s *spine) column(l leaf) parquet.Type {
	c, _ := s.parquet.Schema().Lookup(l.name)
	return c.Node.Type()
}

// keys sets how the values of a column name entities.
func (l *leaf) keys(entity string, is features.Identity, t parquet.Type) error {
	logical := logicalType(t)
	switch t.Kind() {
	case parquet.ByteArray:
		l.text = func(v parquet.Value) string { return is.Entity(string(v.ByteArray())) }
	case parquet.Int64:
		l.text = func(v parquet.Value) string { return strconv.FormatInt(v.Int64(), 10) }
	case parquet.Int32:
		l.text = func(v parquet.Value) string { return strconv.FormatInt(int64(v.Int32()), 10) }
	case parquet.FixedLenByteArray:
		if _, ok := logical.(*format.UUIDType); ok {
			l.text = func(v parquet.Value) string { return uuid.UUID(v.ByteArray()).String() }
		}
	}
	// An unsigned integer, a decimal or a date is not the number that its bits are.
	switch of := logical.(type) {
	case *format.IntType:
		if !of.IsSigned {
			l.text = nil
		}
	case *format.DecimalType, *format.DateType, *format.TimestampType, *format.TimeType, *format.JsonType,
		*format.BsonType, *format.Float16Type:
		l.text = nil
	}
	if l.text == nil {
		return spineError("key of %s: column %s has the type %s, want texts, signed integers or UUIDs", entity, l.name, t)
	}
	return nil
}

// times sets how the values of a column are times.
func (l *leaf) times(t parquet.Type) error {
	stamp, ok := logicalType(t).(*format.TimestampType)
	if !ok || t.Kind() != parquet.Int64 {
		return spineError("column %s has the type %s, want timestamps (INT64 with the logical type TIMESTAMP)",
			l.name, t)
	}
	l.time = func(v parquet.Value) (int64, bool) {
		micros := v.Int64()
		switch stamp.Unit.Value.(type) {
		case *format.MilliSeconds:
			if micros > math.MaxInt64/1000 || micros < math.MinInt64/1000 {
				return 0, false
			}
			micros *= 1000
		case *format.NanoSeconds:
			// Rounded down: facts have whole microseconds, so none of them lies between.
			down := micros / 1000
			if micros%1000 < 0 {
				down--
			}
			micros = down
		}
		return micros, earliest <= micros && micros <= latest
	}
	return nil
}

func logicalType(t parquet.Type) any {
	if l := t.LogicalType(); l != nil {
		return l.Value
	}
	return nil
}

// The times that rows may have: years 1 to 9999.
var (
	earliest = time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC).UnixMicro()
	latest   = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC).UnixMicro()
)

// rows returns the number of rows.
func (s *spine) rows() int64 { return s.parquet.NumRows() }

// entities passes the entity of each row to each, for one of the keys.
func (s *spine) entities(ctx context.Context, key int, each func(entity string)) error {
	number := int64(0)
	for _, group := range s.parquet.RowGroups() {
		r := s.reader(group, s.keys[key])
		err := func() error {
			for end := number + group.NumRows(); number < end; number++ {
				if number%batchRows == 0 && ctx.Err() != nil {
					return context.Cause(ctx)
				}
				entity, err := r.entity(number)
				if err != nil {
					return err
				}
				each(entity)
			}
			return nil
		}()
		if err = errors.Join(err, r.close()); err != nil {
			return err
		}
	}
	return nil
}

// keyed passes each row to each, in the order of the file.
func (s *spine) keyed(ctx context.Context, each func(number int64, k spineKey) error) error {
	number := int64(0)
	for _, group := range s.parquet.RowGroups() {
		err := s.group(ctx, number, group, each)
		if err != nil {
			return err
		}
		number += group.NumRows()
	}
	return nil
}

// group passes the rows of a row group to each.
func (s *spine) group(ctx context.Context, number int64, group parquet.RowGroup,
	each func(int64, spineKey) error) (err error) {
	var keys []*leafReader
	for _, key := range s.keys {
		keys = append(keys, s.reader(group, key))
	}
	at, known := s.reader(group, s.at), (*leafReader)(nil)
	if s.known.index >= 0 {
		known = s.reader(group, s.known)
	}
	defer func() {
		for _, r := range append(keys, at, known) {
			err = errors.Join(err, r.close())
		}
	}()
	k := spineKey{entities: make([]string, len(keys))}
	for range group.NumRows() {
		if number%batchRows == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for i, key := range keys {
			if k.entities[i], err = key.entity(number); err != nil {
				return err
			}
		}
		if k.at, err = at.moment(number); err != nil {
			return err
		}
		if k.at == forever {
			return spineError("row %d: column %s is null, want a time", number, s.at.name)
		}
		k.at -= s.lag
		k.known = k.at
		switch {
		case s.latest:
			k.known = forever
		case known != nil:
			moment, err := known.moment(number)
			if err != nil {
				return err
			}
			if moment != forever {
				k.known = moment
			}
		}
		if err := each(number, k); err != nil {
			return err
		}
		number++
	}
	return nil
}

// reader returns a reader of a column of a row group.
func (s *spine) reader(group parquet.RowGroup, l leaf) *leafReader {
	return &leafReader{leaf: l, pages: group.ColumnChunks()[l.index].Pages()}
}

// leafReader reads the values of one column of a row group.
type leafReader struct {
	leaf   leaf
	pages  parquet.Pages
	values parquet.ValueReader // of the current page
	buffer []parquet.Value
	left   []parquet.Value // in buffer
}

// next returns the next value.
func (r *leafReader) next(row int64) (parquet.Value, error) {
	if len(r.left) == 0 {
		if r.buffer == nil {
			r.buffer = make([]parquet.Value, 1024)
		}
		n, err := r.read(r.buffer)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("column %s ends before row %d", r.leaf.name, row)
			}
			return parquet.Value{}, spineError("%w", err)
		}
		r.left = r.buffer[:n]
	}
	v := r.left[0]
	r.left = r.left[1:]
	return v, nil
}

// entity returns the next value as an entity.
func (r *leafReader) entity(row int64) (string, error) {
	v, err := r.next(row)
	if err != nil {
		return "", err
	}
	if v.IsNull() {
		return "", spineError("row %d: column %s is null, want an entity: leave out such rows (the first row is 0)",
			row, r.leaf.name)
	}
	return r.leaf.text(v), nil
}

// moment returns the next value as a time, or forever if it is null.
func (r *leafReader) moment(row int64) (int64, error) {
	v, err := r.next(row)
	if err != nil || v.IsNull() {
		return forever, err
	}
	micros, ok := r.leaf.time(v)
	if !ok {
		return 0, spineError("row %d: column %s: the time %d is not in the years 1 to 9999", row, r.leaf.name, v.Int64())
	}
	return micros, nil
}

// read reads at least one value, or returns io.EOF at the end of the row group.
func (r *leafReader) read(values []parquet.Value) (n int, err error) {
	defer damaged(&err, "column "+r.leaf.name)
	for {
		if r.values == nil {
			page, err := r.pages.ReadPage()
			if err != nil {
				if errors.Is(err, io.EOF) {
					return 0, io.EOF
				}
				return 0, fmt.Errorf("column %s: %w", r.leaf.name, err)
			}
			r.values = page.Values()
		}
		n, err := r.values.ReadValues(values)
		if errors.Is(err, io.EOF) {
			r.values, err = nil, nil
		}
		if err != nil {
			return 0, fmt.Errorf("column %s: %w", r.leaf.name, err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// close closes the reader. A nil reader is none.
func (r *leafReader) close() error {
	if r == nil {
		return nil
	}
	return r.pages.Close()
}
