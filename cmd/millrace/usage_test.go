package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestUsageErrors: an error of the command line says which command it is of and where to read more,
// and does not speak of Go.
func TestUsageErrors(t *testing.T) {
	for words, want := range map[string]string{
		"sql --bogus x":                                "unknown flag: --bogus\nUsage: millrace sql QUERY [flags]\nSee millrace sql --help",
		"sql":                                          "accepts 1 arg(s), received 0\nUsage: millrace sql QUERY [flags]\nSee millrace sql --help",
		"features get":                                 "received 0\nUsage: millrace features get GROUP ENTITY... [flags]\nSee millrace features get --help",
		"status x":                                     "unexpected argument \"x\"\nUsage: millrace status [flags]\nSee millrace status --help",
		"features training-set":                        "required flag(s) \"out\" not set\nUsage: millrace features training-set [flags]\nSee ",
		"features check --output js":                   "--output \"js\": want one of table, json\nUsage: millrace features check [GROUP]... [flags]\n",
		"features check --days x":                      "--days \"x\": want a whole number that is not negative\nUsage: ",
		"features check --days -1":                     "--days \"-1\": want a whole number that is not negative\nUsage: ",
		"features check --max-psi x":                   "--max-psi \"x\": want a number, such as 0.25\nUsage: ",
		"features verify --limit x":                    "--limit \"x\": want a whole number\nUsage: ",
		"up --no-demo=perhaps":                         "--no-demo \"perhaps\": want true or false\nUsage: ",
		"sql x --limit 99999999999999999999":           "unknown flag: --limit\nUsage: ",
		"features verify --limit 99999999999999999999": "the number is too large or too small\nUsage: ",
		"lake lnad --json":                             "unknown command \"lnad\" for \"millrace lake\"; did you mean \"millrace lake land\"? (see millrace lake --help)",
		"verfy --wait 1m":                              "unknown command \"verfy\" for \"millrace\"; did you mean \"millrace verify\"? (see millrace --help)",
	} {
		_, err := run(t, strings.Fields(words)...)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "strconv") {
			t.Errorf("%q: error %v, want %s", words, err, want)
		}
	}
}

// TestErrorsOfCommandsHaveNoUsage: what a command reports after it has begun is not about the command
// line.
func TestErrorsOfCommandsHaveNoUsage(t *testing.T) {
	_, err := run(t, "features", "describe", "rfm")
	if err == nil || strings.Contains(err.Error(), "Usage:") {
		t.Errorf("error %v, want one without usage", err)
	}
}

// TestDurationFlags: all flags of durations take days, and explain what they want.
func TestDurationFlags(t *testing.T) {
	n := 0
	eachCommand(newRoot(), func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Value.Type() != "duration" {
				return
			}
			n++
			if err := f.Value.Set("1d12h"); err != nil || f.Value.String() != "36h" {
				t.Errorf("%s --%s 1d12h: %s, %v", c.CommandPath(), f.Name, f.Value, err)
			}
			if err := f.Value.Set("2d"); err != nil || f.Value.String() != "2d" {
				t.Errorf("%s --%s 2d: %s, %v", c.CommandPath(), f.Name, f.Value, err)
			}
			if err := f.Value.Set("tomorrow"); err == nil || !strings.Contains(err.Error(), "30d") {
				t.Errorf("%s --%s tomorrow: %v, want an error with examples", c.CommandPath(), f.Name, err)
			}
		})
	})
	if n < 5 {
		t.Errorf("only %d flags of durations were found", n)
	}
}

// eachCommand calls a function for a command and all below it.
func eachCommand(c *cobra.Command, do func(*cobra.Command)) {
	do(c)
	for _, below := range c.Commands() {
		eachCommand(below, do)
	}
}
