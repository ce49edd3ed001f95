package event

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
)

// Position orders the events of one store. On PostgreSQL the order of sequence numbers is not the
// order of commits, so the id of the writing transaction comes first. SQLite has one writer, and
// Transaction is 0. The zero Position is before all events.
type Position struct {
	Transaction uint64
	Sequence    uint64
}

// Compare returns -1, 0 or +1 if p is before, equal to or after q.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Transaction, q.Transaction), cmp.Compare(p.Sequence, q.Sequence))
}

// IsZero reports whether p is before all events.
func (p Position) IsZero() bool { return p == Position{} }

// String returns "transaction.sequence", the form that ParsePosition reads.
func (p Position) String() string {
	return strconv.FormatUint(p.Transaction, 10) + "." + strconv.FormatUint(p.Sequence, 10)
}

// ParsePosition reads the form that String returns.
func ParsePosition(s string) (Position, error) {
	tx, seq, ok := strings.Cut(s, ".")
	t, err1 := strconv.ParseUint(tx, 10, 64)
	q, err2 := strconv.ParseUint(seq, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return Position{}, fmt.Errorf("position %q: want two numbers separated by a dot", s)
	}
	return Position{t, q}, nil
}

// Token identifies the state that a read must include: a version of a stream, and its position in
// the store.
type Token struct {
	Service  string
	Stream   string
	Version  uint64
	Position Position
}

// ErrToken is wrapped by the errors of ParseToken.
var ErrToken = errors.New("not a token from a command's receipt")

// String returns the opaque form that clients carry.
func (t Token) String() string {
	b, err := proto.Marshal(&eventv1.PositionToken{
		Service: t.Service, Stream: t.Stream, Version: t.Version,
		Transaction: t.Position.Transaction, Sequence: t.Position.Sequence,
	})
	if err != nil { // a stream that is not UTF-8, which no store accepts
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads the form that String returns.
func ParseToken(s string) (Token, error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	var p eventv1.PositionToken
	if err := proto.Unmarshal(b, &p); err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	if p.Service == "" || p.Stream == "" {
		return Token{}, fmt.Errorf("%w: it has no service or no stream", ErrToken)
	}
	return Token{p.Service, CanonicalStream(p.Service, p.Stream), p.Version, Position{p.Transaction, p.Sequence}}, nil
}
