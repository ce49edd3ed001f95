// Package decode reads JSON and YAML that people write, keep or damage: the configuration, tracking
// plans, manifests of training sets. An error names the field, the line and what is wanted there, and
// not Go's types. It does not repeat a value, because that could be a secret.
//
// JSON and YAML accept known fields only: a misspelled one would be ignored silently. ExplainJSON is
// for callers that have decoded JSON by other rules.
package decode

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// ErrEmpty means that a text has no value.
var ErrEmpty = errors.New("it is empty")

// JSON decodes one JSON value.
func JSON(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			return fmt.Errorf("%s: something follows the JSON value", place(text, d.InputOffset()))
		}
	}
	return ExplainJSON(text, err)
}

// ExplainJSON returns an error of decoding a JSON text into a value in terms of the text. If text is nil,
// the error does not name the line.
func ExplainJSON(text []byte, err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		return ErrEmpty
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the JSON ends too early")
	case errors.As(err, &syntax) && text == nil:
		return fmt.Errorf("not JSON: %w", syntax)
	case errors.As(err, &syntax):
		return fmt.Errorf("%s: not JSON: %w", place(text, syntax.Offset), syntax)
	case errors.As(err, &kind):
		field := kind.Field
		if field == "" {
			field = "the JSON value"
		}
		return fmt.Errorf("%s: want %s, got %s", field, wanted(kind.Type), got(kind.Value))
	}
	// What is left is about fields, or of the type itself. Errors of encoding/json name the package.
	return errors.New(strings.TrimPrefix(err.Error(), "json: "))
}

// place returns the line and column of the byte before an offset.
func place(text []byte, offset int64) string {
	read := text[:min(int(offset), len(text))]
	return fmt.Sprintf("line %d, column %d", 1+bytes.Count(read, []byte("\n")),
		len(read)-bytes.LastIndexByte(read, '\n')-1)
}

// got returns how people call a kind of JSON value, which may be followed by the value.
func got(value string) string {
	kind, _, _ := strings.Cut(value, " ")
	switch kind {
	case "array":
		return "a list"
	case "object":
		return "an object"
	case "bool":
		return "true or false"
	case "string":
		return "a text"
	}
	return "a " + kind // number
}

// wanted returns what a field of a type takes.
func wanted(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() { //nolint:exhaustive // what is left has fields
	case reflect.String:
		return "a text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int, reflect.Int64:
		return fmt.Sprintf("a whole number of at most %d bits", t.Bits())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return fmt.Sprintf("a whole number of at most %d bits that is not negative", t.Bits())
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "a list"
	}
	return "an object"
}
