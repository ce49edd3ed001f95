//go:build failpoints

package clickhouse_test

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/failpoint"
)

// An insert that failed, or whose answer was lost, is in the table once after it is sent again.
func TestSendAgain(t *testing.T) {
	s := clickhousetest.OpenStore(t)
	table := create(t, s, numbers("again"))
	for n, point := range []string{"before", "after"} {
		arm := httptest.NewRequest("POST", "/", strings.NewReader("clickhouse.again.insert."+point+"=error"))
		failpoint.Handler().ServeHTTP(httptest.NewRecorder(), arm)
		b := batchOf(t, s, table, point, uint64(n), 1)
		if err := b.Send(t.Context()); !errors.Is(err, failpoint.ErrInjected) || !clickhouse.Retryable(err) {
			t.Errorf("%s: error %v", point, err)
		}
		if err := b.Send(t.Context()); err != nil {
			t.Error(err)
		}
		wantRows(t, s, table, uint64(n)+1)
	}
}
