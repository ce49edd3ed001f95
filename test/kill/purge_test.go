package kill

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// purgeStep is the deletion of one file of a purged table.
var purgeStep = step{role: "iceberg", point: "restcatalog.purge.file", at: 4}

// killPurge kills the process that serves the catalog while it deletes the files of a table that a
// client has dropped with purge. Afterwards the dropped table must be gone, its name available, and
// a table beside it unchanged.
func killPurge(ctx context.Context, s *system) error {
	s.purges++
	ns := fmt.Sprintf("purge_%d", s.purges)
	c := icebergClient{s: s}
	field := map[string]any{"id": 1, "name": "n", "type": "long", "required": false}
	schema := map[string]any{"type": "struct", "fields": []any{field}}
	create := func(name string) error {
		table := map[string]any{"name": name, "schema": schema}
		if _, err := c.call(ctx, http.MethodPost, "/namespaces/"+ns+"/tables", table); err != nil {
			return err
		}
		for n := range 8 { // each commit writes a metadata file
			update := map[string]any{"action": "set-properties", "updates": map[string]string{"n": fmt.Sprint(n)}}
			commit := map[string]any{"requirements": []any{}, "updates": []any{update}}
			if _, err := c.call(ctx, http.MethodPost, "/namespaces/"+ns+"/tables/"+name, commit); err != nil {
				return err
			}
		}
		return nil
	}
	if _, err := c.call(ctx, http.MethodPost, "/namespaces", map[string]any{"namespace": []string{ns}}); err != nil {
		return err
	}
	if err := errors.Join(create("dropped"), create("kept")); err != nil {
		return err
	}
	kept, err := c.call(ctx, http.MethodGet, "/namespaces/"+ns+"/tables/kept", nil)
	if err != nil {
		return err
	}

	r, i, starts, err := purgeStep.arm(ctx, s, "kill")
	if err != nil {
		return err
	}
	_, err = c.call(ctx, http.MethodDelete, "/namespaces/"+ns+"/tables/dropped?purgeRequested=true", nil)
	if err == nil {
		return errors.New("the purge was answered, but the process should have been killed in it")
	}
	ended := func() (bool, error) { return i.ended(), nil }
	if err := await(ctx, "process killed in the purge", failpointTimeout, ended); err != nil {
		return err
	}
	if err := r.backSince(ctx, starts); err != nil {
		return err
	}

	status, _, err := c.send(ctx, http.MethodGet, "/namespaces/"+ns+"/tables/dropped", nil)
	if err != nil || status != http.StatusNotFound {
		return fmt.Errorf("load the dropped table: status %d, want 404: %w", status, err)
	}
	now, err := c.call(ctx, http.MethodGet, "/namespaces/"+ns+"/tables/kept", nil)
	if err != nil {
		return err
	}
	if !bytes.Equal(kept, now) {
		return fmt.Errorf("the other table has changed from\n%s\nto\n%s", kept, now)
	}
	if err := create("dropped"); err != nil { // the name is available
		return err
	}
	for _, name := range []string{"dropped", "kept"} {
		_, err := c.call(ctx, http.MethodDelete, "/namespaces/"+ns+"/tables/"+name+"?purgeRequested=true", nil)
		if err != nil {
			return err
		}
	}
	_, err = c.call(ctx, http.MethodDelete, "/namespaces/"+ns, nil)
	return err
}

// icebergClient calls the catalog as an engine does.
type icebergClient struct{ s *system }

// call sends a request that must succeed.
func (c icebergClient) call(ctx context.Context, method, path string, body any) ([]byte, error) {
	status, answer, err := c.send(ctx, method, path, body)
	if err == nil && status >= http.StatusMultipleChoices {
		err = fmt.Errorf("%s %s: %d %s", method, path, status, tail(string(answer)))
	}
	return answer, err
}

// send sends a request and returns the status and the body of the answer.
func (c icebergClient) send(ctx context.Context, method, path string, body any) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	content := []byte(nil)
	if body != nil {
		if content, err = json.Marshal(body); err != nil {
			return 0, nil, err
		}
	}
	i, _, err := c.s.role("iceberg").now()
	if err != nil {
		return 0, nil, err
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+i.addr+"/iceberg/v1"+path,
		bytes.NewReader(content))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close() //nolint:errcheck // read to its end
	answer, err = io.ReadAll(response.Body)
	return response.StatusCode, answer, err
}
