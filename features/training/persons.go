package training

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/millrace/millrace/event/identity"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/persons"
)

// A row about an entity that was one person with others, as it was known at the row's time, is joined as a
// row about the person: an entity of the join's own, whose facts are those of all members. Rows with
// different members are different persons, so a merge that was recorded later has no effect on earlier
// rows. The facts of a person are read in addition to those of the members.

// people is the persons of the entities of one kind.
type people struct {
	kind    features.Identity
	graph   *persons.Graph
	refuses func(ids ...string) bool // nil: none
	names   map[string]string        // of persons, by their members
	of      map[string][]string      // names of persons, by member
}

// withheld is the entity of rows whose person refuses. No fact has it.
const withheld = ""

func newPeople(kind features.Identity, graph *persons.Graph, refuses func(ids ...string) bool) *people {
	return &people{kind: kind, graph: graph, refuses: refuses, names: map[string]string{}, of: map[string][]string{}}
}

// entity returns the entity as which a row is joined: itself, a person, or withheld if the person refuses,
// who is the one of now and the one of then.
func (p *people) entity(entity string, known int64) string {
	members := p.graph.Members(p.kind, entity, known)
	if p.refuses != nil {
		for _, ids := range [][]string{members, p.graph.Members(p.kind, entity, persons.Now)} {
			if ids == nil {
				ids = []string{entity}
			}
			if p.refuses(ids...) {
				return withheld
			}
		}
	}
	if members == nil {
		return entity
	}
	key := strings.Join(members, "\x00")
	name, ok := p.names[key]
	if !ok {
		// Beside its first member, so that persons are in all ranges.
		name = fmt.Sprintf("%s\x00person %d", members[0], len(p.names))
		p.names[key] = name
		for _, m := range members {
			p.of[m] = append(p.of[m], name)
		}
	}
	return name
}

// membersIn returns the members of the persons in a range, sorted.
func (p *people) membersIn(r Range) []string {
	var all []string
	for member, names := range p.of {
		if slices.ContainsFunc(names, r.Contains) {
			all = append(all, member)
		}
	}
	slices.Sort(all)
	return all
}

// graphShare is the part of Config.Memory that the identity graph may take: a half.
const graphShare = 2

// readGraph reads the identity graph up to the positions. Without positions, it is empty.
func (r *run) readGraph(ctx context.Context) (_ *persons.Graph, err error) {
	graph := &persons.Graph{}
	upto := r.Positions[persons.Source.Topic]
	if !persons.Follow(r.Groups...) || len(upto) == 0 {
		return graph, nil
	}
	facts := r.Facts
	request := Request{Source: &persons.Source, Columns: []int{0, 1, 2}, Upto: upto, After: math.MinInt64, Until: math.MaxInt64}
	if s, ok := facts.(splitter); ok {
		split, err := s.split(ctx, r.dir, []dividedRequest{{Request: request}},
			func(n, of int64) { r.Progress("reading the identity graph", n, of) })
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, split.close()) }()
		facts = split
	}
	err = facts.Read(ctx, request, func(b *Batch) error {
		for i := range b.Rows {
			graph.Add(persons.Change{
				Ends:     [2]identity.Node{identity.Node(b.Entity.At(i)), identity.Node(b.Values[0].Text.At(i))},
				Revision: b.Values[1].Int[i], Joined: b.Values[2].Int[i] != 0, Known: b.Known[i],
			})
		}
		if graph.Bytes() > r.Memory/graphShare {
			return fail("memory: %d MiB are too few, because the identity graph takes more than half of them", r.Memory>>20)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the identity graph: %w", err)
	}
	return graph, nil
}

// withPersons is Facts in which the persons of entities have the facts of their members.
type withPersons struct {
	Facts
	bySource map[string]*people // by the name of a source
}

// maxMembers is the number of members whose facts are read by one request.
const maxMembers = 300

// Read implements Facts.
func (f *withPersons) Read(ctx context.Context, r Request, each func(*Batch) error) error {
	if err := f.Facts.Read(ctx, r, each); err != nil {
		return err
	}
	p := f.bySource[r.Source.Name]
	var out Batch
	out.reset(len(r.Columns))
	flush := func() error {
		if out.Rows == 0 {
			return nil
		}
		err := each(&out)
		out.reset(len(r.Columns))
		return err
	}
	for some := range slices.Chunk(p.membersIn(r.Range), maxMembers) {
		request := r
		request.Range, request.Entities = Range{}, some
		err := f.Facts.Read(ctx, request, func(b *Batch) error {
			for i := range b.Rows {
				member := b.Entity.At(i)
				for _, name := range p.of[member] {
					if !r.Range.Contains(name) {
						continue
					}
					out.copy(r, b, i, name, features.MemberKey(b.Key.At(i), member))
					if out.Rows == batchRows {
						if err := flush(); err != nil {
							return err
						}
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return flush()
}

// withPersons returns the facts with those of the persons that rows are about.
func (r *run) withPersons(facts Facts) Facts {
	f := &withPersons{facts, map[string]*people{}}
	for _, p := range r.passes {
		for _, s := range p.plan.sources {
			f.bySource[s.source.Name] = p.people
		}
	}
	return f
}
