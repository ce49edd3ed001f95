package feast

import (
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// TestKeys checks the types of columns that can be keys: which names of entities their values are.
func TestKeys(t *testing.T) {
	t.Parallel()
	dictionary := func(index arrow.DataType) arrow.DataType {
		return &arrow.DictionaryType{IndexType: index, ValueType: arrow.BinaryTypes.String}
	}
	for name, c := range map[string]struct {
		kind   arrow.DataType
		values string // as JSON
		want   string // empty: refused
	}{
		"texts":                {arrow.BinaryTypes.String, `["a", null, ""]`, "a|null|"},
		"large texts":          {arrow.BinaryTypes.LargeString, `["\u00fc"]`, "ü"},
		"integers":             {arrow.PrimitiveTypes.Int64, `[-9223372036854775808, null]`, "-9223372036854775808|null"},
		"small integers":       {arrow.PrimitiveTypes.Int16, `[-7, null, 300]`, "-7|null|300"},
		"smallest integers":    {arrow.PrimitiveTypes.Int8, `[-7]`, "-7"},
		"unsigned integers":    {arrow.PrimitiveTypes.Uint64, `[18446744073709551615]`, "18446744073709551615"},
		"unsigned 32 bits":     {arrow.PrimitiveTypes.Uint32, `[4294967295]`, "4294967295"},
		"unsigned 16 bits":     {arrow.PrimitiveTypes.Uint16, `[65535]`, "65535"},
		"unsigned 8 bits":      {arrow.PrimitiveTypes.Uint8, `[255]`, "255"},
		"a category":           {dictionary(arrow.PrimitiveTypes.Int8), `["a", null, "a"]`, "a|null|a"},
		"integers with a NaN":  {arrow.PrimitiveTypes.Float64, `[1, null]`, ""},
		"true and false":       {arrow.FixedWidthTypes.Boolean, `[true]`, ""},
		"dates":                {arrow.FixedWidthTypes.Date32, `["2026-01-01"]`, ""},
		"a column of no value": {arrow.Null, `[null]`, ""},
	} {
		from, _, err := array.FromJSON(memory.DefaultAllocator, c.kind, strings.NewReader(c.values))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		checkKeys(t, name, from, c.want)
	}
	texts, _, err := array.FromJSON(memory.DefaultAllocator, arrow.BinaryTypes.String, strings.NewReader(`["a", null]`))
	if err != nil {
		t.Fatal(err)
	}
	indices, _, err := array.FromJSON(memory.DefaultAllocator, arrow.PrimitiveTypes.Int8, strings.NewReader(`[1, 0, null]`))
	if err != nil {
		t.Fatal(err)
	}
	kind, _ := dictionary(arrow.PrimitiveTypes.Int8).(*arrow.DictionaryType)
	checkKeys(t, "a category that is null", array.NewDictionaryArray(kind, indices, texts), "null|a|null")
}

// checkKeys checks the keys of a column, with null for those that are missing.
func checkKeys(t *testing.T, name string, from arrow.Array, want string) {
	t.Helper()
	got, err := keys(from)
	if want == "" {
		if err == nil || !strings.Contains(err.Error(), "want texts or integers") {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	texts, _ := got.(*array.String)
	all := make([]string, texts.Len())
	for i := range all {
		if all[i] = texts.Value(i); texts.IsNull(i) {
			all[i] = "null"
		}
	}
	if joined := strings.Join(all, "|"); joined != want {
		t.Errorf("%s: %s, want %s", name, joined, want)
	}
}
