package server

import (
	"crypto/tls"
	"os"
	"sync"
	"time"
)

// Certificate returns a TLS configuration with the certificate and the key in two PEM files. They
// are read again when the certificate file changes, so the certificate can be renewed without a
// restart.
func Certificate(cert, key string) (*tls.Config, error) {
	c := &certificate{cert: cert, key: key}
	if _, err := c.get(nil); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}, nil
}

// certificate is a key pair that is reloaded.
type certificate struct {
	cert, key string // PEM files

	mu      sync.Mutex
	pair    *tls.Certificate
	changed time.Time // modification time of the file that was read
}

// get returns the current pair. It checks the file at each handshake, which costs one stat.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// A half-written pair fails to load. It is read again at the next handshake.
	info, err := os.Stat(c.cert)
	if err == nil && (c.pair == nil || !info.ModTime().Equal(c.changed)) {
		var pair tls.Certificate
		if pair, err = tls.LoadX509KeyPair(c.cert, c.key); err == nil {
			c.pair, c.changed = &pair, info.ModTime()
		}
	}
	if c.pair == nil {
		return nil, err
	}
	return c.pair, nil // the last valid pair, while a new one is being written
}
