package clickhouse_test

import (
	"errors"
	"strings"
	"testing"

	driver "github.com/ClickHouse/clickhouse-go/v2"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
)

// openDriver connects clickhouse-go to the engine as its users do.
func openDriver(t testing.TB, e *clickhouse.Engine, method driver.CompressionMethod) driver.Conn {
	t.Helper()
	conn, err := driver.Open(&driver.Options{
		Protocol: driver.HTTP, Addr: []string{e.Addr()},
		Auth:        driver.Auth{Username: clickhouse.Writer, Password: e.Client().Password(), Database: clickhouse.Features},
		Compression: &driver.Compression{Method: method},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// The engine accepts an unmodified clickhouse-go, with each of its compressions.
func TestDriver(t *testing.T) {
	t.Parallel()
	e := clickhousetest.Shared(t)
	for name, method := range map[string]driver.CompressionMethod{
		"none": driver.CompressionNone, "lz4": driver.CompressionLZ4, "lz4hc": driver.CompressionLZ4HC,
		"zstd": driver.CompressionZSTD, "gzip": driver.CompressionGZIP, "deflate": driver.CompressionDeflate,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := openDriver(t, e, method)
			v, err := c.ServerVersion()
			if err != nil || v.Version.Major < 25 || v.Timezone.String() != "UTC" {
				t.Fatalf("version %v, %v", v, err)
			}
			table := "driver_" + name
			err = c.Exec(t.Context(), "CREATE TABLE "+table+" (n UInt64, s String) ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 10")
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second one is a duplicate
				ctx := driver.Context(t.Context(), driver.WithSettings(driver.Settings{"insert_deduplication_token": "a"}))
				b, err := c.PrepareBatch(ctx, "INSERT INTO "+table+" (n, s)")
				if err != nil {
					t.Fatal(err)
				}
				for n := range uint64(100_000) {
					if err := b.Append(n, strings.Repeat("x\x00", int(n%7))); err != nil {
						t.Fatal(err)
					}
				}
				if err := b.Send(); err != nil {
					t.Fatal(err)
				}
			}
			rows, err := c.Query(t.Context(), "SELECT n, s FROM "+table+" ORDER BY n")
			if err != nil {
				t.Fatal(err)
			}
			want := uint64(0)
			for rows.Next() {
				var n uint64
				var s string
				if err := rows.Scan(&n, &s); err != nil || n != want || len(s) != 2*int(n%7) {
					t.Fatalf("row %d: %d, %q, %v", want, n, s, err)
				}
				want++
			}
			if err := errors.Join(rows.Err(), rows.Close()); err != nil || want != 100_000 {
				t.Errorf("%d rows, %v", want, err)
			}
			_, err = c.Query(t.Context(), "SELECT nothing FROM "+table)
			if e := (*driver.Exception)(nil); !errors.As(err, &e) || e.Code != clickhouse.CodeUnknownIdentifier {
				t.Errorf("error %v", err)
			}
		})
	}
}
