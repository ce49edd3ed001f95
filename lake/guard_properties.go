package lake

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/apache/iceberg-go"
)

// Limits of a property of a landed table. Every commit writes all properties again, so large ones
// would slow down every landing.
const (
	maxPropertyKey   = 1 << 10
	maxPropertyValue = 1 << 20
)

// choices are the properties that every writer of the table must support, with their allowed
// values.
var choices = map[string][]string{
	"write.format.default":                   {"parquet"},
	"write.delete.format.default":            {"parquet"},
	"write.parquet.compression-codec":        codecs,
	"write.delete.parquet.compression-codec": codecs,
	"write.metadata.compression-codec":       {"none", "gzip"},
}

// codecs are the compression codecs that landers and other engines support.
var codecs = []string{"uncompressed", "none", "snappy", "gzip", "zstd", "lz4", "lz4_raw", "brotli"}

// checkPropertyValues refuses new or changed property values on which landers or other engines
// would fail. Unchanged values pass: refusing them would block every other change.
func checkPropertyValues(before, after iceberg.Properties) error {
	for key, value := range after {
		if was, had := before[key]; had && was == value {
			continue
		}
		if err := checkPropertyValue(key, value); err != nil {
			if len(key) > 100 {
				key = strings.ToValidUTF8(key[:100], "") + "…"
			}
			return fmt.Errorf("set-properties: %q: landers write this table: %w", key, err)
		}
	}
	return nil
}

// checkPropertyValue checks one property.
func checkPropertyValue(key, value string) error {
	switch {
	case key == "":
		return errors.New("a property needs a name")
	case len(key) > maxPropertyKey:
		return fmt.Errorf("its name has %d bytes, and the limit is %d", len(key), maxPropertyKey)
	case len(value) > maxPropertyValue:
		return fmt.Errorf("its value has %d bytes, and the limit is %d", len(value), maxPropertyValue)
	case key == "schema.name-mapping.default":
		var mapping iceberg.NameMapping
		if err := json.Unmarshal([]byte(value), &mapping); err != nil {
			return fmt.Errorf("it is not a name mapping: %w", err)
		}
		return nil
	}
	if among, ok := choices[key]; ok {
		if !slices.Contains(among, strings.ToLower(value)) {
			return fmt.Errorf("%q is not one of %s", value, strings.Join(among, ", "))
		}
		return nil
	}
	minimum, ok := minimumOf(key)
	if !ok {
		return nil
	}
	if n, err := strconv.ParseInt(value, 10, 64); err != nil || n < minimum {
		return fmt.Errorf("%q is not an integer of at least %d", value, minimum)
	}
	return nil
}

// minimumOf returns the minimum of an Iceberg property that is a size, a number or a duration,
// recognised by its prefix and suffix.
func minimumOf(key string) (minimum int64, ok bool) {
	prefixes := []string{"write.", "read.", "commit.", "history."}
	if !slices.ContainsFunc(prefixes, func(of string) bool { return strings.HasPrefix(key, of) }) {
		return 0, false
	}
	for suffix, minimum := range map[string]int64{
		"-bytes": 1, "-row-limit": 1, "-rows": 1, "-to-keep": 1, "-to-merge": 1, "-versions-max": 1,
		"-ms": 0, "num-retries": 0, "status-checks": 0,
	} {
		if strings.HasSuffix(key, suffix) {
			return minimum, true
		}
	}
	return 0, false
}
