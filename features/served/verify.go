package served

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/persons"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/internal/backoff"
)

// Events is where the events are from which vectors are recomputed.
type Events interface {
	// Next returns, by partition of a topic, the offset before which all events are there, and about
	// how many events there are.
	Next(ctx context.Context, topic string) (next map[int32]int64, events int64, err error)
	// Events calls each for every event of a topic, in any order. An event is valid until each returns.
	Events(ctx context.Context, topic string, each func(e event.Event, partition int32, offset int64) error) error
}

// VerifyConfig configures Verify.
type VerifyConfig struct {
	Groups []*features.Group
	Events Events
	// Wait is how long the events may take to arrive that the vectors reflect.
	Wait time.Duration
	// MaxFacts is how many facts are kept at a time. With more, the events are read several times. The
	// facts of one entity are kept in any case. 0 means 500,000, which take about 200 MB.
	MaxFacts int
	// Progress is called now and then. It may be nil.
	Progress func(stage string, done, total int64)
}

const (
	defaultMaxFacts = 500_000
	// maxDifferences is how many differences are described. All are counted.
	maxDifferences = 100
	progressEvery  = 1000 // events
	pollEvery      = 200 * time.Millisecond
)

// Result is the result of Verify.
type Result struct {
	Groups      []GroupResult
	Differences []Difference // the first ones
}

// GroupResult counts the vectors of a version of a group.
type GroupResult struct {
	Group     string `json:"group"` // "customer_value/v1"
	Vectors   int    `json:"vectors"`
	Equal     int    `json:"equal"`
	Different int    `json:"different"`
	// Undefined vectors are of another version than the program has, and cannot be recomputed.
	Undefined int `json:"undefined"`
}

// Difference is a value that differs from what the definition says.
type Difference struct {
	Group      string    `json:"group"`
	Entity     string    `json:"entity"`
	At         time.Time `json:"at"`
	Feature    string    `json:"feature"`
	Served     string    `json:"served"`
	Recomputed string    `json:"recomputed"`
	Record     string    `json:"record"` // where the vector is logged: topic/partition@offset
}

// Equal reports whether no vector differs.
func (r Result) Equal() bool {
	return !slices.ContainsFunc(r.Groups, func(g GroupResult) bool { return g.Different > 0 })
}

// Verify recomputes vectors. The order of vectors is the order of the differences.
func Verify(ctx context.Context, vectors []Vector, c VerifyConfig) (Result, error) {
	if c.MaxFacts == 0 {
		c.MaxFacts = defaultMaxFacts
	}
	if c.Progress == nil {
		c.Progress = func(string, int64, int64) {}
	}
	v := &verification{cfg: c, groups: map[string]*GroupResult{}, found: map[int][]Difference{}}
	for i := range vectors {
		one := &pending{Vector: vectors[i], index: i}
		id := (&features.Group{Name: one.GetGroup(), Version: int(one.GetVersion())}).ID()
		one.result = v.groups[id]
		if one.result == nil {
			one.result = &GroupResult{Group: id}
			v.groups[id] = one.result
		}
		one.result.Vectors++
		at := slices.IndexFunc(c.Groups, func(g *features.Group) bool { return g.ID() == id })
		if at < 0 {
			one.result.Undefined++
			continue
		}
		one.group = c.Groups[at]
		v.left = append(v.left, one)
	}
	if err := v.await(ctx); err != nil {
		return Result{}, err
	}
	if err := v.findPersons(ctx); err != nil {
		return Result{}, err
	}
	// Vectors of an entity follow each other, in an order that does not depend on their names.
	slices.SortStableFunc(v.left, func(a, b *pending) int {
		return cmp.Or(cmp.Compare(xxhash.Sum64String(a.GetEntity()), xxhash.Sum64String(b.GetEntity())),
			cmp.Compare(a.GetEntity(), b.GetEntity()))
	})
	for pass := 1; len(v.left) > 0; pass++ {
		if err := v.pass(ctx, fmt.Sprintf("recompute vectors, pass %d", pass)); err != nil {
			return Result{}, err
		}
	}
	return v.result(), nil
}

// verification is the state of Verify.
type verification struct {
	cfg    VerifyConfig
	groups map[string]*GroupResult
	left   []*pending
	found  map[int][]Difference // by index of the vector
}

// pending is a vector that has not been recomputed.
type pending struct {
	Vector
	index   int
	group   *features.Group
	result  *GroupResult
	members []string // the entities whose facts the vector has
}

// reflects reports whether an event precedes the vector's positions.
func (p *pending) reflects(o features.Origin) bool {
	return slices.ContainsFunc(p.GetPositions(), func(at *featuresv1.ServedPosition) bool {
		return at.GetTopic() == o.Topic && at.GetPartition() == o.Partition && o.Offset < at.GetNextOffset()
	})
}

// topics returns the topics that the vectors reflect, in a fixed order.
func (v *verification) topics() (topics []string) {
	for _, p := range v.left {
		for _, topic := range persons.Topics(p.group) {
			if !slices.Contains(topics, topic) {
				topics = append(topics, topic)
			}
		}
	}
	return topics
}

// sourceTopics returns the topics of the sources of facts, in a fixed order.
func (v *verification) sourceTopics() (topics []string) {
	for _, p := range v.left {
		for _, s := range p.group.Sources {
			if !slices.Contains(topics, s.Topic) {
				topics = append(topics, s.Topic)
			}
		}
	}
	return topics
}

// await waits until all events are there that the vectors reflect.
func (v *verification) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, v.cfg.Wait)
	defer cancel()
	for _, topic := range v.topics() {
		upto := map[int32]int64{}
		for _, p := range v.left {
			for _, at := range p.GetPositions() {
				if at.GetTopic() == topic {
					upto[at.GetPartition()] = max(upto[at.GetPartition()], at.GetNextOffset())
				}
			}
		}
		for {
			next, _, err := v.cfg.Events.Next(ctx, topic)
			if err != nil {
				return err
			}
			missing := ""
			for partition, offset := range upto {
				if next[partition] < offset {
					missing = fmt.Sprintf("%s/%d: vectors reflect the records before offset %d, but only those before %d are there",
						topic, partition, offset, next[partition])
				}
			}
			if missing == "" {
				break
			}
			v.cfg.Progress("wait for the events of "+topic, 0, 0)
			if !backoff.Sleep(ctx, pollEvery) {
				return fmt.Errorf("%s: does a process land the topic? (%w)", missing, context.Cause(ctx))
			}
		}
	}
	return nil
}

// pass reads all events once and recomputes the vectors of as many entities as it can keep the facts
// of.
func (v *verification) pass(ctx context.Context, stage string) error {
	k := newKept(v.left)
	topics, total, done := v.sourceTopics(), int64(0), int64(0)
	for _, topic := range topics {
		_, events, err := v.cfg.Events.Next(ctx, topic)
		if err != nil {
			return err
		}
		total += events
	}
	for _, topic := range topics {
		sources := k.sourcesOf(topic)
		err := v.cfg.Events.Events(ctx, topic, func(e event.Event, partition int32, offset int64) error {
			for _, s := range sources {
				// An event that the source cannot read is a dead letter of whatever reads the log, too.
				facts, err := feed.Project(s, e, features.Origin{Topic: topic, Partition: partition, Offset: offset})
				if err == nil {
					k.add(s.Name, facts)
				}
			}
			if k.facts > v.cfg.MaxFacts {
				k.shrink()
			}
			if done++; done%progressEvery == 0 {
				v.cfg.Progress(stage, min(done, total), total)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	n := 0
	for ; n < len(v.left) && k.needs[v.left[n].GetEntity()] != nil; n++ {
		v.compare(v.left[n], k.bySource)
	}
	v.left = v.left[n:]
	v.cfg.Progress(stage, total, total)
	return nil
}

// kept is the facts of a pass.
type kept struct {
	order    []string            // entities, in the order of the vectors
	needs    map[string][]string // the entities whose facts the vectors of each of them have
	wanted   map[string]int      // how many of them want the facts of an entity
	sources  map[string]*features.Source
	bySource map[string]map[string][]features.Fact // by source and entity
	facts    int
}

// newKept returns the state of a pass over vectors.
func newKept(vectors []*pending) *kept {
	k := &kept{needs: map[string][]string{}, wanted: map[string]int{}, sources: map[string]*features.Source{},
		bySource: map[string]map[string][]features.Fact{}}
	for _, p := range vectors {
		if k.needs[p.GetEntity()] == nil {
			k.order = append(k.order, p.GetEntity())
		}
		for _, member := range p.members {
			if !slices.Contains(k.needs[p.GetEntity()], member) {
				k.needs[p.GetEntity()] = append(k.needs[p.GetEntity()], member)
				k.wanted[member]++
			}
		}
		for i := range p.group.Sources {
			s := &p.group.Sources[i]
			k.sources[s.Name], k.bySource[s.Name] = s, map[string][]features.Fact{}
		}
	}
	return k
}

// sourcesOf returns the sources of a topic.
func (k *kept) sourcesOf(topic string) (all []*features.Source) {
	for _, s := range k.sources {
		if s.Topic == topic {
			all = append(all, s)
		}
	}
	return all
}

// add keeps the facts that vectors of the pass have.
func (k *kept) add(source string, facts []features.Fact) {
	for _, f := range facts {
		if k.wanted[f.Entity] > 0 {
			k.bySource[source][f.Entity] = append(k.bySource[source][f.Entity], f)
			k.facts++
		}
	}
}

// shrink leaves the second half of the entities to a later pass, unless there is only one.
func (k *kept) shrink() {
	half := (len(k.order) + 1) / 2
	for _, entity := range k.order[half:] {
		for _, member := range k.needs[entity] {
			if k.wanted[member]--; k.wanted[member] > 0 {
				continue
			}
			for _, facts := range k.bySource {
				k.facts -= len(facts[member])
				delete(facts, member)
			}
		}
		delete(k.needs, entity)
	}
	k.order = k.order[:half]
}

// compare recomputes a vector and notes the differences.
func (v *verification) compare(p *pending, bySource map[string]map[string][]features.Fact) {
	current := map[string][]features.Fact{}
	for _, s := range p.group.Sources {
		reflected := map[string][]features.Fact{}
		for _, member := range p.members {
			for _, f := range bySource[s.Name][member] {
				if p.reflects(f.Origin) {
					reflected[member] = append(reflected[member], f)
				}
			}
		}
		current[s.Name] = features.CurrentOf(reflected, p.members, time.Time{})
	}
	want := p.group.Vector(current, p.GetEntity(), event.Time(p.GetAt().AsTime()))
	var all []Difference
	differs := func(feature, served, recomputed string) {
		all = append(all, Difference{Group: p.result.Group, Entity: p.GetEntity(), At: want.At, Feature: feature,
			Served: served, Recomputed: recomputed, Record: p.Place()})
	}
	if p.GetFound() != want.Found {
		differs("(any fact)", strconv.FormatBool(p.GetFound()), strconv.FormatBool(want.Found))
	}
	outputs := p.group.Outputs()
	for _, value := range p.GetValues() {
		served := resultOf(value)
		i := slices.IndexFunc(outputs, func(o features.Output) bool { return o.Name == value.GetFeature() })
		switch {
		case i < 0:
			differs(value.GetFeature(), text(served), "the group has no such feature")
		case !served.Equal(want.Values[i]):
			differs(value.GetFeature(), text(served), text(want.Values[i]))
		}
	}
	if len(all) == 0 {
		p.result.Equal++
		return
	}
	p.result.Different++
	v.found[p.index] = all
}

// text returns a value as JSON. Different floating-point numbers have different texts.
func text(r exact.Result) string {
	var value any
	switch r.Kind {
	case exact.IntResult:
		return strconv.FormatInt(r.Int, 10)
	case exact.FloatResult:
		return strconv.FormatFloat(r.Float, 'g', -1, 64)
	case exact.TextResult:
		value = r.Text
	case exact.TextsResult:
		value = append([]string{}, r.Texts...) // never null
	}
	b, _ := json.Marshal(value) // texts can always be marshalled
	return string(b)
}

// result returns the counts of all groups, and the first differences.
func (v *verification) result() Result {
	r := Result{Groups: []GroupResult{}, Differences: []Difference{}}
	for _, g := range v.groups {
		r.Groups = append(r.Groups, *g)
	}
	slices.SortFunc(r.Groups, func(a, b GroupResult) int { return cmp.Compare(a.Group, b.Group) })
	indexes := make([]int, 0, len(v.found))
	for i := range v.found {
		indexes = append(indexes, i)
	}
	slices.Sort(indexes)
	for _, i := range indexes {
		if len(r.Differences) < maxDifferences {
			r.Differences = append(r.Differences, v.found[i]...)
		}
	}
	r.Differences = r.Differences[:min(len(r.Differences), maxDifferences)]
	return r
}
