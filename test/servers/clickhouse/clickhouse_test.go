package clickhouse_test

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/internal/clickhouse"
	server "github.com/millrace/millrace/test/servers/clickhouse"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServer(t *testing.T) {
	var own server.Server
	begun := time.Now()
	c := own.Config(t)
	defer func() {
		if err := own.Stop(); err != nil {
			t.Error(err)
		}
	}()
	mb, err := own.ResidentMB()
	t.Logf("ready after %v, %d MB, %v", time.Since(begun).Round(time.Millisecond), mb, err)
	client, err := clickhouse.NewServerClient(c)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close() //nolint:errcheck // it never fails
	for _, user := range []string{clickhouse.Admin, clickhouse.Reader} {
		if err := client.As(user).Exec(t.Context(), "SELECT 1", nil); err != nil {
			t.Errorf("%s: %v", user, err)
		}
	}
	c.Password = "guess"
	stranger, err := clickhouse.NewServerClient(c)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close() //nolint:errcheck // it never fails
	if err := stranger.Exec(t.Context(), "SELECT 1", nil); err == nil {
		t.Error("a wrong password is accepted")
	}
	if err := own.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := client.Exec(t.Context(), "SELECT 1", nil); err == nil {
		t.Error("a dead server answers")
	}
	if err := own.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := client.Exec(t.Context(), "SELECT 1", nil); err != nil {
		t.Error(err)
	}
}
