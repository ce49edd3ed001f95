package e2e

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// earlierHome is the folder in which the data folders of testdata/earlier were written.
const earlierHome = "/tmp/millrace-fixture/data"

// earlierCounts are the counts of `millrace verify` on these data folders.
var earlierCounts = map[string]string{
	"store customer events": "73", "topic millrace.customers events": "73", "table customers_events events": "73", "table customers_current rows": "24",
	"store catalog events": "72", "topic millrace.products events": "72", "table products_events events": "72", "table products_current rows": "36",
	"view catalog/v2 documents": "36",
	"store inventory events":    "176", "topic millrace.stock events": "176", "table stock_events events": "176", "table stock_movements rows": "176",
	"store order events": "58", "topic millrace.orders events": "58", "table orders_events events": "58", "table orders_current rows": "30",
	"table order_lines rows": "96", "view orderstatus/v2 documents": "30",
}

// TestDataOfAnEarlierVersion opens data folders that commit 6d2e864 wrote. One system was stopped
// with Ctrl-C, and one was killed with SIGKILL. Every event must still be in every sink, once.
// Repeated commands are not accepted again, and new ones reach every sink. A restart preserves all
// of it.
func TestDataOfAnEarlierVersion(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"stopped", "killed"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			data := filepath.Join(t.TempDir(), "data")
			unpack(t, filepath.Join("testdata", "earlier", end+".tar.gz"), filepath.Dir(data))
			run(t, "lake", "relocate", filepath.Join(earlierHome, "lake", "warehouse"), "--data", data)

			s := up(t, data, "127.0.0.1:0") // sends the demo's commands again
			s.ready()
			counts := s.verified()
			for side, want := range earlierCounts {
				if got := counts[side].String(); got != want {
					t.Errorf("%s: %s, want %s", side, got, want)
				}
			}

			s.placeOrder()
			for range 2 {
				counts = s.verified()
				for _, side := range []string{"store order events", "topic millrace.orders events",
					"table orders_events events"} {
					if got := counts[side].String(); got != "59" {
						t.Errorf("%s with a new order: %s, want 59", side, got)
					}
				}
				s.stop()
				s = up(t, data, "127.0.0.1:0", "--no-demo")
				s.ready()
			}
			s.stop()
		})
	}
}

// unpack extracts a .tar.gz file.
func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeDir {
			if err := root.Mkdir(filepath.Clean(h.Name), 0o750); err != nil {
				t.Fatal(err)
			}
			continue
		}
		raw, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := root.WriteFile(h.Name, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
