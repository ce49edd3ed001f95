package feast

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/persons"
	"github.com/millrace/millrace/internal/decode"
)

// Limits of a command.
const (
	maxCommand  = 1 << 20 // bytes
	maxFeatures = 1_000
)

// historical is the only API that is served; the others of Feast's offline store write, or read data
// sources, which the generated registry does not have.
const historical = "get_historical_features"

// command is what a client asks for, in the descriptor of its stream. Fields that are unknown here are
// ignored.
type command struct {
	API      string    `json:"api"`
	Views    []string  `json:"feature_view_names"`
	Aliases  []*string `json:"name_aliases"` // of the views; null: none
	Features []string  `json:"feature_refs"` // VIEW:FEATURE, with the alias of a view that has one
	Full     bool      `json:"full_feature_names"`
	SQL      string    `json:"entity_df_sql"`
}

// parseCommand decodes a command and checks its form.
func parseCommand(b []byte) (*command, error) {
	var c command
	switch {
	case len(b) == 0:
		return nil, bad("the stream's first message has no command: want the descriptor of Feast's client")
	case len(b) > maxCommand:
		return nil, bad("the command has more than %d bytes", maxCommand)
	}
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&c); err != nil {
		return nil, bad("the command is not one of Feast's client: %s", decode.ExplainJSON(b, err))
	}
	switch {
	case c.API != historical:
		return nil, &fault{connect.CodeUnimplemented, classAny, fmt.Sprintf("api %q is not served: %s is. "+
			"Feature views are computed from the log, so nothing is written, materialized or applied", c.API, historical)}
	case c.SQL != "":
		return nil, bad("entity_df is a query: pass a DataFrame; `millrace features training-set --spine` takes a query")
	case len(c.Features) == 0:
		return nil, bad("features: want at least one")
	case len(c.Features) > maxFeatures:
		return nil, bad("features: %d are more than %d", len(c.Features), maxFeatures)
	case len(c.Aliases) > len(c.Views):
		return nil, bad("name_aliases: %d are more than the %d feature views", len(c.Aliases), len(c.Views))
	}
	return &c, nil
}

// plan is what a command asks for.
type plan struct {
	joins   []*join
	outputs []output
}

// join is the features of one entity.
type join struct {
	key     string
	groups  []*features.Group
	outputs []string // group__output, each once
}

// output is a column of the answer.
type output struct {
	name   string
	join   int // in plan.joins
	column int // in join.outputs
}

// resolve finds the groups and features of a command.
func (c *command) resolve(groups []*features.Group) (*plan, error) {
	named := map[string]string{} // groups by the names that features use
	for i, view := range c.Views {
		name := view
		if i < len(c.Aliases) && c.Aliases[i] != nil && *c.Aliases[i] != "" {
			name = *c.Aliases[i]
		}
		named[name] = view
	}
	p := &plan{}
	for _, ref := range c.Features {
		view, feature, ok := strings.Cut(ref, ":")
		if !ok {
			return nil, bad("features: %q: want VIEW:FEATURE", ref)
		}
		name, ok := named[view]
		if !ok {
			name = view
		}
		i := slices.IndexFunc(groups, func(g *features.Group) bool { return g.Name == name })
		if i < 0 {
			return nil, &fault{connect.CodeNotFound, classView, fmt.Sprintf("Feature view %s does not exist", name)}
		}
		g := groups[i]
		if !slices.ContainsFunc(g.Outputs(), func(o features.Output) bool { return o.Name == feature }) {
			return nil, &fault{connect.CodeNotFound, classNotFound,
				fmt.Sprintf("Feature %s does not exist in feature view %s", feature, name)}
		}
		to := output{name: feature}
		if c.Full {
			to.name = view + "__" + feature
		}
		to.join, to.column = p.add(g, feature)
		if slices.ContainsFunc(p.outputs, func(o output) bool { return o.name == to.name }) {
			return nil, &fault{connect.CodeInvalidArgument, classCollision, fmt.Sprintf(
				"The feature %s is requested twice: use full_feature_names, or request it once", to.name)}
		}
		p.outputs = append(p.outputs, to)
	}
	return p, nil
}

// add adds a feature of a group, and returns where it will be.
func (p *plan) add(g *features.Group, feature string) (index, column int) {
	index = slices.IndexFunc(p.joins, func(j *join) bool { return j.key == g.Entity })
	if index < 0 {
		index = len(p.joins)
		p.joins = append(p.joins, &join{key: g.Entity})
	}
	j := p.joins[index]
	if !slices.Contains(j.groups, g) {
		j.groups = append(j.groups, g)
	}
	name := g.Name + "__" + feature
	if column = slices.Index(j.outputs, name); column < 0 {
		column = len(j.outputs)
		j.outputs = append(j.outputs, name)
	}
	return index, column
}

// sources returns the sources of all groups, and the identity graph if one of them follows it.
func (p *plan) sources() (all []*features.Source) {
	follows := false
	for _, j := range p.joins {
		follows = follows || persons.Follow(j.groups...)
		for _, g := range j.groups {
			for i := range g.Sources {
				all = append(all, &g.Sources[i])
			}
		}
	}
	if follows {
		all = append(all, &persons.Source)
	}
	return all
}
