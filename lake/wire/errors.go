package wire

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// failure is an error in a message with the path to the field.
type failure struct {
	path string // empty for the message itself
	err  error
	// refused is set if the message is well-formed but a value does not fit its column. If a field
	// occurs twice, that is not final: the merged value may fit.
	refused bool
}

func (e *failure) Error() string {
	if e.path == "" {
		return e.err.Error()
	}
	return e.path + ": " + e.err.Error()
}

func (e *failure) Unwrap() error { return e.err }

// malformed returns the error for a code of protowire.
func malformed(code int) error {
	if code == truncated {
		return errTruncated
	}
	if -code < len(reasons) {
		return errors.New(reasons[-code])
	}
	return errors.New("it is no Protobuf")
}

// Codes of protowire: truncated input, and an invalid field number.
const (
	truncated = -1
	badNumber = -2
)

var (
	errTruncated = errors.New("it ends too early")
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
	-badNumber: "a field number that none can have",
	3:          "a number of more than 64 bits",
	4:          "a wire type that there is not",
	5:          "the end of another group than the one that began",
	6:          "groups are nested too deep",
}

// refusal returns an error for a value that does not fit its column.
func refusal(format string, args ...any) error {
	return &failure{err: fmt.Errorf(format, args...), refused: true}
}

// hopeless reports whether an error is final, whatever else the message contains.
func hopeless(err error) bool {
	var e *failure
	return err != nil && (!errors.As(err, &e) || !e.refused)
}

// notInList is the index of a value that is not in a list.
const notInList = -1

// inField adds the field in which an error occurred, and the index in the field's list, to the
// error's path.
func inField(name string, place int, err error) error {
	path := name
	if place != notInList {
		path = fmt.Sprintf("%s[%d]", name, place)
	}
	var e *failure
	if !errors.As(err, &e) {
		return &failure{path: path, err: err}
	}
	if e.path != "" {
		path += "." + e.path
	}
	return &failure{path, e.err, e.refused}
}
