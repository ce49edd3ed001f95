package engines

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Column is a part of a row that every engine can write as text: a column, a field of a struct, or
// the elements of a list. Engines print structs, lists and maps in different ways, so those are
// compared by their parts.
type Column struct {
	// Path is the names from the top-level column to the part. The JSON names are those that sum.py
	// reads.
	Path []string `json:"path"`
	// Kind is text, number, time, decimal, binary or bool. It is size or elements for parts of a
	// list, and entries for the number of entries of a map.
	Kind string `json:"kind"`
	// Element is the field of a list's elements that is read. It is empty for the elements
	// themselves.
	Element string `json:"element"`
	Scale   int    `json:"scale"` // of a decimal
}

// nested reports whether the column is in a struct, or is derived from a list or a map. If the
// struct is null, some engines return zero values, so zero and null are equal there.
func (c Column) nested() bool {
	return len(c.Path) > 1 || c.Kind == "size" || c.Kind == "entries" || c.Kind == "elements"
}

// zero returns the text that stands for null. For a top-level column, it is one that no other kind
// of value has, and that is unlikely as a text. For a nested one, it is the text of the zero value:
// see nested.
func (c Column) zero() string {
	if !c.nested() {
		return "~"
	}
	switch c.Kind {
	case "number", "time", "size", "entries":
		return "0"
	case "bool":
		return "false"
	case "decimal":
		return "0." + strings.Repeat("0", c.Scale)
	}
	return ""
}

// ColumnsOf returns the columns of a schema, as the REST catalog describes it in JSON. A type
// without a common text form is an error, so that a new type is not left out by mistake.
func ColumnsOf(schema json.RawMessage) ([]Column, error) {
	var s struct{ Fields []field }
	if err := json.Unmarshal(schema, &s); err != nil {
		return nil, err
	}
	return columnsOf(nil, s.Fields)
}

// field is a field of a schema. Type is either a JSON string, the name of a primitive type, or an
// object, a nestedType.
type field struct {
	Name string
	Type json.RawMessage
}

// nestedType is a struct, a list or a map. Fields belong to a struct, and Element to a list.
type nestedType struct {
	Type    string
	Fields  []field
	Element json.RawMessage
}

// columnsOf returns the columns of the struct at a path. Structs are flattened. A list has a column
// for its size and perhaps some for its elements. Of a map, only the number of entries is read,
// because its order depends on the engine.
func columnsOf(at []string, fields []field) (all []Column, err error) {
	for _, f := range fields {
		path := append(slices.Clone(at), f.Name)
		var name string
		if json.Unmarshal(f.Type, &name) == nil {
			c := Column{Path: path}
			if c.Kind, c.Scale, err = kindOf(name); err != nil {
				return nil, fmt.Errorf("column %s: %w", strings.Join(path, "."), err)
			}
			all = append(all, c)
			continue
		}
		var t nestedType
		if err := json.Unmarshal(f.Type, &t); err != nil {
			return nil, err
		}
		switch t.Type {
		case "struct":
			inner, err := columnsOf(path, t.Fields)
			if err != nil {
				return nil, err
			}
			all = append(all, inner...)
		case "list":
			all = append(all, Column{Path: path, Kind: "size"})
			all = append(all, elementsOf(path, t.Element)...)
		case "map":
			all = append(all, Column{Path: path, Kind: "entries"})
		}
	}
	return all, nil
}

// elementsOf returns the text columns of a list: its elements, or fields of its structs. Only
// strings are read: the engines join them to one text without a conversion.
func elementsOf(path []string, element json.RawMessage) (all []Column) {
	var name string
	if json.Unmarshal(element, &name) == nil {
		if name == "string" {
			all = append(all, Column{Path: path, Kind: "elements"})
		}
		return all
	}
	var t nestedType
	_ = json.Unmarshal(element, &t) // the parts are examined below
	for _, f := range t.Fields {
		if json.Unmarshal(f.Type, &name) == nil && name == "string" {
			all = append(all, Column{Path: path, Kind: "elements", Element: f.Name})
		}
	}
	return all
}

// kindOf returns the kind of a primitive type, and the scale of a decimal. Types of one kind have
// the same text in all engines.
func kindOf(name string) (kind string, scale int, err error) {
	switch name {
	case "string", "uuid":
		return "text", 0, nil
	case "int", "long":
		return "number", 0, nil
	case "boolean":
		return "bool", 0, nil
	case "timestamp", "timestamptz":
		return "time", 0, nil
	case "binary":
		return "binary", 0, nil
	}
	var precision int
	if n, _ := fmt.Sscanf(strings.ReplaceAll(name, " ", ""), "decimal(%d,%d)", &precision, &scale); n == 2 {
		return "decimal", scale, nil
	}
	return "", 0, fmt.Errorf("type %s has no common text form in all engines: skip it, or add it to kindOf", name)
}
