package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/sr"
)

// Config says where the registry is and how to log in.
type Config struct {
	URL      string // base of its Confluent API: http(s)://host:port/path; several, separated by commas, are tried in turn
	User     string // basic authentication, where not empty
	Password string
	TLS      *tls.Config   // for https; nil means the system's authorities
	Timeout  time.Duration // of one request; 5 seconds where 0
	Logger   *slog.Logger  // slog.Default() where nil
}

// Client speaks to one registry. A process needs one, which its encoders and its decoder share. It is safe for concurrent use.
type Client struct {
	api  *sr.Client
	http *http.Client
	log  *slog.Logger
	url  string

	mu       sync.Mutex
	degraded bool
}

const watchEvery = 10 * time.Second

// NewClient checks the configuration; it does not connect.
func NewClient(cfg Config) (*Client, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 5 * time.Second
	}
	urls := strings.Split(cfg.URL, ",")
	for i, u := range urls {
		urls[i] = strings.TrimSpace(u)
		if parsed, err := url.Parse(urls[i]); err != nil || parsed.Host == "" || parsed.Scheme != "http" && parsed.Scheme != "https" {
			return nil, fmt.Errorf("schema registry: URL %q: want http(s)://host:port", urls[i])
		}
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = cfg.TLS
	c := &Client{http: &http.Client{Transport: transport, Timeout: cfg.Timeout}, log: cfg.Logger, url: cfg.URL}
	opts := []sr.ClientOpt{sr.URLs(urls...), sr.HTTPClient(c.http), sr.UserAgent("millrace")}
	if cfg.User != "" {
		opts = append(opts, sr.BasicAuth(cfg.User, cfg.Password))
	}
	var err error
	if c.api, err = sr.NewClient(opts...); err != nil {
		return nil, fmt.Errorf("schema registry: %w", err)
	}
	return c, nil
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Degraded tells whether the registry was out of reach when it was last asked. Who has its schemas goes on all the same; a producer that
// starts, or a consumer that meets a new schema, waits.
func (c *Client) Degraded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.degraded
}

// Watch asks the registry now and then, so that Degraded is true to what is, until ctx ends, and returns nil then.
func (c *Client) Watch(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		_ = c.Ping(ctx) // its outcome is noted
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Ping asks the registry whether it is there.
func (c *Client) Ping(ctx context.Context) error {
	var level struct{}
	return c.outcome(ctx, c.api.Do(ctx, http.MethodGet, "/config", nil, &level))
}

// outcome takes note of how a request went, and marks errors that can pass by themselves.
func (c *Client) outcome(ctx context.Context, err error) error {
	if ctx.Err() != nil { // says nothing of the registry
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		return nil
	}
	passing := err != nil && !isAnswer(err)
	c.mu.Lock()
	changed := c.degraded != passing
	c.degraded = passing
	c.mu.Unlock()
	switch {
	case changed && passing:
		c.log.Warn("schema registry: out of reach; who has its schemas goes on, all others wait", "url", c.url, "error", err)
	case changed:
		c.log.Info("schema registry: within reach again", "url", c.url)
	}
	if passing {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// isAnswer tells whether an error is the registry's answer to what was asked. A wrong password or path, an overload or a fault
// of its own is none: it says nothing of the schema, and can be mended while we wait.
func isAnswer(err error) bool {
	var refused *sr.ResponseError
	if !errors.As(err, &refused) {
		return false
	}
	switch refused.StatusCode {
	case http.StatusConflict, http.StatusUnprocessableEntity:
		return true
	case http.StatusNotFound: // a proxy's 404 has no code of the registry
		return refused.ErrorCode/100 == http.StatusNotFound
	}
	return false
}

// isNotFound tells whether the registry has no such subject, version or schema.
func isNotFound(err error) bool {
	var refused *sr.ResponseError
	return isAnswer(err) && errors.As(err, &refused) && refused.StatusCode == http.StatusNotFound
}

func (c *Client) schema(ctx context.Context, id int) (sr.Schema, error) {
	s, err := c.api.SchemaByID(ctx, id)
	if err = c.outcome(ctx, err); err != nil {
		return sr.Schema{}, fmt.Errorf("schema %d: %w", id, err)
	}
	return s, nil
}

// ensureCompatibility sets what the subject asks of new versions, unless it is so already.
func (c *Client) ensureCompatibility(ctx context.Context, subject string, want sr.CompatibilityLevel) error {
	have := c.api.Compatibility(ctx, subject)[0]
	switch err := c.outcome(ctx, have.Err); {
	case err == nil && have.Level == want:
		return nil
	case err != nil && !isNotFound(err):
		return fmt.Errorf("compatibility of subject %s: %w", subject, err)
	}
	set := c.api.SetCompatibility(ctx, sr.SetCompatibility{Level: want}, subject)[0]
	if err := c.outcome(ctx, set.Err); err != nil {
		return fmt.Errorf("set the compatibility of subject %s to %s: %w", subject, want, err)
	}
	return nil
}

// ensureSchema finds the schema among the subject's versions, or registers it as a new one.
func (c *Client) ensureSchema(ctx context.Context, subject string, s sr.Schema) (sr.SubjectSchema, error) {
	// A producer whose schema is there already needs no right to write.
	found, err := c.api.LookupSchema(ctx, subject, s)
	if err = c.outcome(ctx, err); err == nil {
		return found, nil
	}
	if isNotFound(err) {
		_, err = c.api.RegisterSchema(ctx, subject, s, -1, -1)
		if err = c.outcome(ctx, err); err == nil {
			found, err = c.api.LookupSchema(ctx, subject, s) // for the version
			err = c.outcome(ctx, err)
		}
	}
	var refused *sr.ResponseError
	switch {
	case err == nil:
		return found, nil
	case errors.As(err, &refused) && refused.StatusCode == http.StatusConflict:
		return sr.SubjectSchema{}, fmt.Errorf("%w: subject %s: %s", ErrIncompatible, subject, refused.Message)
	case !errors.Is(err, ErrUnavailable):
		// A registry that keeps a subject to its first type says no more than that it cannot parse another.
		if latest, e := c.api.SchemaByVersion(ctx, subject, -1); e == nil && latest.Type != s.Type {
			return sr.SubjectSchema{}, fmt.Errorf("%w: subject %s has schemas of type %s, and this one is of type %s (%s): keep the topic's codec, or "+
				"write plain, which every reader knows, too", ErrIncompatible, subject, latest.Type, s.Type, refused.Message)
		}
		fallthrough
	default:
		return sr.SubjectSchema{}, fmt.Errorf("register the schema of subject %s: %w", subject, err)
	}
}
