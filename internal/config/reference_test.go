package config_test

import (
	"bytes"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/millrace/millrace/internal/config"
)

var update = flag.Bool("update", false, "write docs/configuration.md")

const (
	referenceFile  = "../../docs/configuration.md"
	referenceWidth = 100
)

const referenceIntro = `<!-- Generated from internal/config. Run: go test ./internal/config -run TestReferenceIsFresh -update -->

# Configuration

Millrace needs no configuration for a local start. Each setting has a default, a key in the
configuration file and an environment variable. ` + "`millrace config`" + ` prints the configuration in
force in the format of the file:

    bin/millrace config > millrace.yaml

It prints "(hidden)" in place of each secret. A file that still contains it is rejected.

Later sources override earlier ones:

1. the defaults;
2. the file ` + "`millrace.yaml`" + ` in the working directory, or the file of ` + "`--config`" + `;
3. environment variables;
4. command-line flags.

An unknown key in the file is an error. An unknown environment variable is ignored. The value of an
environment variable is YAML, as in the file:

    MILLRACE_COMMANDS_CURRENCIES='{GBP: 3}' bin/millrace up

**Secrets.** In the file, a secret is the text itself or ` + "`{file: PATH}`" + `. In the environment, the
variable contains the text. The same variable with the suffix ` + "`_FILE`" + ` contains a path instead:

    MILLRACE_REDIS_PASSWORD_FILE=/run/secrets/redis

Millrace never prints a secret. A password inside a connection string is rejected.

**Sizes and times.** Sizes are in bytes. Times have a unit: ` + "`250ms`, `10s`, `5m`, `1h`, `30d`" + `.
`

// reference returns docs/configuration.md: every key with its default, its environment variable and
// its description.
func reference() []byte {
	var b bytes.Buffer
	b.WriteString(referenceIntro + "\n## General\n")
	c := reflect.ValueOf(config.Default())
	writeReference(&b, c, "", config.EnvPrefix, 2)
	return b.Bytes()
}

// writeReference writes the keys of v first and then its sections, so that a heading covers only
// the keys below it.
func writeReference(b *bytes.Buffer, v reflect.Value, prefix, env string, level int) {
	sections := []int{}
	for i := range v.NumField() {
		f, t := v.Field(i), v.Type().Field(i)
		if _, secret := f.Interface().(config.Secret); f.Kind() == reflect.Struct && !secret {
			sections = append(sections, i)
			continue
		}
		key := t.Tag.Get("yaml")
		variable := env + strings.ToUpper(key)
		if _, secret := f.Interface().(config.Secret); secret {
			variable += "` or `" + variable + "_FILE"
		}
		b.WriteByte('\n')
		writeWrapped(b, "- ", fmt.Sprintf("**`%s%s`** (default %s, environment `%s`): %s",
			prefix, key, defaultText(f), variable, markdown(t.Tag.Get("doc"))))
	}
	for _, i := range sections {
		f, t := v.Field(i), v.Type().Field(i)
		key := prefix + t.Tag.Get("yaml")
		fmt.Fprintf(b, "\n%s %s\n\n", strings.Repeat("#", level), key)
		writeWrapped(b, "", markdown(t.Tag.Get("doc")))
		writeReference(b, f, key+".", env+strings.ToUpper(t.Tag.Get("yaml"))+"_", level+1)
	}
}

func defaultText(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case config.Secret:
		return "empty"
	case slog.Level:
		return "`" + strings.ToLower(x.String()) + "`"
	}
	if (v.Kind() == reflect.String || v.Kind() == reflect.Map) && v.Len() == 0 {
		return "empty"
	}
	return fmt.Sprintf("`%v`", v.Interface())
}

// literal matches what a description quotes: keys, rights, maps, commands and addresses.
var literal = regexp.MustCompile(strings.Join([]string{
	`\{[^}]*\}`, `\b[a-z0-9_]+(?:\.(?:[a-z0-9_]+|\*))+`, `Authorization: Bearer TOKEN`, `NAME:TOKEN`, `host:port,host:port`,
	`millrace (?:lake maintain|import|features list)`, `https?\(s\)://\S*[^\s,.]`, `(?:s3|postgres)://[^\s.,)]+`, `docs/[a-z]+\.md`,
}, "|"))

func markdown(doc string) string {
	return literal.ReplaceAllStringFunc(doc, func(text string) string {
		if page, is := strings.CutPrefix(text, "docs/"); is {
			return "[" + page + "](" + page + ")"
		}
		return "`" + text + "`"
	})
}

// writeWrapped writes text behind indent, which is blank on all lines but the first.
func writeWrapped(b *bytes.Buffer, indent, text string) {
	line := indent
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > referenceWidth:
			b.WriteString(line + "\n")
			line = strings.Repeat(" ", len(indent))
		default:
			line += " "
		}
		line += word
	}
	b.WriteString(line + "\n")
}

// The committed page describes the current configuration.
func TestReferenceIsFresh(t *testing.T) {
	t.Parallel()
	want := reference()
	if *update {
		if err := os.WriteFile(referenceFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(referenceFile); err != nil || !bytes.Equal(have, want) {
		t.Errorf("docs/configuration.md is stale (%v): run `go test ./internal/config -run TestReferenceIsFresh -update` and commit it", err)
	}
}

// The page and `millrace config` describe the same keys.
func TestReferenceNamesEveryVariable(t *testing.T) {
	t.Parallel()
	var file bytes.Buffer
	if _, err := config.Default().WriteTo(&file); err != nil {
		t.Fatal(err)
	}
	variables := regexp.MustCompile(`\((MILLRACE_[A-Z0-9_]+)\)`).FindAllStringSubmatch(file.String(), -1)
	if len(variables) == 0 {
		t.Fatal("the configuration names no variable")
	}
	page := string(reference())
	for _, variable := range variables {
		if !strings.Contains(page, "`"+variable[1]+"`") {
			t.Errorf("the page lacks %s", variable[1])
		}
	}
	if have := strings.Count(strings.Join(strings.Fields(page), " "), ", environment `MILLRACE_"); have != len(variables) {
		t.Errorf("the page has %d variables, want %d", have, len(variables))
	}
}

// Comments of the configuration file fit in a terminal.
func TestCommentsAreWrapped(t *testing.T) {
	t.Parallel()
	var file bytes.Buffer
	if _, err := config.Default().WriteTo(&file); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(file.String()) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") && utf8.RuneCountInString(strings.TrimRight(line, "\n")) > 100 {
			t.Errorf("%d columns: %s", utf8.RuneCountInString(line), line)
		}
	}
}
