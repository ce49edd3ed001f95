package elasticsearch

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	"github.com/elastic/go-elasticsearch/v9/esapi"

	"github.com/millrace/millrace/internal/settings"
)

// Settings reports differences between the index and the one that this package creates. They may
// come from an operator, from an index template, or from another program. A missing index has no
// faults. All faults are fatal: with any of them, searches are wrong or a crash loses products.
func (x *Index) Settings(ctx context.Context) ([]settings.Fault, error) {
	var mappings map[string]struct{ Mappings json.RawMessage }
	// Both requests name the alias, and return the index behind it.
	err := x.do(ctx, esapi.IndicesGetMappingRequest{Index: []string{x.alias}}, &mappings)
	if gone(err) {
		return nil, nil // it is created with the right settings later
	}
	var configs map[string]struct {
		Settings struct{ Index map[string]any }
	}
	if err == nil {
		err = x.do(ctx, esapi.IndicesGetSettingsRequest{Index: []string{x.alias}}, &configs)
	}
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("catalog index: read its settings: %w", err)
	}
	var faults []settings.Fault
	for index, answer := range mappings {
		add := func(setting, value, want, effect, remedy string) {
			faults = append(faults, settings.Fault{
				Resource: "elasticsearch index " + index, Setting: setting, Value: value, Want: want, Effect: effect,
				Remedy: remedy, Fatal: true,
			})
		}
		rebuild := "delete the index; it is rebuilt from the log"
		// Compare field by field, so that the fault names the field.
		wanted, actual, err := fieldsOf(mappingOf(x.alias)["mappings"], answer.Mappings)
		if err != nil {
			return faults, err
		}
		for _, field := range differences(wanted, actual) {
			add("mapping of "+field, jsonText(actual[field]), jsonText(wanted[field]),
				"searches miss products, or return wrong ones", rebuild)
		}
		config := configs[index].Settings.Index
		if translog, ok := config["translog"].(map[string]any); ok && translog["durability"] == "async" {
			add("index.translog.durability", "async", "request",
				"a crash loses products but not the positions after them",
				fmt.Sprintf(`PUT /%s/_settings {"index.translog.durability":"request"}`, index))
		}
		if n, ok := config["number_of_shards"].(string); ok && n != "1" {
			add("index.number_of_shards", n, "1", "scores are not comparable across pages", rebuild)
		}
	}
	return faults, nil
}

// fieldsOf returns the fields of two mappings by name. "dynamic" is included as if it were a field,
// under a name that no field has.
func fieldsOf(ours any, theirs json.RawMessage) (wanted, actual map[string]any, err error) {
	// Encode and decode ours, so that both sides have the same Go types.
	encoded, err := json.Marshal(ours)
	if err != nil {
		return nil, nil, err
	}
	for _, side := range []struct {
		raw []byte
		to  *map[string]any
	}{{encoded, &wanted}, {theirs, &actual}} {
		var m struct {
			Dynamic    any
			Properties map[string]any
		}
		if err := json.Unmarshal(side.raw, &m); err != nil {
			return nil, nil, fmt.Errorf("catalog index: read its mapping: %w", err)
		}
		*side.to = m.Properties
		if m.Properties == nil {
			*side.to = map[string]any{}
		}
		if m.Dynamic != nil {
			(*side.to)["(dynamic)"] = m.Dynamic
		}
	}
	return wanted, actual, nil
}

// differences returns the names of the fields that differ.
func differences(a, b map[string]any) []string {
	var all []string
	for field := range a {
		if !reflect.DeepEqual(a[field], b[field]) {
			all = append(all, field)
		}
	}
	// Fields that only b has.
	for field := range b {
		if _, wanted := a[field]; !wanted {
			all = append(all, field)
		}
	}
	slices.Sort(all)
	return all
}

// jsonText formats a setting for a fault.
func jsonText(v any) string {
	if v == nil {
		return "absent"
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
