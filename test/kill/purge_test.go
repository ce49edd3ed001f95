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

// purging is the deletion of one file of a purged table.
var purging = step{role: "iceberg", point: "restcatalog.purge.file", at: 4}

// killPurge kills the process that serves the catalog while it deletes the files of a table that a
// client has dropped. Another client has a table of the same kind beside it. The dropped table must
// be gone and its name available, and the other table unchanged.
func killPurge(ctx context.Context, s *system) error {
	s.purges++
	ns := fmt.Sprintf("purge_%d", s.purges)
	c := icebergClient{s: s}
	schema := map[string]any{"type": "struct", "fields": []any{map[string]any{"id": 1, "name": "n", "type": "long", "required": false}}}
	create := func(name string) error {
		if _, err := c.ask(ctx, http.MethodPost, "/namespaces/"+ns+"/tables", map[string]any{"name": name, "schema": schema}); err != nil {
			return err
		}
		for n := range 8 { // each commit writes a metadata file
			update := map[string]any{"action": "set-properties", "updates": map[string]string{"n": fmt.Sprint(n)}}
			commit := map[string]any{"requirements": []any{}, "updates": []any{update}}
			if _, err := c.ask(ctx, http.MethodPost, "/namespaces/"+ns+"/tables/"+name, commit); err != nil {
				return err
			}
		}
		return nil
	}
	if _, err := c.ask(ctx, http.MethodPost, "/namespaces", map[string]any{"namespace": []string{ns}}); err != nil {
		return err
	}
	if err := errors.Join(create("dropped"), create("kept")); err != nil {
		return err
	}
	kept, err := c.ask(ctx, http.MethodGet, "/namespaces/"+ns+"/tables/kept", nil)
	if err != nil {
		return err
	}

	r, i, starts, err := purging.arm(ctx, s, "kill")
	if err != nil {
		return err
	}
	if _, err := c.ask(ctx, http.MethodDelete, "/namespaces/"+ns+"/tables/dropped?purgeRequested=true", nil); err == nil {
		return errors.New("the purge was answered, and the process was to die in it")
	}
	if err := await(ctx, "dead in the purge", firesWithin, func() (bool, error) { return i.ended(), nil }); err != nil {
		return err
	}
	if err := r.backSince(ctx, starts); err != nil {
		return err
	}

	if status, _, err := c.try(ctx, http.MethodGet, "/namespaces/"+ns+"/tables/dropped", nil); err != nil || status != http.StatusNotFound {
		return fmt.Errorf("the dropped table: %d, %w", status, err)
	}
	now, err := c.ask(ctx, http.MethodGet, "/namespaces/"+ns+"/tables/kept", nil)
	if err != nil {
		return err
	}
	if !bytes.Equal(kept, now) {
		return fmt.Errorf("the other table was\n%s\nand is\n%s", kept, now)
	}
	if err := create("dropped"); err != nil { // the name is available
		return err
	}
	for _, name := range []string{"dropped", "kept"} {
		if _, err := c.ask(ctx, http.MethodDelete, "/namespaces/"+ns+"/tables/"+name+"?purgeRequested=true", nil); err != nil {
			return err
		}
	}
	_, err = c.ask(ctx, http.MethodDelete, "/namespaces/"+ns, nil)
	return err
}

// icebergClient calls the catalog as an engine does.
type icebergClient struct{ s *system }

// ask sends a request that must succeed.
func (c icebergClient) ask(ctx context.Context, method, path string, body any) ([]byte, error) {
	status, answer, err := c.try(ctx, method, path, body)
	if err == nil && status >= http.StatusMultipleChoices {
		err = fmt.Errorf("%s %s: %d %s", method, path, status, last(string(answer)))
	}
	return answer, err
}

func (c icebergClient) try(ctx context.Context, method, path string, body any) (status int, answer []byte, err error) {
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
	request, err := http.NewRequestWithContext(ctx, method, "http://"+i.addr+"/iceberg/v1"+path, bytes.NewReader(content))
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
