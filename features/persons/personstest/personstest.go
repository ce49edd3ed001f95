// Package personstest makes changes of the identity graph for tests of features.
package personstest

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/event/identity"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/persons"
)

// Links is the edges of a graph.
type Links struct {
	revisions map[[2]identity.Node]int64
}

// Change returns the facts of a change of an edge, one for each end, as the source has them.
func (l *Links) Change(a, b identity.Node, joined bool, known time.Time) [2]features.Fact {
	if l.revisions == nil {
		l.revisions = map[[2]identity.Node]int64{}
	}
	if b < a {
		a, b = b, a
	}
	l.revisions[[2]identity.Node{a, b}]++
	revision := l.revisions[[2]identity.Node{a, b}]
	value := exact.FromInt64(0)
	if joined {
		value = exact.FromInt64(1)
	}
	fact := func(end, other identity.Node) features.Fact {
		return features.Fact{Entity: string(end), Key: fmt.Sprintf("%s/%d", other, revision), At: known, Known: known,
			Values: []exact.Value{exact.TextValue(string(other)), exact.IntValue(exact.FromInt64(revision)), exact.IntValue(value)}}
	}
	return [2]features.Fact{fact(a, b), fact(b, a)}
}

// Graph returns the graph of facts.
func Graph(facts []features.Fact) (*persons.Graph, error) {
	g := &persons.Graph{}
	for i := range facts {
		c, err := persons.ChangeOf(&facts[i])
		if err != nil {
			return nil, err
		}
		g.Add(c)
	}
	return g, nil
}
