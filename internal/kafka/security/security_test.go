package security_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/kafka/security"
)

// The error for incomplete settings names the field.
func TestIncompleteSettingsAreNamed(t *testing.T) {
	t.Parallel()
	for names, c := range map[string]security.Config{
		"CAFile, TLS":         {CAFile: "ca.pem"},
		"CertFile, TLS":       {CertFile: "c.pem", KeyFile: "k.pem"},
		"CertFile, KeyFile":   {TLS: true, CertFile: "c.pem"},
		"KeyFile, CertFile":   {TLS: true, KeyFile: "k.pem"},
		"Username, Mechanism": {Username: "u"},
		"Password, Mechanism": {Password: "p"},
		"Username":            {Mechanism: "PLAIN", Password: "p"},
		"Password":            {Mechanism: "SCRAM-SHA-512", Username: "u"},
		"Mechanism":           {Mechanism: "GSSAPI", Username: "u", Password: "p"},
	} {
		err := c.Validate()
		for name := range strings.SplitSeq(names, ", ") {
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s is not in %v", name, err)
			}
		}
	}
	for _, c := range []security.Config{
		{}, {TLS: true}, {TLS: true, CAFile: "ca.pem", CertFile: "c.pem", KeyFile: "k.pem"},
		{Mechanism: "PLAIN", Username: "u", Password: "p"},
		{TLS: true, Mechanism: "SCRAM-SHA-256", Username: "u", Password: "p"},
	} {
		if err := c.Validate(); err != nil {
			t.Errorf("%v: %v", c, err)
		}
	}
}

// The error for an unreadable file names the field and the file.
func TestUnreadableFilesAreNamed(t *testing.T) {
	t.Parallel()
	junk := filepath.Join(t.TempDir(), "junk.pem")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []security.Config{
		{TLS: true, CAFile: junk}, {TLS: true, CAFile: junk + ".not"}, {TLS: true, CertFile: junk, KeyFile: junk},
	} {
		if _, err := c.ClientTLS(); err == nil || !strings.Contains(err.Error(), junk) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if c, err := (security.Config{}).ClientTLS(); c != nil || err != nil {
		t.Errorf("without TLS: %v, %v", c, err)
	}
}

// No way to print or log a Config contains the password.
func TestPasswordIsNeverPrinted(t *testing.T) {
	t.Parallel()
	within := struct{ Security security.Config }{security.Config{TLS: true, Mechanism: "PLAIN", Username: "u",
		Password: "geheim"}}
	var logged bytes.Buffer
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "config", within, "security", within.Security)
	marshalled, err := json.Marshal(within)
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{fmt.Sprintf("%v %+v %#v %s", within, within, within, within.Security),
		logged.String(), string(marshalled)} {
		if strings.Contains(out, "geheim") {
			t.Error(out)
		}
	}
}
