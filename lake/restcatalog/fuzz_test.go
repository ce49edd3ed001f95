package restcatalog

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
	"github.com/google/uuid"
)

func post(t *testing.T, body string) *http.Request {
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	return r
}

// Any request is applied to a table or refused by name. Nothing panics, and no client error is
// reported as the server's.
func FuzzCommit(f *testing.F) {
	for _, seed := range []string{
		`{"requirements":[{"type":"assert-create"}],"updates":[{"action":"assign-uuid","uuid":"00000000-0000-0000-0000-000000000001"}]}`,
		`{"requirements":[{"type":"assert-ref-snapshot-id","ref":"main","snapshot-id":null}],"updates":[{"action":"add-snapshot","snapshot":{"snapshot-id":1,"sequence-number":1,"timestamp-ms":1,"manifest-list":"x","summary":{"operation":"append"},"schema-id":0}},{"action":"set-snapshot-ref","ref-name":"main","type":"branch","snapshot-id":1}]}`,
		`{"requirements":[],"updates":[{"action":"add-schema","schema":{"type":"struct","fields":[{"id":1,"name":"n","type":"long","required":true},{"id":2,"name":"l","type":{"type":"list","element-id":3,"element":"string","element-required":false},"required":false}]}},{"action":"set-current-schema","schema-id":-1}]}`,
		`{"requirements":[],"updates":[{"action":"add-spec","spec":{"fields":[{"source-id":1,"transform":"bucket[4]","name":"b"}]}},{"action":"add-sort-order","sort-order":{"order-id":1,"fields":[{"source-id":1,"transform":"identity","direction":"asc","null-order":"nulls-first"}]}}]}`,
		`{"requirements":[],"updates":[{"action":"set-properties","updates":{"a":"b"}},{"action":"remove-properties","removals":["a"]},{"action":"set-location","location":"file:///x"},{"action":"remove-snapshots","snapshot-ids":[1]},{"action":"upgrade-format-version","format-version":3}]}`,
		`{"table-changes":[{"identifier":{"namespace":["n"],"name":"t"},"requirements":[],"updates":[]}]}`,
	} {
		f.Add(seed)
	}
	schema := iceberg.NewSchema(0, iceberg.NestedField{ID: 1, Name: "n", Type: iceberg.PrimitiveTypes.Int64})
	base, err := table.NewMetadataWithUUID(schema, nil, table.UnsortedSortOrder, "file:///w/t", nil, uuid.Max)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body string) {
		apply := func(c change, err error) {
			if err == nil {
				for _, meta := range []table.Metadata{base, nil} {
					for _, r := range c.requirements {
						_ = validateGuarded(r, meta)
					}
					m, err := update(meta, c.updates, "")
					if err == nil {
						_, err = encode(&plan{metadata: m, file: "x.metadata.json"})
					}
					if err != nil && refused(c.table, err) == nil {
						t.Error("no error")
					}
				}
				return
			}
			if oauthError := (*apiError)(nil); !errors.As(err, &oauthError) || oauthError.status != http.StatusBadRequest || oauthError.message == "" || goText.MatchString(oauthError.message) {
				t.Errorf("%T %v", err, err)
			}
		}
		var one changeRequest
		if err := read(post(t, body), &one); err != nil {
			apply(change{}, err)
		} else {
			apply(one.change(table.Identifier{"n", "t"}))
		}
		all, err := readTransaction(post(t, body))
		apply(change{}, err)
		for _, c := range all {
			apply(c, nil)
		}
	})
}

// The same for requests to create a table.
func FuzzCreate(f *testing.F) {
	f.Add(`{"name":"a","schema":{"type":"struct","fields":[{"id":1,"name":"n","type":"decimal(9, 2)","required":true},{"id":2,"name":"m","type":{"type":"map","key-id":3,"key":"string","value-id":4,"value":"long","value-required":true},"required":false}],"identifier-field-ids":[1]},
		"partition-spec":{"fields":[{"source-id":1,"transform":"truncate[4]","name":"b"}]},"write-order":{"order-id":1,"fields":[{"source-id":1,"transform":"identity","direction":"asc","null-order":"nulls-first"}]},"properties":{"format-version":"2"}}`)
	f.Fuzz(func(t *testing.T, body string) {
		var c createRequest
		err := readGuarded(post(t, body), &c)
		if oauthError := (*apiError)(nil); err != nil && (!errors.As(err, &oauthError) || oauthError.status != http.StatusBadRequest) {
			t.Errorf("%T %v", err, err)
		}
		if err != nil || c.Schema == nil {
			return
		}
		if m, err := c.metadata("file:///w/t", uuid.Max); err == nil {
			_, _ = encode(&plan{metadata: m, file: "x.metadata.json"})
		}
	})
}
