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

// Position is a place in the order of one store. On PostgreSQL sequence order is not commit order, so the writing
// transaction's id comes first; SQLite has one writer and leaves Transaction 0. The zero Position is before everything.
type Position struct {
	Transaction uint64
	Sequence    uint64
}

// Compare is -1, 0 or +1 as p is before, at or after q.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Transaction, q.Transaction), cmp.Compare(p.Sequence, q.Sequence))
}

// IsZero tells whether p is before everything.
func (p Position) IsZero() bool { return p == Position{} }

// String is "transaction.sequence", which ParsePosition reads.
func (p Position) String() string {
	return strconv.FormatUint(p.Transaction, 10) + "." + strconv.FormatUint(p.Sequence, 10)
}

// ParsePosition reads what String wrote.
func ParsePosition(s string) (Position, error) {
	tx, seq, ok := strings.Cut(s, ".")
	t, err1 := strconv.ParseUint(tx, 10, 64)
	q, err2 := strconv.ParseUint(seq, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return Position{}, fmt.Errorf("position %q: want two numbers joined by a dot", s)
	}
	return Position{t, q}, nil
}

// Token names the state a read must have seen: this version of this stream, stored at this position.
type Token struct {
	Service  string
	Stream   string
	Version  uint64
	Position Position
}

// ErrToken is what ParseToken's errors wrap.
var ErrToken = errors.New("not a token of a command's receipt")

// String is the opaque form that clients carry.
func (t Token) String() string {
	b, err := proto.Marshal(&eventv1.PositionToken{
		Service: t.Service, Stream: t.Stream, Version: t.Version,
		Transaction: t.Position.Transaction, Sequence: t.Position.Sequence,
	})
	if err != nil { // a stream that is not UTF-8: no store accepts one
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads what String wrote.
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
		return Token{}, fmt.Errorf("%w: it names no stream", ErrToken)
	}
	return Token{p.Service, CanonicalStream(p.Service, p.Stream), p.Version, Position{p.Transaction, p.Sequence}}, nil
}
