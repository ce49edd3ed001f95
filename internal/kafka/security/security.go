// Package security configures how to connect to Kafka: plain text or TLS, with or without SASL. It
// is a package of its own because both clients, packages kafka and fetch, use it.
//
// Config.Validate reports incomplete or contradictory settings, and Config.ClientTLS reads the
// certificates. The password is never printed: Config formats and logs itself without it.
package security

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
)

// ErrRefused means that a broker and this client do not accept each other: the broker refuses the
// login or the client's certificate, or the client does not trust the broker's. A retry does not
// help, only another configuration.
var ErrRefused = errors.New("the brokers and this client do not accept each other: check the TLS and SASL settings")

// Config is the configuration of a connection. The zero value means plain text without
// authentication.
type Config struct {
	TLS      bool
	CAFile   string // PEM; empty means the system's certificate authorities
	CertFile string // PEM; this client's certificate, if the brokers require one
	KeyFile  string // PEM

	Mechanism string // PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; empty means no SASL
	Username  string
	Password  string `json:"-"` // never printed
}

// SASL mechanisms. PLAIN sends the password to the broker, so it should be used with TLS only.
const (
	Plain       = "PLAIN"
	ScramSHA256 = "SCRAM-SHA-256"
	ScramSHA512 = "SCRAM-SHA-512"
)

// Validate returns an error if settings are incomplete or contradict each other.
func (c Config) Validate() error {
	switch {
	case !c.TLS && c.CAFile != "":
		return errors.New("security: CAFile is set, but TLS is off: turn it on, or remove CAFile")
	case !c.TLS && (c.CertFile != "" || c.KeyFile != ""):
		return errors.New("security: CertFile or KeyFile is set, but TLS is off: turn it on, or remove them")
	case c.CertFile != "" && c.KeyFile == "":
		return errors.New("security: CertFile is set without KeyFile: set both, or none")
	case c.CertFile == "" && c.KeyFile != "":
		return errors.New("security: KeyFile is set without CertFile: set both, or none")
	case c.Mechanism == "" && (c.Username != "" || c.Password != ""):
		return errors.New("security: Username or Password is set without Mechanism: " +
			"set PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
	case c.Mechanism == "":
		return nil
	case c.Mechanism != Plain && c.Mechanism != ScramSHA256 && c.Mechanism != ScramSHA512:
		return fmt.Errorf("security: Mechanism %q is not PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", c.Mechanism)
	case c.Username == "":
		return fmt.Errorf("security: Username is missing: %s requires it", c.Mechanism)
	case c.Password == "":
		return fmt.Errorf("security: Password is missing: %s requires it", c.Mechanism)
	}
	return nil
}

// ClientTLS reads the files and returns the TLS configuration. It returns nil if TLS is off.
func (c Config) ClientTLS() (*tls.Config, error) {
	if !c.TLS {
		return nil, nil
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("security: CAFile: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("security: CAFile %s contains no PEM certificate", c.CAFile)
		}
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("security: CertFile %s, KeyFile %s: %w", c.CertFile, c.KeyFile, err)
		}
		out.Certificates = []tls.Certificate{pair}
	}
	return out, nil
}

// String describes the configuration without the password.
func (c Config) String() string {
	out := "plain text"
	if c.TLS {
		out = "TLS"
	}
	if c.Mechanism != "" {
		out += ", " + c.Mechanism + " as " + c.Username
	}
	return out
}

// GoString is like String, so that %#v does not print the password either.
func (c Config) GoString() string { return c.String() }

// LogValue is like String, for slog.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }
