package elasticsearch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/elastic/go-elasticsearch/v9/esapi"

	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/streams"
)

// responseError is an error response of Elasticsearch, to a request or to one item of a bulk
// request.
type responseError struct {
	Type   string `json:"type"`
	Reason string `json:"reason"`
	status int    // of HTTP
	hint   string // what to do about it; empty if unknown
}

func (e *responseError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("%sElasticsearch returned %d %s %s", e.hint, e.status, e.Type, e.Reason))
}

// Is makes a missing index match streams.ErrLost, so that the view is rebuilt, and a missing
// privilege match catalog.ErrReadOnly.
func (e *responseError) Is(target error) bool {
	switch target {
	case streams.ErrLost:
		return e.gone()
	case catalog.ErrReadOnly:
		return e.status == http.StatusForbidden
	}
	return false
}

// gone reports whether the index does not exist.
func (e *responseError) gone() bool { return e.Type == "index_not_found_exception" }

// gone reports whether an error means that the index does not exist.
func gone(err error) bool {
	var refused *responseError
	return errors.As(err, &refused) && refused.gone()
}

// do sends a request and decodes the response into a variable, unless into is nil. An error
// response is returned as a *responseError.
func (x *Index) do(ctx context.Context, r esapi.Request, into any) error {
	answer, err := r.Do(ctx, x.client)
	if err != nil {
		return fmt.Errorf("send request to Elasticsearch: %w", err)
	}
	// Read to the end even on errors, so that the connection can be reused.
	body, err := io.ReadAll(answer.Body)
	if err = errors.Join(err, answer.Body.Close()); err != nil {
		return fmt.Errorf("read Elasticsearch's response: %w", err)
	}
	if answer.IsError() {
		return x.refused(answer.StatusCode, body)
	}
	// Every Elasticsearch sends this header. Without it, a proxy or another product has answered.
	if product := answer.Header.Get("X-Elastic-Product"); product != "Elasticsearch" {
		return fmt.Errorf("the server at %v is not Elasticsearch: %s", x.client.URLs(), answer.Status())
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("read Elasticsearch's response: %w", err)
	}
	return nil
}

// refused returns the error for a response, with a hint if the cause is the user or its privileges.
func (x *Index) refused(status int, body []byte) error {
	refused := &responseError{status: status}
	// Decodes into refused, because the field holds a pointer to it.
	parsed := struct{ Error any }{refused}
	// Not all errors are objects, and not all responses come from Elasticsearch.
	if json.Unmarshal(body, &parsed) != nil || refused.Type == "" {
		const most = 200
		refused.Reason = string(body[:min(len(body), most)])
	}
	// The most frequent mistakes in a configuration.
	switch status {
	case http.StatusUnauthorized:
		refused.hint = fmt.Sprintf("authentication failed for user %q: check search.user and search.password: ", x.user)
	case http.StatusForbidden:
		refused.hint = fmt.Sprintf("the user %q lacks a privilege on %s*: ", x.user, x.alias)
	}
	return refused
}

// jsonBody returns a request body.
func jsonBody(v any) io.Reader {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // unreachable: maps and strings only
	}
	return bytes.NewReader(b)
}

// found is a document, or the reason why it could not be read. SeqNo and Primary identify the state
// of the document, for a conditional write.
type found[D any] struct {
	ID      string          `json:"_id"`
	Found   bool            `json:"found"`
	SeqNo   *int64          `json:"_seq_no"`
	Primary *int64          `json:"_primary_term"`
	Stored  json.RawMessage `json:"_source"`
	Error   *responseError  `json:"error"`

	Source D     // Stored, decoded
	Bad    error // why Stored is not a D
}

// read returns documents by id. It sees writes before they are refreshed, unlike a search.
func read[D any](ctx context.Context, x *Index, field string, ids ...string) ([]found[D], error) {
	var answer struct{ Docs []found[D] }
	err := x.do(ctx, esapi.MgetRequest{Index: x.alias, Body: jsonBody(map[string]any{"ids": ids}),
		SourceIncludes: []string{field}}, &answer)
	if err != nil {
		return nil, err
	}
	// One unreadable document must not hide the others, so Bad is per document.
	for i := range answer.Docs {
		d := &answer.Docs[i]
		if d.Error != nil {
			return nil, fmt.Errorf("%q: %w", d.ID, d.Error)
		}
		if d.Found {
			d.Bad = json.Unmarshal(d.Stored, &d.Source)
		}
	}
	return answer.Docs, nil
}
