package online

import (
	"cmp"
	"encoding/hex"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// series is the current facts of an entity in a source, sorted by their stamps.
type series struct {
	rows []uint64    // see layout
	keys []byte      // packed keys of the rows, in any order; see packKey
	wide []exact.Int // numbers that do not fit in 64 bits; those of replaced rows remain until none is used
	dead int         // bytes of keys that belong to no row
	gone []uint64    // sorted hashes of the stamps of facts that were dropped; see trim.go
}

// seriesBytes is what the headers of a series cost.
const seriesBytes = 112

// size returns the bytes of a series.
func (s *series) size() int64 {
	return seriesBytes + int64(8*cap(s.rows)+cap(s.keys)+32*cap(s.wide)+8*cap(s.gone))
}

// apply adds a version of a fact, replaces the fact's previous version, or removes it. It returns
// by how many bytes the series has grown.
func (s *series) apply(l *layout, t *texts, f *features.Fact) (grown int64) {
	before := s.size()
	at := f.At.UnixMicro()
	i, found := s.find(l, at, f.Key)
	switch {
	case f.Retracted && found:
		s.remove(l, i)
	case f.Retracted:
		s.forget(at, f.Key)
	case found:
		s.replace(l, t, i, f)
	default:
		s.forget(at, f.Key) // a new version of a fact that was dropped
		s.insert(l, t, i, f)
	}
	return s.size() - before
}

// find returns the index of the row with a stamp, or where it would be.
func (s *series) find(l *layout, at int64, key string) (index int, found bool) {
	n := len(s.rows) / l.stride
	compare := func(i int) int {
		row := s.rows[i*l.stride:]
		if c := cmp.Compare(int64(row[wordAt]), at); c != 0 {
			return c
		}
		var space [128]byte
		return cmp.Compare(string(unpackKey(space[:0], s.key(row))), key)
	}
	// Facts mostly arrive in order.
	if n == 0 || compare(n-1) < 0 {
		return n, false
	}
	lo, hi := 0, n
	for lo < hi {
		mid := (lo + hi) / 2
		switch c := compare(mid); {
		case c == 0:
			return mid, true
		case c < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return lo, false
}

// key returns the packed key of a row.
func (s *series) key(row []uint64) []byte {
	offset, length := row[wordKey]>>keyBits, row[wordKey]&(1<<keyBits-1)
	return s.keys[offset : offset+length]
}

// insert adds a row before the i-th one.
func (s *series) insert(l *layout, t *texts, i int, f *features.Fact) {
	if len(s.rows)+l.stride > cap(s.rows) {
		// Slowly, because most entities have few facts.
		n := len(s.rows) / l.stride
		grown := make([]uint64, len(s.rows), (n+max(2, n/4))*l.stride)
		copy(grown, s.rows)
		s.rows = grown
	}
	offset := len(s.keys)
	if offset+len(f.Key)+1 > cap(s.keys) {
		grown := make([]byte, offset, offset+max(2*(len(f.Key)+1), offset/4))
		copy(grown, s.keys)
		s.keys = grown
	}
	s.keys = packKey(s.keys, f.Key)
	at := len(s.rows)
	s.rows = l.encode(s.rows, t, &s.wide, f)
	s.rows[at+wordKey] = uint64(offset)<<keyBits | uint64(len(s.keys)-offset)
	if to := i * l.stride; to < at {
		row := make([]uint64, l.stride)
		copy(row, s.rows[at:])
		copy(s.rows[to+l.stride:], s.rows[to:at])
		copy(s.rows[to:], row)
	}
}

// replace replaces the values of the i-th row.
func (s *series) replace(l *layout, t *texts, i int, f *features.Fact) {
	row := s.rows[i*l.stride : (i+1)*l.stride]
	key := row[wordKey]
	copy(row, l.encode(nil, t, &s.wide, f))
	row[wordKey] = key
	s.narrow(l)
}

// remove removes the i-th row.
func (s *series) remove(l *layout, i int) {
	s.dead += len(s.key(s.rows[i*l.stride:]))
	s.rows = slices.Delete(s.rows, i*l.stride, (i+1)*l.stride)
	s.narrow(l)
	s.compact(l)
}

// narrow releases wide numbers once no row uses one.
func (s *series) narrow(l *layout) {
	if len(s.wide) == 0 {
		return
	}
	used := 0
	for i := 0; i < len(s.rows); i += l.stride {
		used += countWide(s.rows[i+wordFlags])
	}
	if used == 0 {
		s.wide = nil
		return
	}
	if len(s.wide) < 2*used+16 {
		return
	}
	// Most of them belong to replaced rows.
	packed := make([]exact.Int, 0, used)
	for i := 0; i < len(s.rows); i += l.stride {
		row := s.rows[i : i+l.stride]
		for _, c := range l.columns {
			if row[wordFlags]&c.wide != 0 {
				packed = append(packed, s.wide[row[c.word]])
				row[c.word] = uint64(len(packed) - 1)
			}
		}
	}
	s.wide = packed
}

// compact drops unused keys once they are the greater part.
func (s *series) compact(l *layout) {
	if s.dead < 64 || s.dead < len(s.keys)/2 {
		return
	}
	keys := make([]byte, 0, len(s.keys)-s.dead)
	for i := 0; i < len(s.rows); i += l.stride {
		key, offset := s.key(s.rows[i:]), len(keys)
		keys = append(keys, key...)
		s.rows[i+wordKey] = uint64(offset)<<keyBits | uint64(len(key))
	}
	s.keys, s.dead = keys, 0
}

// Forms of a packed key: as it is, and the 16 bytes of a UUID followed by the rest.
const (
	plainKey = iota
	uuidKey
)

const uuidChars = 36

// packKey appends a key in a form that is short for ids.
func packKey(dst []byte, key string) []byte {
	if len(key) >= uuidChars {
		var id [16]byte
		if parseUUID(&id, key[:uuidChars]) {
			return append(append(append(dst, uuidKey), id[:]...), key[uuidChars:]...)
		}
	}
	return append(append(dst, plainKey), key...)
}

// isPacked reports whether bytes are a packed key.
func isPacked(b []byte) bool {
	return len(b) > 0 && (b[0] == plainKey || b[0] == uuidKey && len(b) > 16)
}

// unpackKey appends the key of a packed one.
func unpackKey(dst, packed []byte) []byte {
	if packed[0] == plainKey {
		return append(dst, packed[1:]...)
	}
	id := packed[1:17]
	dst = append(hex.AppendEncode(dst, id[:4]), '-')
	dst = append(hex.AppendEncode(dst, id[4:6]), '-')
	dst = append(hex.AppendEncode(dst, id[6:8]), '-')
	dst = append(hex.AppendEncode(dst, id[8:10]), '-')
	return append(hex.AppendEncode(dst, id[10:]), packed[17:]...)
}

// parseUUID parses a UUID in its canonical form with lower-case digits.
func parseUUID(id *[16]byte, s string) bool {
	digit := func(c byte) int {
		switch {
		case '0' <= c && c <= '9':
			return int(c - '0')
		case 'a' <= c && c <= 'f':
			return int(c-'a') + 10
		}
		return -1
	}
	n := 0
	for i := 0; i < uuidChars; {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if s[i] != '-' {
				return false
			}
			i++
			continue
		}
		hi, lo := digit(s[i]), digit(s[i+1])
		if hi < 0 || lo < 0 {
			return false
		}
		id[n] = byte(hi<<4 | lo)
		n++
		i += 2
	}
	return true
}

// hashStamp returns the hash of a fact's stamp.
func hashStamp(at int64, key string) uint64 {
	d := xxhash.NewWithSeed(uint64(at))
	_, _ = d.WriteString(key)
	return d.Sum64()
}
