package app

import (
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/shop"
	"github.com/millrace/millrace/internal/config"
)

// FeatureGroups returns the feature groups that the configuration selects, with all of their versions.
func FeatureGroups(c config.Features) ([]*features.Group, error) {
	all := shop.Groups(shop.Options{Currency: c.Currency})
	if strings.TrimSpace(c.Groups) == "" {
		return all, nil
	}
	var selected []*features.Group
	for name := range strings.SplitSeq(c.Groups, ",") {
		name = strings.TrimSpace(name)
		named := func(g *features.Group) bool { return g.Name == name }
		if slices.ContainsFunc(selected, named) {
			return nil, fmt.Errorf("features.groups: %s is there twice", name)
		}
		before := len(selected)
		for _, g := range all {
			if named(g) {
				selected = append(selected, g)
			}
		}
		if len(selected) == before {
			return nil, fmt.Errorf("features.groups: %q is not a group: want some of %s", name, groupNames(all))
		}
	}
	return selected, nil
}

// newestVersions returns the last version of each group, for those who compute features from facts
// alone: they need no tables, so the last version is complete from the start.
func newestVersions(groups []*features.Group) []*features.Group {
	return slices.DeleteFunc(slices.Clone(groups), func(g *features.Group) bool {
		return slices.ContainsFunc(groups, func(o *features.Group) bool { return o.Name == g.Name && o.Version > g.Version })
	})
}

// groupNames lists groups for an error.
func groupNames(groups []*features.Group) string {
	var names []string
	for _, g := range groups {
		if !slices.Contains(names, g.Name) {
			names = append(names, g.Name)
		}
	}
	return strings.Join(names, ", ")
}
