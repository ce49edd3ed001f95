package wire

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// failure is what is wrong with a message, and where.
type failure struct {
	path string // to the field; empty for the message itself
	err  error
	// refused says that the message is well-formed, but that a value has no place in its column.
	// That is not an error yet where a field comes twice: it may be true of one half alone, and
	// merged they are fine.
	refused bool
}

func (e *failure) Error() string {
	if e.path == "" {
		return e.err.Error()
	}
	return e.path + ": " + e.err.Error()
}

func (e *failure) Unwrap() error { return e.err }

// malformed says in words what protowire says by a number.
func malformed(code int) error {
	if code == truncated {
		return errTruncated
	}
	if -code < len(reasons) {
		return errors.New(reasons[-code])
	}
	return errors.New("it is no Protobuf")
}

// Codes of protowire: for input that ends too early, and for a field number that none can have.
const (
	truncated = -1
	badNumber = -2
)

var (
	errTruncated = errors.New("it ends too early")
	errDepth     = errors.New("messages are nested too deep")
)

// consumeTag is protowire's, but that it knows how high numbers are.
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

var reasons = [...]string{
	-badNumber: "a field number that none can have",
	3:          "a number of more than 64 bits",
	4:          "a wire type that there is not",
	5:          "the end of another group than the one that began",
	6:          "groups are nested too deep",
}

func refusal(format string, args ...any) error {
	return &failure{err: fmt.Errorf(format, args...), refused: true}
}

// hopeless reports whether an error is one whatever else the message has.
func hopeless(err error) bool {
	var e *failure
	return err != nil && (!errors.As(err, &e) || !e.refused)
}

// notInList is the place of a value that has none.
const notInList = -1

// inField adds to an error the field that it happened in, and the place in the field's list.
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
