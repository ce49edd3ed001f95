package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millrace/millrace/ingest/demo"
)

// TestDocumentedCommands checks that every command in the documentation, and every example of
// --help, has an existing subcommand, flags and arguments.
func TestDocumentedCommands(t *testing.T) {
	checked := 0
	check := func(where, line string) {
		checked++
		if err := parse(words(line)); err != nil {
			t.Errorf("%s: %s: %v", where, line, err)
		}
	}
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "../../README.md", "../../deploy/README.md", "../../CONTRIBUTING.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range documented.FindAllStringSubmatch(strings.ReplaceAll(string(text), "\\\n", " "), -1) {
			check(filepath.Base(page), m[1])
		}
	}
	eachCommand(newRoot(), func(c *cobra.Command) {
		for _, m := range example.FindAllStringSubmatch(c.Example, -1) {
			check(c.CommandPath()+" --help", m[1])
		}
	})
	if checked < 50 {
		t.Errorf("only %d commands were found", checked)
	}
}

// documented matches a line of an indented code block that runs the program, possibly after
// environment variables.
var documented = regexp.MustCompile(`(?m)^ {4,}(?:[A-Z_]+=(?:'[^']*'|\S*) +)*bin/millrace (.*)$`)

// example matches a line of a command's examples.
var example = regexp.MustCompile(`(?m)(?:^| )millrace (.+)$`)

// parse parses arguments as the program does before it runs a command.
func parse(args []string) error {
	cmd, rest, err := newRoot().Find(args)
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); errors.Is(err, pflag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if cmd.HasSubCommands() && cmd.Flags().NArg() > 0 {
		return errors.New("no such command")
	}
	return errors.Join(cmd.ValidateArgs(cmd.Flags().Args()), cmd.ValidateRequiredFlags(), cmd.ValidateFlagGroups())
}

// words splits a line as a shell does, up to a comment, a redirection or the next command.
func words(line string) []string {
	var all []string
	word, quote := "", rune(0)
	started := false
	end := func() {
		if started {
			all = append(all, word)
		}
		word, started = "", false
	}
	for _, r := range line {
		switch {
		case r == quote:
			quote = 0
		case quote != 0:
			word += string(r)
		case r == '"' || r == '\'':
			quote, started = r, true
		case r == ' ':
			end()
		case slices.Contains([]rune{'>', '|', '&', ';'}, r) || r == '#' && !started:
			end()
			return all
		default:
			word, started = word+string(r), true
		}
	}
	end()
	return all
}

// TestExamplesAreOfTheDemo: the customers, identifiers and products in examples of --help exist in the
// shop of "make run".
func TestExamplesAreOfTheDemo(t *testing.T) {
	var sent bytes.Buffer // the demo's commands, in Protobuf, which has texts as they are
	var mu sync.Mutex
	shop := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		command, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		sent.Write(command)
		w.Header().Set("Content-Type", r.Header.Get("Content-Type")) // an empty message is an answer
	}))
	shop.Config.Protocols = new(http.Protocols)
	shop.Config.Protocols.SetUnencryptedHTTP2(true)
	shop.Start()
	defer shop.Close()
	if _, err := demo.Run(t.Context(), demo.Config{BaseURL: shop.URL}); err != nil {
		t.Fatal(err)
	}
	checked := 0
	eachCommand(newRoot(), func(c *cobra.Command) {
		for _, m := range example.FindAllStringSubmatch(c.Example, -1) {
			ids := shopID.FindAllString(m[1], -1)
			if args := words(m[1]); c.CommandPath() == "millrace features get" {
				ids = append(ids, args[3])
			}
			for _, id := range ids {
				if checked++; !bytes.Contains(sent.Bytes(), []byte(id)) {
					t.Errorf("%s --help: %s: the demo has no %s", c.CommandPath(), m[1], id)
				}
			}
		}
	})
	if checked < 6 {
		t.Errorf("only %d ids were found", checked)
	}
}

// shopID matches UUIDs, hashes of e-mail addresses, and SKUs of the demo.
var shopID = regexp.MustCompile(`[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{64}|\b[A-Z]{3}-[0-9]{4}\b`)
