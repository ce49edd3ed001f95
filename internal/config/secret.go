package config

import (
	"fmt"
	"log/slog"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Secret is a text that is never printed. In the file it is the text, or {file: PATH} of a file
// that holds it; the environment has the text in its variable, or the path in the variable with
// _FILE behind its name.
type Secret struct {
	text string
	file string
}

// SecretText returns a secret with a text.
func SecretText(s string) Secret { return Secret{text: s} }

// SecretFile returns a secret in a file, which is read when the secret is used.
func SecretFile(path string) Secret { return Secret{file: path} }

// Empty tells that there is none.
func (s Secret) Empty() bool { return s.text == "" && s.file == "" }

// Reveal reads the secret. A line end at the end of a file is not part of it. {service} in the name
// of the file becomes service.
func (s Secret) Reveal(service string) (string, error) {
	if s.file == "" {
		return s.text, nil
	}
	path := strings.ReplaceAll(s.file, "{service}", service)
	b, err := os.ReadFile(path) //nolint:gosec // the operator names the file
	if err != nil {
		return "", fmt.Errorf("read a secret: %w", err)
	}
	text := strings.TrimRight(string(b), "\r\n")
	if text == "" {
		return "", fmt.Errorf("read a secret: %s is empty", path)
	}
	return text, nil
}

// String hides the secret, and so do all that print by it.
func (s Secret) String() string {
	switch {
	case s.file != "":
		return "{file: " + s.file + "}"
	case s.text != "":
		return "(hidden)"
	default:
		return ""
	}
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the secret from logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalJSON hides the secret.
func (s Secret) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, "%q", s.String()), nil }

// UnmarshalYAML reads a text or {file: PATH}.
func (s *Secret) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*s = SecretText(n.Value)
		return nil
	}
	var f struct {
		File string `yaml:"file"`
	}
	if err := n.Decode(&f); err != nil || f.File == "" {
		return fmt.Errorf("line %d: a secret is a text, or {file: PATH}", n.Line)
	}
	*s = SecretFile(f.File)
	return nil
}
