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

// WithAvroNames is the table with its partition fields called as they may be called in manifests, which are Avro: as
// Iceberg's Java library calls them there. Readers go by the ids of these fields, and the catalog keeps the names that
// they have, as a commit does not send them. A table without such names is returned as it is. So are fields that would
// share a name, which Java cannot write either.
func WithAvroNames(t *table.Table, cat table.CatalogIO) *table.Table {
	if specs := t.Metadata().PartitionSpecs(); !hasOtherAvroNames(specs) {
		return t
	}
	m, err := renamePartitions(t.Metadata())
	if err != nil {
		return t // writing it returns the reason
	}
	return table.New(t.Identifier(), m, t.MetadataLocation(), t.FS, cat)
}

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

// avroNames are names as Avro has them, or the same where two would become one.
func avroNames(names []string) []string {
	fields := make([]iceberg.NestedField, len(names))
	for i, name := range names {
		fields[i] = iceberg.NestedField{ID: i + 1, Name: name, Type: iceberg.PrimitiveTypes.String}
	}
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

// ascii writes letters that Java takes for a name, and our library for Avro does not, as Java writes those that it does
// not take.
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
		return nil, fmt.Errorf("the table's partition specs: %w", err)
	}
	for _, s := range specs {
		names := make([]string, len(s.Fields))
		for i, f := range s.Fields {
			if err := json.Unmarshal(f["name"], &names[i]); err != nil {
				return nil, fmt.Errorf("the table's partition specs: %w", err)
			}
		}
		for i, name := range avroNames(names) {
			if s.Fields[i]["name"], err = json.Marshal(name); err != nil {
				return nil, fmt.Errorf("the table's partition specs: %w", err)
			}
		}
	}
	if fields["partition-specs"], err = json.Marshal(specs); err != nil {
		return nil, fmt.Errorf("the table's partition specs: %w", err)
	}
	return metadataOfFields(fields)
}

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
