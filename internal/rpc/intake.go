package rpc

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/internal/server"
)

// Intake is a handler before Connect's handlers. It finds faulty requests first, because Connect
// reports broken frames, truncated bodies and bad base64 as Internal or Unknown, as if the server
// were at fault.
func Intake(next http.Handler) http.Handler {
	refuse := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Connect's GET requests have the message in the URL.
		if r.Method == http.MethodGet {
			query := r.URL.Query()
			if query.Get("base64") == "1" && !isBase64(query.Get("message")) {
				_ = refuse.Write(w, r, invalid("message: want URL-safe base64"))
				return
			}
		}
		// Connect would answer with the message of Go's parser.
		if within := r.Header.Get("Connect-Timeout-Ms"); within != "" && !isMillis(within) {
			_ = refuse.Write(w, r, invalid("Connect-Timeout-Ms: want milliseconds as an integer of at most ten digits"))
			return
		}
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = &checked{ReadCloser: r.Body, frames: framesOf(r.Header)}
		}
		next.ServeHTTP(w, r)
	})
}

// invalid returns an InvalidArgument error.
func invalid(format string, args ...any) *connect.Error {
	return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf(format, args...))
}

// isBase64 accepts what Connect accepts: padding if the length is a multiple of four.
func isBase64(text string) bool {
	encoding := base64.RawURLEncoding
	if len(text)%4 == 0 {
		encoding = base64.URLEncoding
	}
	_, err := encoding.DecodeString(text)
	return err == nil
}

// isMillis reports whether text is a valid timeout in Connect's protocol. The protocol allows at
// most ten digits.
func isMillis(text string) bool {
	return len(text) <= 10 && strings.Trim(text, "0123456789") == ""
}

// checked is a body whose errors say that the request is at fault.
type checked struct {
	io.ReadCloser
	frames *frames // nil if the body is the message
}

// Read checks the frames, and turns errors of the connection into Connect's codes.
func (c *checked) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	// Before the handler sees the bytes, so that it never decodes a broken frame.
	if c.frames != nil {
		if broken := c.frames.check(p[:n]); broken != nil {
			return 0, broken
		}
	}
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF) && !errors.Is(err, server.ErrBody):
		if c.frames != nil {
			if broken := c.frames.end(); broken != nil {
				return n, broken
			}
		}
		return n, err
	}
	var typed *connect.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &typed), errors.As(err, &tooLarge): // Connect reports these rightly
		return n, err
	case errors.Is(err, server.ErrBodyLate):
		return n, connect.NewError(connect.CodeDeadlineExceeded, server.ErrBodyLate)
	case errors.Is(err, server.ErrBusy):
		return n, Overloaded(server.ErrBusy)
	}
	return n, invalid("the body is truncated or its HTTP framing is invalid")
}

// Overloaded returns the error of a call that was refused before it started. It says when to retry.
func Overloaded(why error) *connect.Error {
	err := connect.NewError(connect.CodeResourceExhausted, why)
	err.Meta().Set("Retry-After", server.RetryAfter)
	return err
}

// frames checks the frames of gRPC, gRPC-Web and Connect's streams: one byte of flags, four bytes
// of length, and the message.
//
// A body is read in pieces that need not end where a frame ends. So the state is kept between calls
// of check.
type frames struct {
	compression bool // a header names the compression, so messages may be compressed
	last        byte // flag of the end of a stream in Connect; 0 if there is none

	header [5]byte
	have   int    // bytes of header that are known
	left   uint32 // bytes of the message that are still to come
}

// framesOf returns a checker for the framing of a content type, or nil if bodies of this type have
// no frames.
func framesOf(h http.Header) *frames {
	contentType := strings.ToLower(h.Get("Content-Type"))
	encoding, f := "", &frames{}
	switch {
	case strings.HasPrefix(contentType, "application/grpc"):
		encoding = h.Get("Grpc-Encoding")
	case strings.HasPrefix(contentType, "application/connect+"):
		encoding, f.last = h.Get("Connect-Content-Encoding"), 2
	default:
		return nil
	}
	f.compression = encoding != "" && encoding != "identity"
	return f
}

// check checks the next bytes of the body.
func (f *frames) check(p []byte) *connect.Error {
	for len(p) > 0 {
		if f.left > 0 {
			n := min(int(f.left), len(p))
			f.left -= uint32(n)
			p = p[n:]
			continue
		}
		n := copy(f.header[f.have:], p)
		f.have += n
		p = p[n:]
		if f.have < len(f.header) {
			break
		}
		// The head is complete: the next bytes are the message.
		f.have = 0
		f.left = binary.BigEndian.Uint32(f.header[1:])
		switch flags := f.header[0]; {
		case flags == 0, flags == f.last:
		case flags == 1 && f.compression: // a compressed message
		case flags == 1:
			return invalid("a message is marked as compressed, but no header names the compression")
		default:
			return invalid("invalid flags %#x of a message frame", flags)
		}
	}
	return nil
}

// end checks that the body did not end in a frame.
func (f *frames) end() *connect.Error {
	switch {
	case f.left > 0:
		return invalid("the body ends %d bytes before the end of its message", f.left)
	case f.have > 0:
		return invalid("the body ends in a frame header: %d of %d bytes", f.have, len(f.header))
	}
	return nil
}
