package training

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// pass is the join of the groups of one entity. It reads the spine's rows with that entity's key, and
// has results in the order of the spine.
type pass struct {
	entity   string
	identity features.Identity // of the entity
	people   *people
	key      int // index of the spine's key
	plan     *plan
	columns  []int // by output of the plan: index among all outputs
	need     int64 // memory for all rows and facts, in bytes
	division division
	parts    *spill   // the range of each row, as a byte
	rows     []*spill // by range: the spine's rows
	results  []*spill // by range: the results, in the order of the spine
	sizes    []int64  // by range: number of rows
	values   []exact.Result
	informed atomic.Int64 // rows that know facts
}

// newPasses returns a pass for each entity of the groups, in their order.
func newPasses(groups []*features.Group, outputs []groupOutput) ([]*pass, error) {
	var all []*pass
	for _, entity := range entitiesOf(groups) {
		p := &pass{entity: entity, key: len(all)}
		p.identity = identityOf(groups, entity)
		var mine []groupOutput
		for i, o := range outputs {
			if o.group.Entity == entity {
				mine, p.columns = append(mine, o), append(p.columns, i)
			}
		}
		var err error
		if p.plan, err = compile(mine); err != nil {
			return nil, err
		}
		p.values = make([]exact.Result, len(mine))
		all = append(all, p)
	}
	return all, nil
}

// entitiesOf returns the entities that groups describe, in their order.
func entitiesOf(groups []*features.Group) []string {
	var entities []string
	for _, g := range groups {
		if !slices.Contains(entities, g.Entity) {
			entities = append(entities, g.Entity)
		}
	}
	return entities
}

// identityOf returns what an entity of groups is in the identity graph.
func identityOf(groups []*features.Group, entity string) features.Identity {
	return groups[slices.IndexFunc(groups, func(g *features.Group) bool { return g.Entity == entity })].Identity
}

// close closes the temporary files.
func (p *pass) close() error {
	return errors.Join(closeSpills(p.rows), closeSpills(p.results), p.parts.close())
}

// create creates the temporary files of the spine's rows, for as many ranges as the division has.
func (p *pass) create(dir string) (err error) {
	dir = filepath.Join(dir, p.entity)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("create a temporary folder: %w", err)
	}
	if p.rows, err = createSpills(dir, "spine", p.division.ranges()); err != nil {
		return err
	}
	if p.results, err = createSpills(dir, "results", p.division.ranges()); err != nil {
		return err
	}
	p.sizes = make([]int64, p.division.ranges())
	p.parts, err = createSpill(dir, "parts")
	return err
}

// add adds a row of the spine.
func (p *pass) add(number int64, k spineKey) error {
	entity := p.people.entity(k.entities[p.key], k.known)
	part := p.division.of(entity)
	to := p.rows[part]
	to.putInt(number)
	to.putText(entity)
	to.putInt(k.at)
	to.putInt(k.known)
	p.sizes[part]++
	p.parts.buf = append(p.parts.buf, byte(part))
	return firstError(p.parts.write(), to.write())
}

// join computes the results of a range and writes them in the order of the spine.
func (p *pass) join(ctx context.Context, j *joiner, part int) error {
	from := p.rows[part]
	if err := from.rewind(); err != nil {
		return err
	}
	entities := &entities{}
	rows := make([]row, 0, p.sizes[part])
	for from.more() {
		rows = append(rows, row{number: from.int(), entity: entities.add(from.bytes()), at: from.int(), known: from.int()})
	}
	if err := from.failed(); err != nil {
		return err
	}
	sorted := entities.sort()
	for i := range rows {
		rows[i].entity = sorted[rows[i].entity]
	}
	type place struct {
		number     int64
		begin, end int
	}
	places := make([]place, 0, len(rows))
	var encoded []byte
	informed, err := j.join(ctx, p.plan, p.division.at(part), entities, rows, func(r row, values []exact.Result) {
		begin := len(encoded)
		encoded = appendResults(encoded, values)
		places = append(places, place{r.number, begin, len(encoded)})
	})
	if err != nil {
		return err
	}
	p.informed.Add(informed)
	slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.number, b.number) })
	to := p.results[part]
	for _, at := range places {
		if _, err := to.w.Write(encoded[at.begin:at.end]); err != nil {
			return fmt.Errorf("write a temporary file: %w", err)
		}
	}
	return to.rewind()
}

// next sets the results of the next row of the spine, which are the next ones of its range.
func (p *pass) next(to []exact.Result) error {
	part := p.parts.byte()
	if err := firstError(p.parts.failed(), p.results[part].results(p.values)); err != nil {
		return err
	}
	for i, column := range p.columns {
		to[column] = p.values[i]
	}
	return nil
}

// sampled is how many entities are sampled for each range.
const sampled = 64

// divide divides the entities of the spine into at most n ranges with about equally many rows.
func (p *pass) divide(ctx context.Context, s *spine, n int) error {
	if n == 1 {
		return nil
	}
	size := sampled * n
	sample := make([]string, 0, size)
	random := rand.New(rand.NewPCG(1, 1)) // a sample; the result does not depend on it
	seen := 0
	err := s.entities(ctx, p.key, func(entity string) {
		seen++
		if len(sample) < size {
			sample = append(sample, entity)
		} else if i := random.IntN(seen); i < size {
			sample[i] = entity
		}
	})
	p.division = divided(sample, n)
	return err
}

// memory estimates what the join needs, from how many facts there are.
func (p *pass) memory(ctx context.Context, facts Facts, positions Positions, rows int64) (count int64, err error) {
	p.need = rows * int64(perRow+perOutput*len(p.columns))
	for _, s := range p.plan.sources {
		n, err := facts.Count(ctx, s.request(Range{}, positions[s.source.Topic], math.MinInt64, math.MaxInt64))
		if err != nil {
			return 0, fmt.Errorf("count the facts of source %s: %w", s.source.Name, err)
		}
		p.need += n * int64(perFact+perValue*len(s.columns))
		count += n
	}
	return count, nil
}
