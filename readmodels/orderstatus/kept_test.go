package orderstatus_test

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/millrace/millrace/event"
	embedded "github.com/millrace/millrace/internal/embedded/redis"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/readmodels/orderstatus"
	"github.com/millrace/millrace/streams/streamstest"
)

// keeping starts an embedded Redis that stores its data in a folder, and a view on it. stop ends
// both.
func keeping(t *testing.T, dir string) (v *orderstatus.View, stop func()) {
	t.Helper()
	server, err := embedded.Start(t.Context(), embedded.Config{Dir: dir, Logger: streamstest.Quiet})
	if err != nil {
		t.Fatal(err)
	}
	client, err := redis.Open(t.Context(), redis.Config{Addr: server.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	return orderstatus.New(client, streamstest.Quiet), func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		server.Close()
	}
}

// TestStoredViewResumes checks that a stored view resumes: it is complete at the start, before
// anything is read from the log.
func TestStoredViewResumes(t *testing.T) {
	t.Parallel()
	cfg := streamstest.NewBroker(t)
	l := streamstest.NewLog(t, cfg, event.Order.Topic)
	dir := filepath.Join(t.TempDir(), "redis")
	for life := range 3 {
		v, end := keeping(t, dir)
		if life > 0 {
			asExpected(t, v, l)
			if kept, err := v.Positions(t.Context(), event.Order.Topic); err != nil || len(kept) == 0 {
				t.Errorf("positions %v, %v", kept, err)
			}
		}
		l.Write(t, randomEvents(t, l, 300, 1000)...)
		r := v.Runtime(cfg, nil, streamstest.Quiet)
		stop := streamstest.Start(t, r)
		streamstest.CatchUp(t, r)
		asExpected(t, v, l)
		stop()
		end()
	}
}

// TestDamagedStoredViewIsRebuilt checks that files damaged while the system is stopped or
// runs are treated as any other loss: the view is rebuilt from the log.
func TestDamagedStoredViewIsRebuilt(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, dir string){
		"flipped bits": func(t *testing.T, dir string) {
			each(t, dir, func(content []byte) []byte {
				for i := 0; i < len(content); i += 512 {
					content[i] ^= 1
				}
				return content
			})
		},
		"zeroes": func(t *testing.T, dir string) {
			each(t, dir, func(content []byte) []byte { clear(content); return content })
		},
		"truncated": func(t *testing.T, dir string) {
			each(t, dir, func(content []byte) []byte { return content[:len(content)/3] })
		},
		"the folder": func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := streamstest.NewBroker(t)
			l := streamstest.NewLog(t, cfg, event.Order.Topic)
			dir := filepath.Join(t.TempDir(), "redis")
			for _, running := range []bool{false, true, false} {
				v, end := keeping(t, dir)
				l.Write(t, randomEvents(t, l, 300, 1000)...)
				r := v.Runtime(cfg, nil, streamstest.Quiet)
				stop := streamstest.Start(t, r)
				streamstest.CatchUp(t, r)
				asExpected(t, v, l)
				if running {
					damage(t, dir)
					l.Write(t, randomEvents(t, l, 300, 1000)...)
					streamstest.CatchUp(t, r)
				}
				stop()
				end()
				if !running {
					damage(t, dir)
				}
			}
			v, end := keeping(t, dir)
			defer end()
			r := v.Runtime(cfg, nil, streamstest.Quiet)
			defer streamstest.Start(t, r)()
			streamstest.CatchUp(t, r)
			asExpected(t, v, l)
		})
	}
}

// each changes every file of a folder in place.
func each(t *testing.T, dir string, change func([]byte) []byte) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(dir, file.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, file.Name()), change(content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestStoredDocumentIsNotStale checks that a query with a token does not accept a stored document
// that is too old.
func TestStoredDocumentIsNotStale(t *testing.T) {
	t.Parallel()
	cfg := streamstest.NewBroker(t)
	l := streamstest.NewLog(t, cfg, event.Order.Topic)
	dir := filepath.Join(t.TempDir(), "redis")
	l.Write(t, randomEvents(t, l, 50, 500)...)
	v, end := keeping(t, dir)
	r := v.Runtime(cfg, nil, streamstest.Quiet)
	stop := streamstest.Start(t, r)
	streamstest.CatchUp(t, r)
	stop()
	end()
	before := maps.Clone(l.Versions)
	l.Write(t, randomEvents(t, l, 50, 500)...) // while the view is stopped

	v, end = keeping(t, dir)
	defer end()
	for stream, version := range before {
		if have, err := v.Version(t.Context(), stream); err != nil || have != version {
			t.Errorf("order %s: version %d, %v, and %d was kept", stream, have, err, version)
		}
	}
	r = v.Runtime(cfg, nil, streamstest.Quiet)
	defer streamstest.Start(t, r)()
	streamstest.CatchUp(t, r)
	asExpected(t, v, l)
}
