package columnar

import (
	"errors"
	"math"
	"testing"

	"github.com/apache/iceberg-go"
)

// An overflow is detected, and removed together with its row.
func TestFull(t *testing.T) {
	t.Parallel()
	c, err := New([]Field{{Name: "a", Type: iceberg.PrimitiveTypes.Binary}, {Name: "b", Type: List{Field{Name: "element", Type: iceberg.PrimitiveTypes.Bool}}}})
	if err != nil {
		t.Fatal(err)
	}
	a, b := c.Column(0).(*Bytes), c.Column(1).(*Lists)
	a.content = make([]byte, math.MaxInt32) // never touched, so that it takes no memory
	a.offsets = append(a.offsets, math.MaxInt32)
	b.Append()
	if err := c.Err(); err != nil {
		t.Fatal(err)
	}
	for _, add := range []func(){
		func() { a.AppendString("x"); b.Append() },
		func() { a.Append(nil); b.append(math.MaxInt32 + 1) },
	} {
		add()
		if err := c.Err(); !errors.Is(err, ErrFull) || c.Rows() != 2 {
			t.Errorf("%d rows: %v", c.Rows(), err)
		}
		c.Rollback(1)
		if err := c.Err(); err != nil || c.Rows() != 1 {
			t.Errorf("%d rows: %v", c.Rows(), err)
		}
	}
}
