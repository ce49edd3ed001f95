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

	"github.com/millrace/millrace/internal/dependency"
)

// Config has the address of a registry and the credentials for it.
type Config struct {
	// URL is the base of its Confluent API: http(s)://host:port/path. Several URLs, separated by
	// commas, are tried in turn.
	URL      string
	User     string // for basic authentication; may be empty
	Password string
	TLS      *tls.Config   // for https; nil means the system's authorities
	Timeout  time.Duration // of one request; 0 means 5 seconds
	Logger   *slog.Logger  // nil means slog.Default()
	// Dependency guards the requests. Nil guards nothing.
	Dependency *dependency.Dependency
}

// Client is a client of one registry. The encoders and the decoder of a process should share one.
// It is safe for concurrent use.
type Client struct {
	api  *sr.Client
	http *http.Client
	log  *slog.Logger
	url  string

	mu sync.Mutex
	// degraded is set while the registry cannot be reached. mu guards it.
	degraded bool
}

// watchInterval is the interval at which Watch checks the registry.
const watchInterval = 10 * time.Second

// NewClient validates the configuration. It does not connect.
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
		parsed, err := url.Parse(urls[i])
		if err != nil || parsed.Host == "" || parsed.Scheme != "http" && parsed.Scheme != "https" {
			return nil, fmt.Errorf("schema registry: URL %q is not of the form http(s)://host:port", urls[i])
		}
	}
	// A transport of its own, because of the TLS settings.
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = cfg.TLS
	c := &Client{http: &http.Client{Transport: cfg.Dependency.Transport(transport, false), Timeout: cfg.Timeout}, log: cfg.Logger, url: cfg.URL}
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

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Degraded reports whether the last request could not reach the registry. Encoders and decoders
// that have their schemas keep working. A producer that starts, and a consumer that meets a new
// schema, have to wait.
func (c *Client) Degraded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.degraded
}

// Watch checks the registry regularly, to keep Degraded up to date, until ctx is done. Then it
// returns nil.
func (c *Client) Watch(ctx context.Context) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		_ = c.Ping(ctx) // it records the result
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Ping checks whether the registry can be reached.
func (c *Client) Ping(ctx context.Context) error {
	var level struct{}
	return c.recordOutcome(ctx, c.api.Do(ctx, http.MethodGet, "/config", nil, &level))
}

// recordOutcome records the result of a request for Degraded, and wraps temporary errors with
// ErrUnavailable.
func (c *Client) recordOutcome(ctx context.Context, err error) error {
	// The caller has given up. That says nothing about the registry.
	if ctx.Err() != nil {
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		return nil
	}
	temporary := err != nil && !isPermanent(err)
	c.mu.Lock()
	changed := c.degraded != temporary
	c.degraded = temporary
	c.mu.Unlock()
	switch {
	// Log changes only, not every failure.
	case changed && temporary:
		c.log.Warn("schema registry: unreachable; encoders and decoders that have their schemas continue, others wait",
			"url", c.url, "error", err)
	case changed:
		c.log.Info("schema registry: reachable again", "url", c.url)
	}
	if temporary {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// isPermanent reports whether an error is the registry's answer about the schema. A wrong password
// or path, an overload or an internal error is not: it can be fixed meanwhile, and then a retry
// succeeds.
func isPermanent(err error) bool {
	var response *sr.ResponseError
	if !errors.As(err, &response) {
		return false
	}
	switch response.StatusCode {
	case http.StatusConflict, http.StatusUnprocessableEntity:
		return true
	case http.StatusNotFound: // a proxy's 404 has no error code of the registry
		return response.ErrorCode/100 == http.StatusNotFound
	}
	return false
}

// isNotFound reports whether the registry has no such subject, version or schema.
func isNotFound(err error) bool {
	var response *sr.ResponseError
	return isPermanent(err) && errors.As(err, &response) && response.StatusCode == http.StatusNotFound
}

// schema fetches a schema by id.
func (c *Client) schema(ctx context.Context, id int) (sr.Schema, error) {
	s, err := c.api.SchemaByID(ctx, id)
	if err = c.recordOutcome(ctx, err); err != nil {
		return sr.Schema{}, fmt.Errorf("schema %d: %w", id, err)
	}
	return s, nil
}

// ensureCompatibility sets a subject's compatibility level, unless it is already set.
func (c *Client) ensureCompatibility(ctx context.Context, subject string, want sr.CompatibilityLevel) error {
	have := c.api.Compatibility(ctx, subject)[0]
	switch err := c.recordOutcome(ctx, have.Err); {
	case err == nil && have.Level == want:
		return nil
	case err != nil && !isNotFound(err):
		return fmt.Errorf("compatibility of subject %s: %w", subject, err)
	}
	set := c.api.SetCompatibility(ctx, sr.SetCompatibility{Level: want}, subject)[0]
	if err := c.recordOutcome(ctx, set.Err); err != nil {
		return fmt.Errorf("set the compatibility of subject %s to %s: %w", subject, want, err)
	}
	return nil
}

// ensureSchema returns the subject's version with this schema, and registers it if necessary.
func (c *Client) ensureSchema(ctx context.Context, subject string, s sr.Schema) (sr.SubjectSchema, error) {
	// Look up first: then a producer of a registered schema needs no write permission.
	found, err := c.api.LookupSchema(ctx, subject, s)
	if err = c.recordOutcome(ctx, err); err == nil {
		return found, nil
	}
	if isNotFound(err) {
		_, err = c.api.RegisterSchema(ctx, subject, s, -1, -1)
		if err = c.recordOutcome(ctx, err); err == nil {
			found, err = c.api.LookupSchema(ctx, subject, s) // for the version
			err = c.recordOutcome(ctx, err)
		}
	}
	var response *sr.ResponseError
	switch {
	case err == nil:
		return found, nil
	case errors.As(err, &response) && response.StatusCode == http.StatusConflict:
		return sr.SubjectSchema{}, fmt.Errorf("%w: subject %s: %s", ErrIncompatible, subject, response.Message)
	case !errors.Is(err, ErrUnavailable):
		// Registries that bind a subject to its first type report another type only as a parse
		// error.
		if latest, e := c.api.SchemaByVersion(ctx, subject, -1); e == nil && latest.Type != s.Type {
			return sr.SubjectSchema{},
				fmt.Errorf("%w: subject %s has schemas of type %s, and this one is of type %s (%s): "+
					"keep the topic's codec, or use plain, which every reader decodes", ErrIncompatible, subject,
					latest.Type, s.Type, response.Message)
		}
		fallthrough
	default:
		return sr.SubjectSchema{}, fmt.Errorf("register the schema of subject %s: %w", subject, err)
	}
}
