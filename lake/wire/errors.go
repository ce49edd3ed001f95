package wire

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// fieldError is an error in a message with the path to the field.
type fieldError struct {
	path string // empty for the message itself
	err  error
	// refused is set if the message is well-formed but a value does not fit its column. If a field
	// occurs twice, that is not final: the merged value may fit.
	refused bool
}

// Error returns the path and the reason.
func (e *fieldError) Error() string {
	if e.path == "" {
		return e.err.Error()
	}
	return e.path + ": " + e.err.Error()
}

// Unwrap returns the reason.
func (e *fieldError) Unwrap() error { return e.err }

// malformed returns the error for a code of protowire.
func malformed(code int) error {
	if code == truncated {
		return errTruncated
	}
	if -code < len(reasons) {
		return errors.New(reasons[-code])
	}
	return errors.New("not a Protobuf message")
}

// Codes of protowire: truncated input, and an invalid field number.
const (
	truncated = -1
	badNumber = -2
)

// Errors that occur in several places.
var (
	errTruncated = errors.New("unexpected end")
	errDepth     = errors.New("messages are nested too deep")
)

// consumeTag is protowire.ConsumeTag, but also refuses field numbers above the maximum.
func consumeTag(b []byte) (protowire.Number, protowire.Type, int) {
	if len(b) > 0 && b[0] < 0x80 && b[0] >= 8 { // nearly always
		return protowire.Number(b[0] >> 3), protowire.Type(b[0] & 7), 1
	}
	number, typ, n := protowire.ConsumeTag(b)
	if number > protowire.MaxValidNumber {
		return 0, 0, badNumber
	}
	return number, typ, n
}

// reasons are descriptions of protowire's error codes, by negated code.
var reasons = [...]string{
	-badNumber: "invalid field number",
	3:          "number of more than 64 bits",
	4:          "invalid wire type",
	5:          "mismatched end of group",
	6:          "groups are nested too deep",
}

// refuse returns an error for a value that does not fit its column.
func refuse(format string, args ...any) error {
	return &fieldError{err: fmt.Errorf(format, args...), refused: true}
}

// isFinal reports whether an error is final, whatever else the message contains.
func isFinal(err error) bool {
	var e *fieldError
	return err != nil && (!errors.As(err, &e) || !e.refused)
}

// notInList is the index of a value that is not in a list.
const notInList = -1

// inField adds the field in which an error occurred, and the index in the field's list, to the
// error's path.
func inField(name string, index int, err error) error {
	path := name
	if index != notInList {
		path = fmt.Sprintf("%s[%d]", name, index)
	}
	var e *fieldError
	if !errors.As(err, &e) {
		return &fieldError{path: path, err: err}
	}
	if e.path != "" {
		path += "." + e.path
	}
	return &fieldError{path, e.err, e.refused}
}
