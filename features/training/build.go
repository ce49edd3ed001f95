package training

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/persons"
)

// ManifestPath returns the path of the manifest of an output.
func ManifestPath(out string) string { return out + ".manifest.json" }

// Build builds a training set, writes its manifest beside it, and returns the manifest. Both files
// appear only when they are complete.
func Build(ctx context.Context, c Config) (Manifest, error) { return build(ctx, c, nil) }

// splitter is Facts that can be read in their order only. Split reads all of them once, and returns
// Facts from which each range can be read once.
type splitter interface {
	split(ctx context.Context, dir string, requests []dividedRequest, progress func(n, of int64)) (*spilled, error)
}

// run is one run of Build.
type run struct {
	Config
	outputs  []groupOutput
	passes   []*pass
	spine    *spine
	dir      string // for temporary files
	facts    Facts
	first    int64 // the earliest and the latest time of the spine
	last     int64
	manifest Manifest

	mu   sync.Mutex // for progress and used
	used map[string]int64
	read int64
	all  int64
}

// build builds a training set. again is the manifest of the run to repeat, or nil.
func build(ctx context.Context, c Config, again *Manifest) (_ Manifest, err error) {
	if err := c.check(); err != nil {
		return Manifest{}, err
	}
	r := &run{Config: c, used: map[string]int64{}, first: math.MaxInt64, last: math.MinInt64}
	if r.outputs, err = c.selected(); err != nil {
		return Manifest{}, err
	}
	if r.passes, err = newPasses(c.Groups, r.outputs); err != nil {
		return Manifest{}, err
	}
	if r.spine, err = openSpine(&c); err != nil {
		return Manifest{}, err
	}
	defer func() { err = errors.Join(err, r.spine.close()) }()
	if err := r.keepsSpine(); err != nil {
		return Manifest{}, err
	}
	if _, err := schema(r.spine, r.outputs); err != nil {
		return Manifest{}, err
	}
	if r.dir, err = os.MkdirTemp(c.TempDir, "millrace-training-"); err != nil {
		return Manifest{}, fmt.Errorf("create a temporary folder: %w", err)
	}
	defer func() {
		for _, p := range r.passes {
			err = errors.Join(err, p.close())
		}
		err = errors.Join(err, os.RemoveAll(r.dir))
	}()
	if err := r.begin(ctx, again); err != nil {
		return Manifest{}, err
	}
	for _, step := range []func(context.Context) error{r.divide, r.splitSpine, r.splitFacts, r.join} {
		if err := step(ctx); err != nil {
			return Manifest{}, err
		}
	}
	return r.manifest, r.write(ctx, again)
}

// keepsSpine returns an error if the output would replace the spine, without which the set could not be
// repeated.
func (r *run) keepsSpine() error {
	spine, err := r.spine.file.Stat()
	if err != nil {
		return spineError("%w", err)
	}
	for _, path := range []string{r.Out, ManifestPath(r.Out)} {
		if old, err := os.Stat(path); err == nil && os.SameFile(old, spine) {
			return fail("out: %s is the spine, which would be lost: name another file", path)
		}
	}
	return nil
}

// begin fills in what the manifest says about the input.
func (r *run) begin(ctx context.Context, again *Manifest) error {
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(r.spine.file, 0, math.MaxInt64)); err != nil {
		return spineError("%w", err)
	}
	m := &r.manifest
	m.Format, m.Program = manifestFormat, r.Program
	m.Spine = SpineFile{Path: cmp.Or(r.KeepSpine, r.Spine), SHA256: hex.EncodeToString(sum.Sum(nil)), Rows: r.spine.rows(), SQL: r.SQL}
	m.Parameters = Parameters{Keys: r.Keys, At: r.At, Known: r.Known, Features: r.Features, FullNames: r.FullNames}
	if r.Lag > 0 {
		m.Parameters.Lag = r.Lag.String()
	}
	for _, g := range r.Groups {
		digest, err := Digest(g)
		if err != nil {
			return err
		}
		m.Groups = append(m.Groups, GroupInfo{g.Name, g.Version, digest})
	}
	if again != nil {
		m.Spine.SQL = again.Spine.SQL
		if m.Spine.SHA256 != again.Spine.SHA256 {
			return manifestError("the spine %s has the SHA-256 %s, and had %s", r.Spine, m.Spine.SHA256, again.Spine.SHA256)
		}
	}
	if r.Positions == nil {
		var sources []*features.Source
		for _, p := range r.passes {
			for _, s := range p.plan.sources {
				sources = append(sources, s.source)
			}
		}
		if persons.Follow(r.Groups...) {
			sources = append(sources, &persons.Source)
		}
		var err error
		if r.Positions, err = r.Facts.Positions(ctx, sources); err != nil {
			return fmt.Errorf("positions of the facts: %w", err)
		}
	}
	graph, err := r.readGraph(ctx)
	if err != nil {
		return err
	}
	for _, p := range r.passes {
		var refuses func(ids ...string) bool
		if r.Refuses != nil {
			refuses = func(ids ...string) bool { return r.Refuses(p.entity, ids...) }
		}
		p.people = newPeople(p.identity, graph, refuses)
	}
	m.Facts = FactsInfo{From: r.From, Positions: r.Positions, Used: r.used, Consents: r.Consents}
	for _, p := range r.passes {
		for _, s := range p.plan.sources {
			r.used[s.source.Name] = 0
		}
	}
	m.Output = OutputFile{Path: r.Out, Rows: r.spine.rows(), Columns: []string{}}
	for _, o := range r.outputs {
		m.Output.Columns = append(m.Output.Columns, o.column)
	}
	return nil
}

// maxRanges bounds the number of temporary files.
const maxRanges = 256 // a range's number is a byte in spills

// Estimates of memory, in bytes.
const (
	perFact   = 96 // a fact in a table, with a key of 36 bytes
	perValue  = 10 // a value of a fact
	perRow    = 160
	perOutput = 12
)

// divide decides into how many ranges the entities are divided, so that those that are joined at the
// same time fit into memory.
func (r *run) divide(ctx context.Context) error {
	most := int64(0)
	for _, p := range r.passes {
		n, err := p.memory(ctx, r.Facts, r.Positions, r.spine.rows())
		if err != nil {
			return err
		}
		r.all += n
		most = max(most, p.need)
	}
	r.facts = r.Facts
	budget := r.Memory * 3 / 4 // the rest is for buffers, and because entities are not of equal size
	for ; r.Workers > 1; r.Workers-- {
		if most/maxRanges*int64(r.Workers) <= budget {
			break
		}
	}
	each := max(budget/int64(r.Workers), 1)
	for _, p := range r.passes {
		ranges := max((p.need+each-1)/each, 1)
		if ranges > maxRanges {
			return fail("memory: %d MiB are too few for this set, about %d MiB are enough", r.Memory>>20,
				(p.need/maxRanges*4/3)>>20+1)
		}
		workers := int64(r.Workers) // a multiple of them, so that all are busy until the end
		ranges = min((ranges+workers-1)/workers*workers, maxRanges)
		if err := p.divide(ctx, r.spine, int(ranges)); err != nil {
			return err
		}
	}
	return nil
}

// splitSpine writes what the join needs of each row to the file of its range.
func (r *run) splitSpine(ctx context.Context) error {
	for _, p := range r.passes {
		if err := p.create(r.dir); err != nil {
			return err
		}
	}
	total := r.spine.rows()
	return r.spine.keyed(ctx, func(number int64, k spineKey) error {
		for _, p := range r.passes {
			if err := p.add(number, k); err != nil {
				return err
			}
		}
		r.first, r.last = min(r.first, k.at), max(r.last, k.at)
		if number%(8*batchRows) == 0 {
			r.Progress("reading the spine", number, total)
		}
		return nil
	})
}

// splitFacts splits facts that can be read in their order only.
func (r *run) splitFacts(ctx context.Context) error {
	s, ok := r.facts.(splitter)
	if !ok {
		r.facts = r.withPersons(r.facts)
	}
	if !ok || r.spine.rows() == 0 {
		return nil
	}
	var requests []dividedRequest
	for _, p := range r.passes {
		for _, source := range p.plan.sources {
			request := source.request(Range{}, r.Positions[source.source.Topic], r.first, r.last)
			requests = append(requests, dividedRequest{request, p.division, p.people})
		}
	}
	facts, err := s.split(ctx, r.dir, requests, func(n, of int64) { r.Progress("reading the log", n, of) })
	if err != nil {
		return err
	}
	r.facts, r.all = facts, 0
	for _, source := range facts.sources {
		r.all += source.rows
	}
	return nil
}

// join computes the results of all ranges.
func (r *run) join(ctx context.Context) (err error) {
	if s, ok := r.facts.(*spilled); ok {
		defer func() { err = errors.Join(err, s.close()) }()
	}
	j := &joiner{facts: r.facts, positions: r.Positions, first: r.first, last: r.last}
	j.read = func(n int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.read += int64(n)
		r.Progress("joining facts", min(r.read, r.all), r.all)
	}
	j.used = func(source string, n int64) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.used[source] += n
	}
	workers, ctx := errgroup.WithContext(ctx)
	workers.SetLimit(r.Workers)
	for _, p := range r.passes {
		for part := range p.division.ranges() {
			workers.Go(func() error { return p.join(ctx, j, part) })
		}
	}
	err = workers.Wait()
	r.manifest.Output.Informed = map[string]int64{}
	for _, p := range r.passes {
		r.manifest.Output.Informed[p.entity] = p.informed.Load()
	}
	return err
}

// write writes the output and its manifest.
func (r *run) write(ctx context.Context, again *Manifest) (err error) {
	out, err := createPartial(r.Out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.discard()) }()
	o, err := newOutput(out, r.spine, r.outputs)
	if err != nil {
		return err
	}
	for _, p := range r.passes {
		if err := p.parts.rewind(); err != nil {
			return err
		}
	}
	values := make([]exact.Result, len(r.outputs))
	err = o.write(ctx, func(int64) ([]exact.Result, error) {
		for _, p := range r.passes {
			if err := p.next(values); err != nil {
				return nil, err
			}
		}
		return values, nil
	}, func(rows int64) { r.Progress("writing", rows, r.spine.rows()) })
	if err != nil {
		return err
	}
	r.manifest.Output.SHA256 = hex.EncodeToString(out.sum.Sum(nil))
	if again != nil {
		if err := again.compare(r.manifest); err != nil {
			return err
		}
	}
	manifest, err := createPartial(ManifestPath(r.Out))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, manifest.discard()) }()
	e := json.NewEncoder(manifest)
	e.SetIndent("", "  ")
	if err := e.Encode(r.manifest); err != nil {
		return fmt.Errorf("write the manifest: %w", err)
	}
	if r.KeepSpine != "" {
		if err := os.Rename(r.Spine, r.KeepSpine); err != nil {
			return fmt.Errorf("keep the spine: %w", err)
		}
	}
	// The manifest first: a set without a manifest could not be repeated.
	return firstError(manifest.publish(), out.publish())
}

// partial is a file that appears under its name only when it is complete.
type partial struct {
	file *os.File
	w    *bufio.Writer
	sum  hash.Hash
	path string
}

func createPartial(path string) (*partial, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	return &partial{file: f, w: bufio.NewWriterSize(f, 256<<10), sum: sha256.New(), path: path}, nil
}

// Write implements io.Writer.
func (p *partial) Write(b []byte) (int, error) {
	p.sum.Write(b)
	return p.w.Write(b)
}

// publish gives the file its name.
func (p *partial) publish() error {
	err := errors.Join(p.w.Flush(), p.file.Chmod(0o644), p.file.Sync(), p.file.Close())
	if err == nil {
		err = os.Rename(p.file.Name(), p.path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", p.path, err)
	}
	p.file = nil
	return nil
}

// discard removes the file unless it was published.
func (p *partial) discard() error {
	if p.file == nil {
		return nil
	}
	name := p.file.Name()
	_ = p.file.Close() // it may be closed already
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
