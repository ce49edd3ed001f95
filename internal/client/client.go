// Package client sends commands to a running Millrace, as an external program would: with Connect
// over one HTTP/2 connection.
//
// Client.Send accepts the request message of any command, finds its method by reflection and
// returns the receipt. It retries while the server is unavailable, which is safe because commands
// have an idempotency key. Refusal distinguishes commands that the server refused from those that
// it did not answer.
package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
)

// Client sends commands to any service. It is safe for concurrent use. It has no code for single
// services: the descriptor of a request determines the path and the response.
type Client struct {
	url       string
	http      connect.HTTPClient
	options   []connect.ClientOption
	methods   sync.Map        // *connect.Client[message, message], by full name of the method
	transport *http.Transport // nil in process
}

// New returns a client of the server at addr, "host:port" or a URL. If the server is unavailable or
// busy, a call is retried for at most retryFor. Then it fails with ErrUnreachable. Call Close when
// done.
func New(addr string, retryFor time.Duration, opts ...Option) *Client {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	transport := &http.Transport{
		Protocols:       new(http.Protocols),
		TLSClientConfig: o.tls,
		// Pings detect a server that disappeared without closing the connection.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
	}
	// HTTP/2 without TLS, for addresses with http.
	transport.Protocols.SetUnencryptedHTTP2(true)
	transport.Protocols.SetHTTP2(true)
	// No timeout here: retry bounds each attempt.
	return &Client{url: strings.TrimRight(addr, "/"), http: &http.Client{Transport: transport},
		options: callOptions(retryFor, o), transport: transport}
}

// InProcess returns a client that calls the handler of a server in this process, for a process
// that serves the commands it sends. The handler decides and refuses as it does for callers outside.
func InProcess(h http.Handler, retryFor time.Duration) *Client {
	return &Client{url: "http://in-process", http: handlerCaller{h}, options: callOptions(retryFor, options{})}
}

// callOptions returns the options of every call.
func callOptions(retryFor time.Duration, o options) []connect.ClientOption {
	return []connect.ClientOption{connect.WithClientOptions(
		connect.WithInterceptors(retry(retryFor), bearer(o.token)),
		connect.WithAcceptCompression("gzip", nil, nil), // receipts are too small to benefit
	)}
}

// Option configures a client.
type Option func(*options)

// options are what Options set.
type options struct {
	token string
	tls   *tls.Config
}

// WithToken sends a token with each call.
func WithToken(token string) Option { return func(o *options) { o.token = token } }

// WithTLS sets the TLS configuration for an https URL.
func WithTLS(c *tls.Config) Option { return func(o *options) { o.tls = c } }

// bearer adds the token to each call.
func bearer(token string) connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			if token != "" {
				req.Header().Set("Authorization", "Bearer "+token)
			}
			return next(ctx, req)
		}
	}
}

// Close closes the connections. No call should be in progress.
func (c *Client) Close() {
	if c.transport != nil {
		c.transport.CloseIdleConnections()
	}
}

// Send sends a command and returns its receipt. A command is the request of a method that changes
// something, in any service. The method must be declared in the same file as the request.
func (c *Client) Send(ctx context.Context, command proto.Message) (*eventv1.Receipt, error) {
	method := methodOf(command.ProtoReflect().Descriptor())
	if method == nil {
		return nil, fmt.Errorf("%T is not a command", command)
	}
	call, err := c.method(method)
	if err != nil {
		return nil, err
	}
	res, err := call.CallUnary(ctx, connect.NewRequest(&message{command}))
	if err != nil {
		return nil, err
	}
	return res.Msg.Message.(commandResponse).GetReceipt(), nil
}

// Name returns the name of a command: "PlaceOrder".
func Name(command proto.Message) string {
	return strings.TrimSuffix(string(command.ProtoReflect().Descriptor().Name()), "Request")
}

// Refusal reports whether the server refused a command for good, and why. The reason is the detail
// of a business rule, or is made from the error if the request was not valid. Errors that the
// client itself made do not count, even if they have such a code.
func Refusal(err error) (*eventv1.Rejection, bool) {
	var refused *connect.Error
	if !errors.As(err, &refused) || !connect.IsWireError(refused) {
		return nil, false
	}
	switch refused.Code() {
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodeFailedPrecondition,
		connect.CodeOutOfRange:
	default:
		return nil, false
	}
	for _, detail := range refused.Details() {
		value, err := detail.Value()
		if rejection, ok := value.(*eventv1.Rejection); ok && err == nil {
			return rejection, true
		}
	}
	return &eventv1.Rejection{Reason: cmp.Or(refused.Message(), refused.Code().String())}, true
}
