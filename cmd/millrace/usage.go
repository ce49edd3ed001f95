package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millrace/millrace/internal/duration"
)

// execute runs the command line. An error of the command line itself, such as an unknown flag, also
// says how the command is called.
func execute(ctx context.Context, root *cobra.Command) error {
	// Cobra reports all of its own errors before it calls RunE. Later ones are results of the command.
	ran := false
	var watch func(*cobra.Command)
	watch = func(c *cobra.Command) {
		if run := c.RunE; run != nil {
			c.RunE = func(cmd *cobra.Command, args []string) error {
				ran = true
				return run(cmd, args)
			}
		}
		for _, below := range c.Commands() {
			watch(below)
		}
	}
	watch(root)
	root.SetFlagErrorFunc(flagError)
	cmd, err := root.ExecuteContextC(ctx)
	var unknown *unknownCommandError
	if err == nil || ran || errors.As(err, &unknown) {
		return err
	}
	if args := cmd.Flags().Args(); len(args) > 0 && cobra.NoArgs(cmd, args).Error() == err.Error() {
		// To cobra, it could be the name of a subcommand.
		err = fmt.Errorf("unexpected argument %q", args[0])
	}
	return fmt.Errorf("%w\nUsage: %s\nSee %s --help", err, cmd.UseLine(), cmd.CommandPath())
}

// flagError returns the error of parsing flags in terms of the command line.
func flagError(cmd *cobra.Command, err error) error {
	// Flags of a mistyped subcommand are unknown, too. The subcommand is the mistake.
	if args := cmd.Flags().Args(); cmd.HasSubCommands() && len(args) > 0 {
		return newUnknownCommand(cmd, args[0])
	}
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err
	}
	reason := errors.Unwrap(invalid)
	var number *strconv.NumError
	if errors.As(reason, &number) {
		reason = errors.New(numberWanted(invalid.GetFlag().Value.Type(), errors.Is(number, strconv.ErrRange)))
	}
	return fmt.Errorf("--%s %q: %w", invalid.GetFlag().Name, invalid.GetValue(), reason)
}

// numberWanted says what a flag of a type takes. The errors of strconv name its functions.
func numberWanted(kind string, outOfRange bool) string {
	switch {
	case outOfRange:
		return "the number is too large or too small"
	case kind == "bool":
		return "want true or false"
	case kind == "float64":
		return "want a number, such as 0.25"
	case kind == "uint32":
		return "want a whole number that is not negative"
	default:
		return "want a whole number"
	}
}

// suggest makes a group of commands reject unknown subcommands and suggest similar ones.
func suggest(group *cobra.Command) {
	group.Args = cobra.ArbitraryArgs
	group.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return newUnknownCommand(cmd, args[0])
	}
}

// unknownCommandError is the error about a subcommand that a group does not have.
type unknownCommandError struct{ text string }

func (e *unknownCommandError) Error() string { return e.text }

func newUnknownCommand(group *cobra.Command, name string) error {
	if group.SuggestionsMinimumDistance == 0 {
		group.SuggestionsMinimumDistance = 2
	}
	meant := "" // the suggestion, if there is one
	if near := group.SuggestionsFor(name); len(near) > 0 {
		meant = fmt.Sprintf("; did you mean %q?", group.CommandPath()+" "+near[0])
	}
	return &unknownCommandError{fmt.Sprintf("unknown command %q for %q%s (see %s --help)", name, group.CommandPath(), meant,
		group.CommandPath())}
}

// durationFlag adds a flag whose value is a duration, which may be in days.
func durationFlag(flags *pflag.FlagSet, to *time.Duration, name string, value time.Duration, usage string) {
	*to = value
	flags.Var((*durationValue)(to), name, usage)
}

// durationValue implements pflag.Value.
type durationValue time.Duration

func (d *durationValue) String() string { return duration.Format(time.Duration(*d)) }
func (d *durationValue) Type() string   { return "duration" }
func (d *durationValue) Set(text string) error {
	parsed, err := duration.Parse(text)
	*d = durationValue(parsed)
	return err
}
