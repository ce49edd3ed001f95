package lake

import (
	"strings"
	"testing"

	"github.com/apache/iceberg-go"
)

// Properties on which landers or other engines would fail are refused by name. Unchanged and
// unrelated properties pass.
func TestPropertiesOfLandedTables(t *testing.T) {
	t.Parallel()
	for key, values := range map[string][]string{
		"schema.name-mapping.default":          {"[garbage", "1", `"text"`},
		"write.format.default":                 {"orc", "avro", ""},
		"write.parquet.compression-codec":      {"nope", "lzo"},
		"write.metadata.compression-codec":     {"zstd"},
		"write.parquet.row-group-size-bytes":   {"-1", "0", "x", "1e6"},
		"write.target-file-size-bytes":         {"-5", "many"},
		"write.metadata.previous-versions-max": {"-5"},
		"history.expire.max-snapshot-age-ms":   {"-1"},
		"history.expire.min-snapshots-to-keep": {"0"},
		"commit.retry.num-retries":             {"x"},
		"":                                     {"v"},
		strings.Repeat("k", 100_000):           {"v"},
		"note":                                 {strings.Repeat("v", 2<<20)},
	} {
		for _, value := range values {
			is := iceberg.Properties{key: value}
			err := checkPropertyValues(nil, is)
			if err == nil || !strings.Contains(err.Error(), key[:min(len(key), 50)]) || len(err.Error()) > 1000 {
				t.Errorf("%.50s = %.50s: %.300v", key, value, err)
			}
			if err := checkPropertyValues(is, is); err != nil {
				t.Errorf("it was there before: %v", err)
			}
		}
	}
	err := checkPropertyValues(nil, iceberg.Properties{
		"owner": "anna", "write.parquet.compression-codec": "ZSTD", "write.target-file-size-bytes": "1000000", "gc.enabled": "false",
		"schema.name-mapping.default": `[{"field-id": 1, "names": ["a"]}]`, "write.parquet.bloom-filter-enabled.column.id": "true",
	})
	if err != nil {
		t.Error(err)
	}
}
