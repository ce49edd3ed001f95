package config

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Secret is a string that is never printed. In the file it is the string, or {file: PATH} with a
// file that contains it. In the environment, a variable contains the string, or the path if its
// name ends with _FILE. At most one of the fields is set.
//
// Every method by which fmt, slog and JSON print a value is overridden, because a configuration is
// easily logged as a whole. Only Reveal returns the value.
type Secret struct {
	text string // the value
	file string // the path of a file that contains it
}

// SecretText returns a secret with a value.
func SecretText(s string) Secret { return Secret{text: s} }

// SecretFile returns a secret in a file. The file is read when the secret is used, so it can be
// renewed.
func SecretFile(path string) Secret { return Secret{file: path} }

// Empty reports whether the secret is not set.
func (s Secret) Empty() bool { return s.text == "" && s.file == "" }

// Reveal returns the value. Line breaks at the end of a file are not part of it. {service} in the
// file's name is replaced by service.
func (s Secret) Reveal(service string) (string, error) {
	if s.file == "" {
		return s.text, nil
	}
	path := strings.ReplaceAll(s.file, "{service}", service)
	b, err := os.ReadFile(path) //nolint:gosec // the operator names the file
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	// Editors and "echo" end files with a line break.
	text := strings.TrimRight(string(b), "\r\n")
	if text == "" {
		return "", fmt.Errorf("read secret: %s is empty", path)
	}
	return text, nil
}

// hidden replaces the value of a secret wherever it is printed.
const hidden = "(hidden)"

// String returns the file's name, or a placeholder for the value. Formatted output uses it.
func (s Secret) String() string {
	switch {
	case s.file != "":
		return "{file: " + s.file + "}"
	case s.text != "":
		return hidden
	default:
		return ""
	}
}

// GoString hides the value from %#v.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the value from logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalJSON hides the value.
func (s Secret) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, "%q", s.String()), nil }

// UnmarshalYAML accepts a string or {file: PATH}. It rejects the placeholder: a file that was printed
// by "millrace config" has it in place of the secrets.
func (s *Secret) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		if n.Value == hidden {
			return fmt.Errorf("%s is not a secret but the placeholder that millrace config prints: "+
				"replace it with the secret, or with {file: PATH}", hidden)
		}
		*s = SecretText(n.Value)
		return nil
	}
	var f struct {
		File string `yaml:"file"`
	}
	if err := n.Decode(&f); err != nil || f.File == "" {
		return errors.New("want a string or {file: PATH} for a secret")
	}
	*s = SecretFile(f.File)
	return nil
}
