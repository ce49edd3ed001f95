package datafile

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
)

// WithAvroNames returns the table with partition field names that are valid in Avro, and thus in
// manifests. It uses the same names as Iceberg's Java library. Readers identify these fields by id,
// and the catalog keeps the original names, because commits do not send them.
//
// A table whose names are valid is returned unchanged. So is one in which two fields would get the
// same name, which Java cannot write either.
func WithAvroNames(t *table.Table, cat table.CatalogIO) *table.Table {
	if specs := t.Metadata().PartitionSpecs(); !hasOtherAvroNames(specs) {
		return t
	}
	m, err := renamePartitions(t.Metadata())
	if err != nil {
		return t // writing the table will report the reason
	}
	return table.New(t.Identifier(), m, t.MetadataLocation(), t.FS, cat)
}

// hasOtherAvroNames reports whether any partition field has a different name in Avro.
func hasOtherAvroNames(specs []iceberg.PartitionSpec) bool {
	for _, s := range specs {
		var names []string
		for _, f := range s.Fields() {
			names = append(names, f.Name)
		}
		for i, name := range avroNames(names) {
			if name != names[i] {
				return true
			}
		}
	}
	return false
}

// avroNames returns valid Avro names, or the names unchanged if two would become equal.
func avroNames(names []string) []string {
	fields := make([]iceberg.NestedField, len(names))
	for i, name := range names {
		fields[i] = iceberg.NestedField{ID: i + 1, Name: name, Type: iceberg.PrimitiveTypes.String}
	}
	// iceberg-go sanitizes column names, so wrap the names in a schema.
	sanitized, err := iceberg.SanitizeColumnNames(iceberg.NewSchema(0, fields...))
	if err != nil {
		return names
	}
	out := make([]string, len(names))
	for i, f := range sanitized.Fields() {
		out[i] = ascii(f.Name)
	}
	return out
}

// ascii escapes non-ASCII letters in the way in which Java escapes other characters. Java accepts
// these letters in names, but the Avro library used here does not.
func ascii(name string) string {
	var b strings.Builder
	for _, unit := range utf16.Encode([]rune(name)) {
		if unit < utf8.RuneSelf {
			b.WriteByte(byte(unit))
		} else {
			fmt.Fprintf(&b, "_x%X", unit)
		}
	}
	return b.String()
}

// renamePartitions rewrites the partition specs in the JSON form of the metadata, because
// iceberg-go's type is immutable.
func renamePartitions(m table.Metadata) (table.Metadata, error) {
	fields, err := fieldsOfMetadata(m)
	if err != nil {
		return nil, err
	}
	var specs []struct {
		ID     int                          `json:"spec-id"`
		Fields []map[string]json.RawMessage `json:"fields"`
	}
	if err := json.Unmarshal(fields["partition-specs"], &specs); err != nil {
		return nil, fmt.Errorf("rewrite the table's partition specs: %w", err)
	}
	// Only the names change: all other members of a field are kept as raw JSON.
	for _, s := range specs {
		names := make([]string, len(s.Fields))
		for i, f := range s.Fields {
			if err := json.Unmarshal(f["name"], &names[i]); err != nil {
				return nil, fmt.Errorf("rewrite the table's partition specs: %w", err)
			}
		}
		for i, name := range avroNames(names) {
			if s.Fields[i]["name"], err = json.Marshal(name); err != nil {
				return nil, fmt.Errorf("rewrite the table's partition specs: %w", err)
			}
		}
	}
	if fields["partition-specs"], err = json.Marshal(specs); err != nil {
		return nil, fmt.Errorf("rewrite the table's partition specs: %w", err)
	}
	return metadataOfFields(fields)
}

// fieldsOfMetadata returns the metadata's JSON fields, for changes that iceberg-go's immutable type
// does not allow.
func fieldsOfMetadata(m table.Metadata) (map[string]json.RawMessage, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode the table's metadata: %w", err)
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, fmt.Errorf("encode the table's metadata: %w", err)
	}
	return fields, nil
}

// metadataOfFields is the inverse of fieldsOfMetadata.
func metadataOfFields(fields map[string]json.RawMessage) (table.Metadata, error) {
	b, err := json.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("encode the table's metadata: %w", err)
	}
	m, err := table.ParseMetadataBytes(b)
	if err != nil {
		return nil, fmt.Errorf("read the table's metadata: %w", err)
	}
	return m, nil
}
