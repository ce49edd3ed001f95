package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace/millrace/features"
)

// TestFeaturesList: the groups are those of the configuration, and JSON describes them completely.
func TestFeaturesList(t *testing.T) {
	out, err := run(t, "features", "list")
	if err != nil || !strings.Contains(out, "customer_activity") || !strings.Contains(out, "session_behaviour") {
		t.Errorf("%v:\n%s", err, out)
	}
	t.Setenv("MILLRACE_FEATURES_GROUPS", "customer_value, basket_affinity")
	t.Setenv("MILLRACE_FEATURES_CURRENCY", "EUR")
	out, err = run(t, "features", "list", "--output", "json")
	var groups []features.Description
	if err == nil {
		err = json.Unmarshal([]byte(out), &groups)
	}
	if err != nil || len(groups) != 2 || groups[0].Group != "customer_value" || groups[1].Entity != "sku" {
		t.Errorf("%v:\n%s", err, out)
	}
	if !strings.Contains(out, `"sum(total) from customer_orders where currency = EUR"`) {
		t.Errorf("the currency of the configuration is not in the definitions:\n%s", out)
	}
	t.Setenv("MILLRACE_FEATURES_GROUPS", "customer_valeu")
	if _, err := run(t, "features", "list"); err == nil || !strings.Contains(err.Error(), "features.groups") {
		t.Errorf("an unknown group: %v", err)
	}
}

func TestFeaturesDescribe(t *testing.T) {
	out, err := run(t, "features", "describe", "customer_value")
	for _, want := range []string{"customer_value/v1 (live): features of each customer_id", "monetary_sum", "1d 7d 30d 90d lifetime", "where currency = GBP",
		"number or null", "millrace.orders"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%v, no %q in:\n%s", err, want, out)
		}
	}
	out, err = run(t, "features", "describe", "session_behaviour", "-o", "json")
	var d features.Description
	if err == nil {
		err = json.Unmarshal([]byte(out), &d)
	}
	if err != nil || d.Group != "session_behaviour" || len(d.Features) == 0 || d.Sources[0].Topic != "millrace.behavior" {
		t.Errorf("%v:\n%s", err, out)
	}
	if _, err := run(t, "features", "describe", "rfm"); err == nil || !strings.Contains(err.Error(), "millrace features list") {
		t.Errorf("an unknown group: %v", err)
	}
}

// TestDescribedVersion: a name is the live version, and the others are named with their states. Without
// an answer of the running system, a version must be named.
func TestDescribedVersion(t *testing.T) {
	groups := []*features.Group{{Name: "a", Version: 3}, {Name: "a", Version: 1}, {Name: "a", Version: 2}, {Name: "b", Version: 4}}
	gone := errors.New("no system answers")
	for _, c := range []struct {
		name    string
		live    map[string]int
		unknown error
		want    string
	}{
		{"a", map[string]int{"a": 2}, nil, "a/v2 (live)\nOther versions: a/v3 (filling), a/v1 (replaced)"},
		{"a", map[string]int{"a": 3}, nil, "a/v3 (live)\nOther versions: a/v1 (replaced), a/v2 (replaced)"},
		{"a", nil, nil, "a/v1 (live)\nOther versions: a/v3 (filling), a/v2 (filling)"}, // none has become live yet
		{"a/v3", map[string]int{"a": 2}, nil, "a/v3 (filling)\nOther versions: a/v1 (replaced), a/v2 (live)"},
		{"a/v1", nil, gone, "a/v1 (unknown)\nOther versions: a/v3 (unknown), a/v2 (unknown)"},
		{"b", nil, gone, "b/v4 (live)"},
		{"a", nil, gone, "no system answers: name a version: a/v3 or a/v1 or a/v2"},
		{"c", nil, nil, "millrace features list"},
	} {
		d, err := describeGroup(groups, c.name, c.live, c.unknown)
		got := fmt.Sprint(err)
		if err == nil {
			var b strings.Builder
			printGroup(&b, d)
			got = strings.ReplaceAll(b.String(), ": features of each  ()\n", "")
		}
		if !strings.Contains(got, c.want) || err == nil && strings.Contains(got, "Other") != strings.Contains(c.want, "Other") {
			t.Errorf("%s with %v live: %s, want %s", c.name, c.live, got, c.want)
		}
	}
}

// TestGroupsNamed: a name is the live version of a group, or the lowest one if none is known; an ID is
// a version.
func TestGroupsNamed(t *testing.T) {
	groups := []*features.Group{{Name: "a", Version: 2}, {Name: "a", Version: 1}, {Name: "b", Version: 4}}
	for _, c := range []struct {
		names []string
		live  map[string]int
		want  string
	}{
		{[]string{"a", " b"}, nil, "a/v1 b/v4"},
		{[]string{"a"}, map[string]int{"a": 2}, "a/v2"},
		{[]string{"a"}, map[string]int{"a": 7}, "a/v1"}, // a version that this program does not have
		{[]string{"a/v2", "b/v4"}, map[string]int{"a": 1}, "a/v2 b/v4"},
	} {
		named, err := groupsNamed(groups, c.names, c.live)
		var ids []string
		for _, g := range named {
			ids = append(ids, g.ID())
		}
		if got := strings.Join(ids, " "); err != nil || got != c.want {
			t.Errorf("%v with %v live: %s, %v, want %s", c.names, c.live, got, err, c.want)
		}
	}
	if _, err := groupsNamed(groups, []string{"a/v3"}, nil); err == nil || !strings.Contains(err.Error(), "want some of a, b") {
		t.Errorf("an unknown version: %v", err)
	}
}
