package clickhouse_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"

	chproto "github.com/ClickHouse/ch-go/proto"

	"github.com/millrace/millrace/internal/clickhouse"
)

// nativeColumns are the columns of the blocks of these tests.
type nativeColumns struct {
	n     []int64
	small []int32
	flags []uint8
	wide  [][4]uint64
	texts clickhouse.Texts
}

func (c *nativeColumns) all() []any { return []any{&c.n, &c.small, &c.flags, &c.wide, &c.texts} }

// nativeBlock encodes a block with ch-go.
func nativeBlock(t testing.TB, rows int, text func(int) string) []byte {
	t.Helper()
	var n chproto.ColInt64
	var small chproto.ColInt32
	var flags chproto.ColUInt8
	var wide chproto.ColInt256
	var texts chproto.ColStr
	for i := range rows {
		n.Append(int64(i) - 5)
		small.Append(int32(-i))
		flags.Append(uint8(i))
		wide.Append(chproto.Int256{
			Low: chproto.UInt128{Low: uint64(i), High: 2}, High: chproto.UInt128{Low: 3, High: math.MaxUint64}})
		texts.Append(text(i))
	}
	var b chproto.Buffer
	err := chproto.Block{Rows: rows, Columns: 5}.EncodeRawBlock(&b, 0, chproto.Input{{Name: "n", Data: n},
		{Name: "small", Data: small}, {Name: "flags", Data: flags}, {Name: "wide", Data: wide}, {Name: "texts", Data: texts}})
	if err != nil {
		t.Fatal(err)
	}
	return b.Buf
}

// TestBlocks: blocks that ch-go encodes are decoded, in pieces of any size and with texts of any length.
func TestBlocks(t *testing.T) {
	t.Parallel()
	text := func(i int) string { return strings.Repeat(fmt.Sprint("é", i, ";"), []int{0, 1, 12, 40, 90_000}[i%5]) }
	first, second := nativeBlock(t, 33, text), nativeBlock(t, 1, text)
	for name, from := range map[string]io.Reader{
		"whole":         bytes.NewReader(slices.Concat(first, second)),
		"byte by byte":  &pieces{rest: slices.Concat(first, second), size: 1},
		"odd pieces":    &pieces{rest: slices.Concat(first, second), size: 1001},
		"larger pieces": &pieces{rest: slices.Concat(first, second), size: 300_000},
	} {
		var c nativeColumns
		next := clickhouse.Blocks(from)
		for _, rows := range []int{33, 1} {
			got, err := next(c.all())
			lengths := []int{got, len(c.n), len(c.small), len(c.flags), len(c.wide), len(c.texts.Ends)}
			if err != nil || slices.ContainsFunc(lengths, func(n int) bool { return n != rows }) {
				t.Fatalf("%s: %d rows, want %d: %v", name, got, rows, err)
			}
			for i := range rows {
				if c.n[i] != int64(i)-5 || c.small[i] != int32(-i) || c.flags[i] != uint8(i) ||
					c.wide[i] != [4]uint64{uint64(i), 2, 3, math.MaxUint64} || c.texts.At(i) != text(i) {
					t.Errorf("%s: row %d is %d %d %d %v and a text of %d bytes", name, i, c.n[i], c.small[i], c.flags[i],
						c.wide[i], len(c.texts.At(i)))
				}
			}
		}
		if _, err := next(c.all()); !errors.Is(err, io.EOF) {
			t.Errorf("%s: after the last block: %v", name, err)
		}
	}
}

// pieces returns a few bytes at a time.
type pieces struct {
	rest []byte
	size int
}

func (p *pieces) Read(to []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(to[:min(len(to), p.size)], p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// TestBlocksRefused: what is not a block of these columns is an error that says why.
func TestBlocksRefused(t *testing.T) {
	t.Parallel()
	block := nativeBlock(t, 3, func(int) string { return "text" })
	for name, tt := range map[string]struct {
		block []byte
		want  string
	}{
		"another number of columns":     {append([]byte{4}, block[1:]...), "4 columns, want 5"},
		"too many rows":                 {append([]byte{5, 0xff, 0xff, 0xff, 0xff, 0x7f}, block[2:]...), "number of rows"},
		"another type":                  {bytes.Replace(block, []byte("Int64"), []byte("Int63"), 1), `"n" has the type "Int63", want Int64`},
		"a name longer than all names":  {append([]byte{5, 3, 0xff, 0xff, 0xff, 0x7f}, block[3:]...), "name of column 0"},
		"the end within a number":       {block[:bytes.Index(block, []byte("Int64"))+9], "unexpected EOF"},
		"the end within a text":         {block[:len(block)-1], "unexpected EOF"},
		"the end within the head":       {block[:1], "unexpected EOF"},
		"a text longer than the answer": {append(block[:len(block)-5:len(block)-5], 0xff, 0xff, 0x7f, 'x'), "unexpected EOF"},
	} {
		var c nativeColumns
		_, err := clickhouse.Blocks(bytes.NewReader(tt.block))(c.all())
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// FuzzBlocks: any bytes decode to what ch-go decodes, or to an error.
func FuzzBlocks(f *testing.F) {
	f.Add(nativeBlock(f, 3, func(i int) string { return strings.Repeat("x", i*100) }))
	f.Add(nativeBlock(f, 0, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		var got nativeColumns
		rows, err := clickhouse.Blocks(bytes.NewReader(data))(got.all())
		if err != nil || rows == 0 {
			return
		}
		var n chproto.ColInt64
		var small chproto.ColInt32
		var flags chproto.ColUInt8
		var wide chproto.ColInt256
		var texts chproto.ColStr
		var block chproto.Block
		err = block.DecodeRawBlock(chproto.NewReader(bytes.NewReader(data)), 0, chproto.Results{{Data: &n}, {Data: &small},
			{Data: &flags}, {Data: &wide}, {Data: &texts}})
		if err != nil {
			t.Fatalf("ch-go does not decode it: %v", err)
		}
		if block.Rows != rows || !slices.Equal(got.n, n) || !slices.Equal(got.small, small) ||
			!slices.Equal(got.flags, flags) {
			t.Fatalf("%d rows, ch-go has %d", rows, block.Rows)
		}
		for i := range rows {
			w := wide[i]
			if got.texts.At(i) != texts.Row(i) || got.wide[i] != [4]uint64{w.Low.Low, w.Low.High, w.High.Low, w.High.High} {
				t.Fatalf("row %d is %v %q, ch-go has %v %q", i, got.wide[i], got.texts.At(i), w, texts.Row(i))
			}
		}
	})
}
