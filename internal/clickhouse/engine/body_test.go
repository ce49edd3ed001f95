package engine

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/millrace/millrace/internal/clickhouse"
)

// The rows of an insert are bounded, however they arrive.
func TestLimitOfRows(t *testing.T) {
	t.Parallel()
	for size, wantErr := range map[int]bool{0: false, 10: false, 11: true, 5000: true} {
		body := strings.NewReader(strings.Repeat("x", size))
		n, err := io.Copy(io.Discard, iotest.OneByteReader(&limitedReader{r: body, limit: 10}))
		e := (*clickhouse.Error)(nil)
		if isLarge := errors.As(err, &e) && e.Code == clickhouse.CodeTooManyBytes; isLarge != wantErr || n > 11 || err != nil && !isLarge {
			t.Errorf("%d bytes: read %d, %v", size, n, err)
		}
	}
}

// Each read has a deadline. The last one removes it, because the statement may run longer, and
// net/http would take the deadline for a lost client.
func TestDeadlinesOfABody(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end  error
		want string
	}{
		"complete": {io.EOF, "EOF"}, "cut off": {io.ErrUnexpectedEOF, "was cut off"},
		"slow": {os.ErrDeadlineExceeded, "the client sent nothing"},
	} {
		var last time.Time
		body := &timedReader{r: io.MultiReader(strings.NewReader("x"), iotest.ErrReader(c.end)), deadline: func(t time.Time) error { last = t; return nil }}
		piece := make([]byte, 1)
		if n, err := body.Read(piece); n != 1 || err != nil || last.IsZero() {
			t.Errorf("%s: the first read: %d, %v, deadline %v", name, n, err, last)
		}
		if _, err := body.Read(piece); err == nil || !strings.Contains(err.Error(), c.want) || !last.IsZero() {
			t.Errorf("%s: the last read: %v, deadline %v", name, err, last)
		}
	}
}
