package client

import (
	"bytes"
	"io"
	"net/http"
)

// handlerCaller is a connect.HTTPClient that calls a handler.
type handlerCaller struct{ handler http.Handler }

// Do calls the handler on the goroutine of the caller. It returns when the handler does.
func (c handlerCaller) Do(request *http.Request) (*http.Response, error) {
	if err := request.Context().Err(); err != nil {
		return nil, err
	}
	served := request.Clone(request.Context())
	served.RequestURI, served.Proto, served.ProtoMajor, served.ProtoMinor = request.URL.RequestURI(), "HTTP/1.1", 1, 1
	if served.Body == nil { // a client may leave it out, a server never does
		served.Body = http.NoBody
	}
	w := &answer{header: http.Header{}, status: http.StatusOK}
	c.handler.ServeHTTP(w, served)
	w.WriteHeader(http.StatusOK)
	return &http.Response{
		Status: http.StatusText(w.status), StatusCode: w.status, Proto: served.Proto, ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, Body: io.NopCloser(&w.body), ContentLength: int64(w.body.Len()), Request: request,
	}, nil
}

// answer keeps what a handler writes. Messages are bounded by the handlers.
type answer struct {
	header, sent http.Header
	status       int
	body         bytes.Buffer
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.sent == nil {
		a.status, a.sent = status, a.header.Clone()
	}
}

func (a *answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(b)
}
