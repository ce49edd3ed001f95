package main

import (
	"strings"
	"testing"

	flagsv1 "github.com/millrace/millrace/gen/millrace/flags/v1"
)

func TestTypeOfNewFlags(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"true": "bool", "false": "bool", "True": "string", "7": "int", "-7": "int", "9223372036854775808": "float",
		"1.5": "float", "1e3": "float", "{}": "object", `{"a": 1}`: "object", "{a}": "string", "[1]": "string",
		"null": "string", `"7"`: "string", "hello world": "string", "": "string",
	} {
		if got := typeOf(value); got != want {
			t.Errorf("the type of %q is %s, want %s", value, got, want)
		}
	}
}

func TestValuesAreJSON(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ kind, value, want string }{
		{"bool", "true", "true"}, {"int", "x", "x"}, {"object", "{}", "{}"},
		{"string", "a b", `"a b"`}, {"string", `"a b"`, `"a b"`}, {"string", "7", `"7"`}, {"string", "null", `"null"`},
		{"string", `say "a"`, `"say \"a\""`}, {"string", "", `""`},
	} {
		if got := flagJSON(c.kind, c.value); got != c.want {
			t.Errorf("%s %q becomes %s, want %s", c.kind, c.value, got, c.want)
		}
	}
}

// TestRollout turns percentages into shares. Values that are not given are those of the flag, which then
// must not change meanwhile.
func TestRollout(t *testing.T) {
	t.Parallel()
	present := &flagsv1.Flag{Type: "string", Revision: 7, Variants: []*flagsv1.Variant{
		{Name: "old", Value: `"v1"`, Share: 10_000}, {Name: "new", Value: `"v2"`}}}
	req := &flagsv1.SetFlagRequest{Type: "string"}
	if err := setRollout(req, present, []string{"new=v3"}, []string{"old=66.67", "new=33.33%"}); err != nil {
		t.Fatal(err)
	}
	v := req.GetVariants()
	if len(v) != 2 || v[0].GetShare() != 6667 || v[0].GetValue() != `"v1"` || v[1].GetShare() != 3333 ||
		v[1].GetValue() != `"v3"` || req.Revision == nil || req.GetRevision() != 7 {
		t.Errorf("the request is %v", req)
	}
	fresh := &flagsv1.SetFlagRequest{}
	if err := setRollout(fresh, &flagsv1.Flag{Revision: absent}, []string{"a=1.5", "b=2"}, []string{"a=0", "b=100"}); err != nil {
		t.Fatal(err)
	}
	if fresh.GetType() != "float" || fresh.Revision != nil {
		t.Errorf("the request of a new flag is %v", fresh)
	}
	for what, c := range map[string]struct {
		variants, rollout []string
		want              string
	}{
		"three decimals":    {nil, []string{"old=33.333", "new=66.667"}, "two decimals"},
		"no percentage":     {nil, []string{"old"}, "NAME=PERCENT"},
		"no number":         {nil, []string{"old=NaN"}, "NAME=PERCENT"},
		"a negative one":    {nil, []string{"old=-1"}, "from 0 to 100"},
		"more than all":     {nil, []string{"old=100.01"}, "from 0 to 100"},
		"an unknown name":   {nil, []string{"none=100"}, "add --variant none=VALUE"},
		"no value":          {[]string{"old"}, []string{"old=100"}, "NAME=VALUE"},
		"no share":          {[]string{"odl=v1"}, []string{"old=100"}, "add odl=PERCENT"},
		"an empty variant":  {nil, []string{""}, "NAME=PERCENT"},
		"an infinite share": {nil, []string{"old=Inf"}, "NAME=PERCENT"},
	} {
		err := setRollout(&flagsv1.SetFlagRequest{Type: "string"}, present, c.variants, c.rollout)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", what, err, c.want)
		}
	}
}
