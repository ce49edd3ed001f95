package online

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/persons"
)

// definitions are the groups that a store was made for.
type definitions struct {
	groups      []*features.Group
	fingerprint string
	spaces      []*space
	topics      []string // in the order of Positions
	follows     bool     // the identity graph

	setLive sync.Mutex
	live    atomic.Pointer[map[string]*features.Group] // the live version of each group, by name
}

// space is the entities of one kind, such as customers, and the sources of facts about them.
type space struct {
	index    int
	entity   string            // Group.Entity
	identity features.Identity // Group.Identity
	sources  []*layout
}

// define returns the definitions of groups that passed their Check.
func define(groups []*features.Group) (*definitions, error) {
	d := &definitions{groups: groups, fingerprint: Fingerprint(groups)}
	topics, live := map[string]bool{}, map[string]*features.Group{}
	d.live.Store(&live)
	for _, g := range groups {
		if lowest := live[g.Name]; lowest == nil || g.Version < lowest.Version {
			live[g.Name] = g
		}
		sp := d.space(g.Entity)
		if len(sp.sources) == 0 {
			sp.identity = g.Identity
		}
		if sp.identity != g.Identity {
			return nil, fmt.Errorf("feature group %q: other groups of %s have another identity", g.Name, g.Entity)
		}
		for i := range g.Sources {
			if err := sp.add(g, &g.Sources[i]); err != nil {
				return nil, fmt.Errorf("feature group %q: %w", g.Name, err)
			}
			if t := g.Sources[i].Topic; !topics[t] {
				topics[t] = true
				d.topics = append(d.topics, t)
			}
		}
	}
	if d.follows = persons.Follow(groups...); d.follows && !topics[persons.Source.Topic] {
		d.topics = append(d.topics, persons.Source.Topic)
	}
	return d, nil
}

// space returns the space of a kind of entities, and adds it if necessary.
func (d *definitions) space(entity string) *space {
	for _, sp := range d.spaces {
		if sp.entity == entity {
			return sp
		}
	}
	sp := &space{index: len(d.spaces), entity: entity}
	d.spaces = append(d.spaces, sp)
	return sp
}

// Topics returns the topics of the groups' sources, and that of the identity graph if a group follows it.
func (d *definitions) Topics() []string { return d.topics }

// topicIndex returns the index of a topic, or -1.
func (d *definitions) topicIndex(topic string) int { return slices.Index(d.topics, topic) }

// sources returns the sources of a topic. The identity graph is one.
func (d *definitions) sources(topic string) (all []features.Source) {
	if d.follows && topic == persons.Source.Topic {
		all = append(all, persons.Source)
	}
	for _, sp := range d.spaces {
		for _, l := range sp.sources {
			same := func(s features.Source) bool { return s.Name == l.source.Name }
			if l.source.Topic == topic && !slices.ContainsFunc(all, same) {
				all = append(all, *l.source)
			}
		}
	}
	return all
}

// Groups returns the groups that the store was made for.
func (d *definitions) Groups() []*features.Group { return d.groups }

// Group returns the live version of a group by the name of the group, or a version by its ID. It
// returns nil if there is none.
func (d *definitions) Group(name string) *features.Group {
	if g := (*d.live.Load())[name]; g != nil {
		return g
	}
	for _, g := range d.groups {
		if g.ID() == name {
			return g
		}
	}
	return nil
}

// SetLive sets which version of a group is live. At first, that is the lowest one.
func (d *definitions) SetLive(g *features.Group) {
	d.setLive.Lock()
	defer d.setLive.Unlock()
	live := maps.Clone(*d.live.Load())
	live[g.Name] = g
	d.live.Store(&live)
}

// empty returns the positions before everything.
func (d *definitions) empty() *Positions {
	p := &Positions{Topics: make([]TopicPositions, len(d.topics))}
	for i, t := range d.topics {
		p.Topics[i].Topic = t
	}
	return p
}
