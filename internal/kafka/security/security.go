// Package security says how to reach Kafka where it is not on loopback. It stands apart from the two clients so that each
// reads the same description in its own way.
package security

// Config is empty for a broker that speaks plain text and asks for no name.
type Config struct {
	TLS      bool
	CAFile   string // PEM; the system's authorities where empty
	CertFile string // PEM; this client's certificate, where the brokers ask for one
	KeyFile  string // PEM

	Mechanism string // PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; empty means no SASL
	Username  string
	Password  string
}
