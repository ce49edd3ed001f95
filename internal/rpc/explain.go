package rpc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// A fieldError says which field of a JSON request is wrong. Its path has the same form as in
// validation errors.
type fieldError struct{ path, why string }

func (e *fieldError) Error() string { return e.path + ": " + e.why }

// explainJSON finds the wrong field in a body that protojson rejected. It decodes the body a second
// time, which costs nothing for valid requests.
func explainJSON(body []byte, md protoreflect.MessageDescriptor, strict bool, refused error) error {
	// Syntax first: without it, there are no fields.
	var syntax *json.SyntaxError
	var whole json.RawMessage
	switch err := json.Unmarshal(body, &whole); {
	case len(bytes.TrimSpace(body)) == 0:
		return errors.New("the body is empty: want a JSON object")
	case errors.As(err, &syntax):
		read := body[:min(int(syntax.Offset), len(body))]
		line := 1 + bytes.Count(read, []byte("\n"))
		return fmt.Errorf("not JSON: line %d, column %d: %w", line, len(read)-bytes.LastIndexByte(read, '\n')-1, syntax)
	}
	var field *fieldError
	if errors.As((&explainer{strict: strict}).message("", body, md), &field) {
		return field
	}
	// No single field is wrong. Report protojson's own reason.
	return errors.New(reason(refused))
}

// explainer walks through a JSON request and its message descriptor in parallel. It reports the
// first wrong field in the order of the body.
type explainer struct{ strict bool }

// message returns an error for the first wrong field of an object, or nil if there is none.
func (x *explainer) message(path string, raw json.RawMessage, md protoreflect.MessageDescriptor) error {
	if md.FullName().Parent() == "google.protobuf" { // these have their own JSON form
		if protojson.Unmarshal(raw, dynamicpb.NewMessage(md)) != nil {
			return &fieldError{path, wellKnown(md)}
		}
		return nil
	}
	// Token by token, because a map would lose duplicate names and their order.
	d := json.NewDecoder(bytes.NewReader(raw))
	if start, err := d.Token(); err != nil || start != json.Delim('{') {
		return &fieldError{orBody(path), "want an object"}
	}
	given := map[protoreflect.Name]bool{}
	for d.More() {
		name, err := d.Token()
		var value json.RawMessage
		if err == nil {
			err = d.Decode(&value)
		}
		if err != nil {
			return err
		}
		key, _ := name.(string) // keys of objects are always strings
		if err := x.member(path, key, value, md, given); err != nil {
			return err
		}
	}
	return nil
}

// member checks one member of an object. given are the names of fields and oneofs so far.
func (x *explainer) member(
	path, key string, value json.RawMessage, md protoreflect.MessageDescriptor,
	given map[protoreflect.Name]bool,
) error {
	fd := md.Fields().ByJSONName(key)
	if fd == nil {
		fd = md.Fields().ByTextName(key)
	}
	if fd == nil {
		// protojson has ignored this field, too, so it is not the fault.
		if !x.strict {
			return nil
		}
		return &fieldError{join(path, printable(key)), "unknown field" + didYouMean(key, fieldNames(md))}
	}
	// The contract's name, whichever of its two names the request uses.
	path = join(path, string(fd.Name()))
	if given[fd.Name()] {
		return &fieldError{path, "set twice"}
	}
	// Fields can have two names in JSON, so duplicates are compared by the contract's name.
	given[fd.Name()] = true
	if string(value) == "null" {
		return nil
	}
	// Synthetic oneofs only mark optional fields.
	if oneof := fd.ContainingOneof(); oneof != nil && !oneof.IsSynthetic() {
		if given[oneof.Name()] {
			return &fieldError{path, "another field of the oneof " + string(oneof.Name()) + " is also set"}
		}
		given[oneof.Name()] = true
	}
	switch {
	case fd.IsMap():
		return x.scalar(path, value, fd)
	case fd.IsList():
		var elements []json.RawMessage
		if json.Unmarshal(value, &elements) != nil {
			return &fieldError{path, "want a list"}
		}
		for i, e := range elements {
			if err := x.value(fmt.Sprintf("%s[%d]", path, i), e, fd); err != nil {
				return err
			}
		}
		return nil
	}
	return x.value(path, value, fd)
}

// value checks one value of a field, or one element of a list.
func (x *explainer) value(path string, value json.RawMessage, fd protoreflect.FieldDescriptor) error {
	if m := fd.Message(); m != nil {
		return x.message(path, value, m)
	}
	return x.scalar(path, value, fd)
}

// scalar decodes this one field with protojson.
func (x *explainer) scalar(path string, value json.RawMessage, fd protoreflect.FieldDescriptor) error {
	if fd.IsList() {
		// protojson expects a list for this field, so wrap the single element.
		value = append(append([]byte{'['}, value...), ']')
	}
	// A request with this field alone. protojson decides, so both agree on every value.
	alone := fmt.Appendf(nil, "{%q:%s}", fd.JSONName(), value)
	m := dynamicpb.NewMessage(fd.ContainingMessage())
	if (protojson.UnmarshalOptions{DiscardUnknown: !x.strict}).Unmarshal(alone, m) == nil {
		return nil
	}
	return &fieldError{path, wanted(fd, value)}
}

// wanted returns what a field's type expects.
func wanted(fd protoreflect.FieldDescriptor, value json.RawMessage) string {
	switch fd.Kind() {
	case protoreflect.EnumKind:
		var names []string
		for i := range fd.Enum().Values().Len() {
			names = append(names, string(fd.Enum().Values().Get(i).Name()))
		}
		var name string
		// A value that is not a string is none of the names.
		_ = json.Unmarshal(bytes.Trim(value, "[]"), &name)
		return fmt.Sprintf("%q is not one of %s", printable(name), strings.Join(names[1:], ", ")) +
			didYouMean(name, names)
	case protoreflect.StringKind:
		return "want a UTF-8 string"
	case protoreflect.BoolKind:
		return "want true or false"
	case protoreflect.BytesKind:
		return "want a base64 string"
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return "want a 32-bit integer"
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return "want an unsigned 32-bit integer"
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return "want a 64-bit integer"
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return "want an unsigned 64-bit integer"
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return "want a number"
	case protoreflect.MessageKind, protoreflect.GroupKind:
	}
	return "invalid value"
}

// wellKnown returns what a message of google.protobuf expects.
func wellKnown(md protoreflect.MessageDescriptor) string {
	switch md.Name() {
	case "Timestamp":
		return `want an RFC 3339 time in the years 1 to 9999, such as "2025-12-01T08:26:00Z"`
	case "Duration":
		return `want a duration in seconds, such as "900s" or "0.5s"`
	}
	return "invalid value"
}

// fieldNames returns all names that JSON may use for the fields.
func fieldNames(md protoreflect.MessageDescriptor) []string {
	var names []string
	for i := range md.Fields().Len() {
		names = append(names, md.Fields().Get(i).JSONName(), md.Fields().Get(i).TextName())
	}
	return names
}

// join appends a field's name to a path.
func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// orBody returns a path, or a name for the root, whose path is empty.
func orBody(path string) string {
	if path == "" {
		return "the body"
	}
	return path
}

const longestShown = 64 // limit of a name from a request, in bytes

// printable returns a name from a request in a form that is safe in an error.
func printable(name string) string {
	if len(name) > longestShown {
		name = strings.ToValidUTF8(name[:longestShown], "") + "…"
	}
	quoted := fmt.Sprintf("%q", name)
	return quoted[1 : len(quoted)-1]
}

// mostEdits is the maximum distance of a suggestion.
const mostEdits = 2

// didYouMean suggests the most similar name. It returns "" if none is similar. Long names are not
// compared, because the cost grows with the length, which the client chooses.
func didYouMean(given string, names []string) string {
	best, nearest := mostEdits+1, ""
	for _, name := range names {
		if len(given) > longestShown {
			break
		}
		if n := edits(strings.ToLower(given), strings.ToLower(name)); n < best {
			best, nearest = n, name
		}
	}
	if nearest == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", nearest)
}

// edits returns the Levenshtein distance of two strings, in bytes.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		// row is the previous row of the distance matrix, overwritten from left to right.
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
