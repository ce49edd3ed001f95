// Package flags has the flags that operators change while Millrace runs: typed values, some of which
// are rolled out to a percentage of keys.
//
// A Flag is a record of Topic, which is compacted: the key is the name, and a tombstone deletes it. The
// partition's offset of the record is the flag's revision. Writer changes flags, and Reader follows the
// topic and holds all of them in memory. History reads HistoryTopic, which is not compacted and has
// each change with who made it, when and why. Package openfeature below reads a Reader by OpenFeature's
// SDK, and package serving is the API of operators.
//
// Invariants:
//
//   - A change and its entry of the history are one Kafka transaction: readers see both or neither.
//   - Changes are in one order. A writer takes over the transactional id, and then reads all changes
//     before it decides. So the revision that it compares is the last one, and a writer that was taken
//     over cannot commit.
//   - A key keeps its variant if the share of that variant is raised or remains the same (rollout.go).
//   - A Reader holds the last known flags while the brokers do not answer. A record that is not a valid
//     flag is counted and skipped, and the flag's last valid value remains.
//   - The number of flags and their sizes are bounded, when they are written and when they are read.
//
// A Reader has no file. Every process that has one connects to Kafka before it starts its work, and until
// the flags are read, callers use the defaults in their code.
package flags

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/millrace/millrace/internal/kafka"
)

const (
	// Topic has the flags.
	Topic = "millrace.flags"
	// HistoryTopic has their changes. It is a topic of its own, because compaction removes the earlier
	// values of a flag.
	HistoryTopic = "millrace.flags.history"
)

// Topics returns the topics as they are created. Each has one partition, so all changes are in order.
func Topics() []kafka.Topic {
	return []kafka.Topic{{Name: Topic, Partitions: 1, Compacted: true}, {Name: HistoryTopic, Partitions: 1}}
}

// Limits of flags.
const (
	MaxFlags    = 1000
	maxBytes    = 8 << 20 // of all flags, as records
	maxRecord   = 64 << 10
	maxValue    = 16 << 10
	maxName     = 100
	maxText     = 500 // of a description, a reason and a caller's name
	maxVariants = 16
)

// Type is the type of a flag's values. It remains the same until the flag is deleted.
type Type string

// The types. An object is a JSON object.
const (
	Bool   Type = "bool"
	String Type = "string"
	Int    Type = "int" // of 64 bits
	Float  Type = "float"
	Object Type = "object"
)

// Types returns all types.
func Types() []Type { return []Type{Bool, String, Int, Float, Object} }

// Flag has either a Value for everyone or a Rollout.
type Flag struct {
	Name        string
	Type        Type
	Description string
	Value       json.RawMessage
	Rollout     []Variant
	Change      Change // the last one
	Revision    int64  // offset of the record in Topic
}

// Variant is a value that some of the keys get.
type Variant struct {
	Name   string          `json:"name"`
	Value  json.RawMessage `json:"value"`
	Ranges []Range         `json:"ranges"` // of buckets, in ascending order
}

// Share returns the share of keys that get the variant, in hundredths of a percent.
func (v Variant) Share() int {
	n := 0
	for _, r := range v.Ranges {
		n += r.To - r.From
	}
	return n
}

// Range is the buckets from From up to and excluding To.
type Range struct {
	From int `json:"from"`
	To   int `json:"to"`
}

// Change says who changed a flag, when and why.
type Change struct {
	ID     string    `json:"id"` // a UUID
	By     string    `json:"by"` // the caller; empty if callers are not authenticated
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// Declaration is a flag that the program reads, with the value that applies while the flag is not set.
type Declaration struct {
	Name        string
	Type        Type
	Default     json.RawMessage
	Description string
}

// ErrInvalid means that a flag, or a change of one, breaks a rule. The error says which.
var ErrInvalid = errors.New("invalid flag")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalid, fmt.Errorf(format, args...))
}

var namePattern = regexp.MustCompile(`^[a-z][a-z0-9]*([._-][a-z0-9]+)*$`)

// checkName checks the name of a flag or of a variant.
func checkName(what, name string) error {
	if len(name) > maxName || !namePattern.MatchString(name) {
		return invalid("%s %.120q: want words of a-z and 0-9 with one of . _ - between them, at most %d characters, the first a letter",
			what, name, maxName)
	}
	return nil
}

// checkText checks a text for people.
func checkText(what, text string) error {
	if !utf8.ValidString(text) {
		return invalid("%s: is not UTF-8", what)
	}
	if n := utf8.RuneCountInString(text); n > maxText {
		return invalid("%s: has %d characters; at most %d are allowed", what, n, maxText)
	}
	return nil
}

// Validate returns an ErrInvalid if the flag breaks a rule.
func (f Flag) Validate() error {
	if err := checkName("name", f.Name); err != nil {
		return err
	}
	for what, text := range map[string]string{"description": f.Description, "caller": f.Change.By, "reason": f.Change.Reason} {
		if err := checkText(what, text); err != nil {
			return err
		}
	}
	switch {
	case f.Value != nil && f.Rollout != nil:
		return invalid("%s has a value and variants: set one of them", f.Name)
	case f.Rollout != nil:
		return f.checkRollout()
	}
	if err := f.Type.check(f.Value); err != nil {
		return fmt.Errorf("value of %s: %w", f.Name, err)
	}
	return nil
}

// check checks that a value is JSON of the type.
func (t Type) check(value json.RawMessage) error {
	if len(value) > maxValue {
		return invalid("has %d bytes; at most %d are allowed", len(value), maxValue)
	}
	if !slices.Contains(Types(), t) {
		return invalid("unknown type %q: want one of %v", string(t), Types())
	}
	ok := false
	switch valid := json.Valid(value) && utf8.Valid(value); {
	case !valid:
	case t == Bool:
		ok = string(value) == "true" || string(value) == "false"
	case t == String:
		ok = value[0] == '"'
	case t == Int:
		_, err := strconv.ParseInt(string(value), 10, 64)
		ok = err == nil
	case t == Float:
		f, err := strconv.ParseFloat(string(value), 64)
		ok = err == nil && !math.IsInf(f, 0)
	case t == Object:
		ok = value[0] == '{'
	}
	if !ok {
		return invalid("%.40q is not JSON of type %s", value, t)
	}
	return nil
}

// compact returns a value without spaces between its tokens, so that equal values have equal bytes.
func compact(value json.RawMessage) json.RawMessage {
	var b bytes.Buffer
	if json.Compact(&b, value) != nil {
		return value // not JSON, which Validate reports
	}
	return b.Bytes()
}
