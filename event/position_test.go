package event_test

import (
	"errors"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
)

func TestPositionOrder(t *testing.T) {
	t.Parallel()
	ascending := []event.Position{{}, {0, 1}, {0, math.MaxUint64}, {1, 0}, {1, 1}, {math.MaxUint64, 0}}
	for i, p := range ascending {
		if p.IsZero() != (i == 0) {
			t.Errorf("%v.IsZero() = %v", p, p.IsZero())
		}
		for j, q := range ascending {
			if got, want := p.Compare(q), min(1, max(-1, i-j)); got != want {
				t.Errorf("%v.Compare(%v) = %d, want %d", p, q, got, want)
			}
		}
	}
}

func TestParsePosition(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := event.Position{Transaction: rapid.Uint64().Draw(t, "transaction"), Sequence: rapid.Uint64().Draw(t, "sequence")}
		if got, err := event.ParsePosition(p.String()); err != nil || got != p {
			t.Fatalf("%v is read %v, %v", p, got, err)
		}
	})
	for _, s := range []string{
		"", ".", "1", "1.", ".1", "1.2.3", "-1.2", "1.+2", "1.18446744073709551616", " 1.2", "0x1.2",
	} {
		if got, err := event.ParsePosition(s); err == nil {
			t.Errorf("%q is read %v", s, got)
		}
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		want := event.Token{
			Service: rapid.StringN(1, 20, -1).Draw(t, "service"), Stream: rapid.StringN(1, 200, -1).Draw(t, "stream"),
			Version: rapid.Uint64().Draw(t, "version"),
			Position: event.Position{
				Transaction: rapid.Uint64().Draw(t, "transaction"), Sequence: rapid.Uint64().Draw(t, "sequence"),
			},
		}
		if got, err := event.ParseToken(want.String()); err != nil || got != want {
			t.Fatalf("%+v is read %+v, %v", want, got, err)
		}
	})
	for name, s := range map[string]string{
		"empty": "", "not base64": "a token!", "not a message": "_____w",
		"of no stream":  event.Token{Service: "order"}.String(),
		"of no service": event.Token{Stream: "a"}.String(),
	} {
		if got, err := event.ParseToken(s); !errors.Is(err, event.ErrToken) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func FuzzParsePosition(f *testing.F) {
	for _, s := range []string{"0.0", "7.42", "18446744073709551615.18446744073709551615", "1", "1.2.3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := event.ParsePosition(s)
		if err != nil {
			return
		}
		if again, err := event.ParsePosition(p.String()); err != nil || again != p {
			t.Fatalf("%q is read %v, and that %v, %v", s, p, again, err)
		}
	})
}

func FuzzParseToken(f *testing.F) {
	at := event.Position{Transaction: 1, Sequence: 2}
	f.Add(event.Token{Service: "order", Stream: "a", Version: 3, Position: at}.String())
	f.Add("")
	f.Add("CgVvcmRlchIBYQ")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := event.ParseToken(s)
		if err != nil {
			if !errors.Is(err, event.ErrToken) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		if again, err := event.ParseToken(token.String()); err != nil || again != token {
			t.Fatalf("%q is read %+v, and that %+v, %v", s, token, again, err)
		}
	})
}
