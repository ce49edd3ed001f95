package pages

import (
	"bytes"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/millrace/millrace/lake/columnar"
)

// Bodies returns the pages of the columns before compression.
func Bodies(tb testing.TB, columns *columnar.Columns) (bodies [][]byte) {
	tb.Helper()
	w, err := New(columns.Fields())
	if err != nil {
		tb.Fatal(err)
	}
	w.Begin(io.Discard)
	if err := w.Write(columns); err != nil {
		tb.Fatal(err)
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		tb.Fatal(err)
	}
	defer z.Close()
	for _, c := range w.chunks {
		begin := bytes.Index(c.pages, []byte{0x28, 0xb5, 0x2f, 0xfd}) // behind the header
		body, err := z.DecodeAll(c.pages[begin:], nil)
		if err != nil {
			tb.Fatal(err)
		}
		bodies = append(bodies, body)
	}
	return bodies
}
