package clickhouse_test

import (
	"errors"
	"math"
	"strconv"
	"testing"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
)

// TestColumns: an answer of many blocks arrives in columns, and an error in its middle is returned.
func TestColumns(t *testing.T) {
	t.Parallel()
	s := clickhousetest.OpenStore(t)
	const rows = 200_000
	var n []int64
	var small []int32
	var flags []uint8
	var wide [][4]uint64
	var texts clickhouse.Texts
	columns := []any{&n, &small, &flags, &wide, &texts}
	const query = "SELECT toInt64(number) - 1, toInt32(-number), toUInt8(number % 2), -toInt256(number), " +
		"concat('Zürich ', toString(number)) FROM numbers(200000)"
	next := int64(0)
	err := s.Columns(t.Context(), query, columns, func(block int) error {
		for i := range block {
			word := uint64(0)
			if next > 0 {
				word = math.MaxUint64
			}
			if n[i] != next-1 || small[i] != int32(-next) || int64(flags[i]) != next%2 ||
				wide[i] != [4]uint64{uint64(-next), word, word, word} || texts.At(i) != "Zürich "+strconv.FormatInt(next, 10) {
				t.Fatalf("row %d is %d %d %d %v %q", next, n[i], small[i], flags[i], wide[i], texts.At(i))
			}
			next++
		}
		return nil
	})
	if err != nil || next != rows {
		t.Fatalf("%d rows: %v", next, err)
	}
	if err := s.Columns(t.Context(), "SELECT toInt64(1) WHERE 0", []any{&n}, func(int) error { return errors.New("called") }); err != nil {
		t.Errorf("no rows: %v", err)
	}
	failed := (*clickhouse.Error)(nil)
	err = s.Columns(t.Context(), "SELECT toInt64(throwIf(number = 5000000, 'boom')) FROM numbers(5000001)", []any{&n},
		func(int) error { return nil })
	if !errors.As(err, &failed) || failed.Code != 395 {
		t.Errorf("an error after the first block: %v", err)
	}
	if err := s.Columns(t.Context(), "SELECT 1 AS one", []any{&n}, func(int) error { return nil }); err == nil {
		t.Error("decoded UInt8 into int64")
	}
	stop := errors.New("stop")
	if err := s.Columns(t.Context(), query, columns, func(int) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error of the caller: %v", err)
	}
	if err := s.Columns(t.Context(), "SELECT 1", []any{new(string)}, nil); err == nil {
		t.Error("accepted *string")
	}
}
