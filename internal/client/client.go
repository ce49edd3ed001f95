// Package client sends commands to a running Millrace as an outside program would: by Connect over
// one HTTP/2 connection. It retries, which is safe because commands carry an idempotency key.
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

// Client sends commands to any service. It is safe for concurrent use.
type Client struct {
	url       string
	http      connect.HTTPClient
	options   []connect.ClientOption
	methods   sync.Map // *connect.Client[message, message] by the method's full name
	transport *http.Transport
}

// New returns a client of the server at addr, "host:port" or a URL. Where the server is away or
// busy, each call is sent again for as long as patience before it gives up with ErrUnreachable.
// Call Close when done.
func New(addr string, patience time.Duration, opts ...Option) *Client {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	transport := &http.Transport{
		Protocols: new(http.Protocols),
		// A server that vanished without closing the connection is noticed by its silence.
		TLSClientConfig: o.tls,
		HTTP2:           &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	transport.Protocols.SetHTTP2(true)
	doer := &http.Client{Transport: transport}
	with := connect.WithClientOptions(
		connect.WithInterceptors(retry(patience), bearer(o.token)),
		connect.WithAcceptCompression("gzip", nil, nil), // receipts are too small to gain by it
	)
	return &Client{url: strings.TrimRight(addr, "/"), http: doer, options: []connect.ClientOption{with}, transport: transport}
}

// Option changes how a client connects.
type Option func(*options)

type options struct {
	token string
	tls   *tls.Config
}

// WithToken sends a token with each call.
func WithToken(token string) Option { return func(o *options) { o.token = token } }

// WithTLS says whom to trust where the address is an https URL.
func WithTLS(c *tls.Config) Option { return func(o *options) { o.tls = c } }

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

// Close closes the connections. Calls under way should have ended.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Send sends a command and returns its receipt. A command is the request of a method that changes
// something, in any service: the file that declares the request declares the method, too.
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
	return res.Msg.Message.(answer).GetReceipt(), nil
}

// Name returns what a command is called: "PlaceOrder".
func Name(command proto.Message) string {
	return strings.TrimSuffix(string(command.ProtoReflect().Descriptor().Name()), "Request")
}

// Refusal reports whether the server understood a command and will never accept it as it stands,
// and why: the detail that a business rule gives, or one made from the error where the request was
// not valid in the first place.
func Refusal(err error) (*eventv1.Rejection, bool) {
	var refused *connect.Error
	if !errors.As(err, &refused) || !connect.IsWireError(refused) {
		return nil, false
	}
	switch refused.Code() {
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodeFailedPrecondition, connect.CodeOutOfRange:
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
