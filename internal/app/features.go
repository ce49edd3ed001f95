package app

import (
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/shop"
	"github.com/millrace/millrace/internal/config"
)

// FeatureGroups returns the feature groups that the configuration selects.
func FeatureGroups(c config.Features) ([]*features.Group, error) {
	all := shop.Groups(shop.Options{Currency: c.Currency})
	if strings.TrimSpace(c.Groups) == "" {
		return all, nil
	}
	var selected []*features.Group
	for name := range strings.SplitSeq(c.Groups, ",") {
		name = strings.TrimSpace(name)
		i := slices.IndexFunc(all, func(g *features.Group) bool { return g.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("features.groups: %q is not a group: want some of %s", name, groupNames(all))
		}
		if slices.Contains(selected, all[i]) {
			return nil, fmt.Errorf("features.groups: %s is there twice", name)
		}
		selected = append(selected, all[i])
	}
	return selected, nil
}

// groupNames lists groups for an error.
func groupNames(groups []*features.Group) string {
	names := make([]string, len(groups))
	for i, g := range groups {
		names[i] = g.Name
	}
	return strings.Join(names, ", ")
}
