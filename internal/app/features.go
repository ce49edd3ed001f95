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
