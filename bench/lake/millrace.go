package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/test/servers/process"
)

// millrace is the lander as users run it: `millrace lake land`, with a number of landers in one
// process.
//
//   - Its records are Protobuf, read without a schema registry.
//   - Time and CPU time start when its landers have their partitions, as for the sink. It needs no
//     warming up.
//   - It commits at the sink's interval. Its rows also contain their origin, in five columns that
//     the sink does not write.
//   - Folder, kind of catalog and compression are the same. Maintenance is off, because the sink
//     has none.
type millrace struct {
	*bench
	landers int
	name    string // empty: derived from the number of landers
}

// Name implements contender.
func (m millrace) Name() string { return cmp.Or(m.name, fmt.Sprintf("millrace/landers_%d", m.landers)) }

// Reads implements contender.
func (m millrace) Reads() encoding { return asProtobuf }

// Land implements contender.
func (m millrace) Land(ctx context.Context, topic string, n int64) (r result, err error) {
	w, err := openWarehouse(ctx, m.location())
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.create(ctx, events); err != nil {
		return r, err
	}
	p, err := m.start(ctx, w, topic,
		// The bytes are high enough that only the interval causes commits.
		"MILLRACE_LAKE_COMMIT_INTERVAL="+m.commit.String(), "MILLRACE_LAKE_COMMIT_BYTES=1073741824",
		"MILLRACE_LAKE_MAINTENANCE_EVERY=0s")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, p.Kill()) }()
	started := time.Now()
	cpuBefore, err := p.CPU()
	if err != nil {
		return r, err
	}
	// Poll the catalog until all rows are committed. The check of the rows is not measured.
	err = m.await(ctx, p, func() (bool, error) {
		commits, err := w.history(ctx, events)
		if err != nil || len(commits) == 0 {
			return false, err
		}
		got := commits[len(commits)-1].Total
		progress("%s: %d of %d rows committed", m.Name(), got, n)
		return got >= n, nil // the check detects extra rows
	})
	if err != nil {
		return r, err
	}
	wall := time.Since(started)
	cpu, err1 := p.CPU()
	peak, err2 := p.PeakMB()
	if err := errors.Join(err1, err2, p.Kill()); err != nil {
		return r, err
	}
	r = measure(n, wall, cpu-cpuBefore, peak)
	return r, w.describe(ctx, events, n, &r)
}

// events is the name of the table.
const events = "events"

// dir returns the folder of this contender, which contains its data and its log.
func (m millrace) dir() string {
	return filepath.Join(m.bench.dir, strings.ReplaceAll(m.Name(), "/", "-"))
}

// location returns the location of the lake in the contender's data folder.
func (m millrace) location() location {
	lake := filepath.Join(m.dir(), "data", "lake")
	return location{"millrace", filepath.Join(lake, "catalog.db"), filepath.Join(lake, "warehouse")}
}

// start starts the process, and returns when its landers have the topic's partitions. The table
// must exist, because the name of the group follows from it. env has settings in addition to the
// brokers.
func (m millrace) start(ctx context.Context, w *warehouse, topic string, env ...string) (*process.Process, error) {
	binary, err := m.build(ctx)
	if err != nil {
		return nil, err
	}
	t, err := w.catalog.LoadTable(ctx, table.Identifier{namespace, events})
	if err != nil {
		return nil, err
	}
	schema, err := filepath.Abs("bench/lake/flat.proto") // the process runs in another folder
	if err != nil {
		return nil, err
	}
	progress("%s: starting", m.Name())
	p, err := process.Start(ctx, process.Command{
		Name: "millrace", Path: binary, Dir: m.dir(),
		Args: []string{
			"lake", "land", "--topic", topic, "--proto", schema + ":Event",
			"--table", namespace + "." + events, "--landers", fmt.Sprint(m.landers),
			"--data", filepath.Join(m.dir(), "data"),
		},
		Env:   append(env, "MILLRACE_KAFKA_BROKERS="+m.kafka.Brokers),
		Ready: func(context.Context) error { return nil }, // ready once its group has its partitions
	})
	if err != nil {
		return nil, err
	}
	// The lander's group contains the first characters of the table's UUID.
	group := "millrace.lake." + events + "." + t.Metadata().TableUUID().String()[:8]
	err = m.await(ctx, p, func() (bool, error) {
		assigned, err := m.cluster.Assigned(ctx, group, topic)
		return assigned == m.partitions, err
	})
	if err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	return p, nil
}

// await blocks until a condition is true. It returns an error if the process exits.
func (m millrace) await(ctx context.Context, p *process.Process, condition func() (bool, error)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		done, err := condition()
		if done || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-p.Ended():
			return fmt.Errorf("%s: the process exited\n%s", m.Name(), p.LogTail())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// build returns the path of this tree's binary, which it builds once.
func (b *bench) build(ctx context.Context) (string, error) {
	binary := filepath.Join(b.dir, "bin", "millrace")
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	progress("building millrace")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/millrace") //nolint:gosec // in our own folder
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s (run the benchmark from the root of the repository)", err, out)
	}
	return binary, nil
}
