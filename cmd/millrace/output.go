package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/progress"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// outputFlag adds the flag --output, and returns the variable that has its value. The first format
// is the default.
func outputFlag(cmd *cobra.Command, formats ...string) *string {
	o := &choice{value: formats[0], of: formats}
	cmd.Flags().VarP(o, "output", "o", "output format: "+strings.Join(formats, ", "))
	return &o.value
}

// choice is a flag whose value is one of a few words. It implements pflag.Value, so a wrong word is
// an error of parsing, before the command does anything.
type choice struct {
	value string
	of    []string
}

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return "format" }
func (c *choice) Set(s string) error {
	if !slices.Contains(c.of, s) {
		return errors.New("want one of " + strings.Join(c.of, ", "))
	}
	c.value = s
	return nil
}

// lines is a cell of a table with several lines.
type lines []string

// plain returns a text without characters that a terminal would act on. Others than the operator choose
// texts, such as the visitors of a website.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// printTable prints rows under a header. Numbers are aligned to the right, and texts are plain. The format
// is for people; scripts use --output json.
func printTable(w io.Writer, header []string, rows [][]any) {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	// The library would print headers in capitals.
	t.Style().Format.Header = text.FormatDefault
	t.SetOutputMirror(w)
	h := make(table.Row, len(header))
	for i, name := range header {
		h[i] = plain(name)
	}
	t.AppendHeader(h)
	for _, r := range rows {
		cells := make(table.Row, len(r))
		for i, cell := range r {
			switch v := cell.(type) {
			case string:
				cell = plain(v)
			case lines:
				all := make([]string, len(v))
				for j, line := range v {
					all[j] = plain(line)
				}
				cell = strings.Join(all, "\n")
			}
			cells[i] = cell
		}
		t.AppendRow(cells)
	}
	t.Render()
}

// printJSON prints a value as indented JSON. The names of its fields are an interface for scripts.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printMessage prints an answer of the API with the field names of its contract.
func printMessage(w io.Writer, m proto.Message) error {
	b, err := protojson.MarshalOptions{EmitUnpopulated: true, UseProtoNames: true, Indent: "  "}.Marshal(m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, string(b))
	return err
}

// bar is a progress bar on standard error. On a terminal it is drawn. Otherwise it is one line at
// the start and one at the end.
//
// Standard error, because standard output has the result only. The bar is drawn by a goroutine,
// which end stops.
type bar struct {
	out     io.Writer
	writer  progress.Writer // nil if standard error is not a terminal
	tracker *progress.Tracker
	label   string
	begun   time.Time
	wait    sync.WaitGroup // for the goroutine that draws
}

// newBar starts a progress bar. The caller ends it with end.
func newBar(label string) *bar {
	b := &bar{out: os.Stderr, label: label, begun: time.Now(), tracker: &progress.Tracker{Message: label}}
	// Escape sequences would garble a file or a CI log.
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		fmt.Fprintf(b.out, "%s…\n", label)
		return b
	}
	b.writer = progress.NewWriter()
	b.writer.SetOutputWriter(b.out)
	b.writer.SetStyle(progress.StyleBlocks)
	b.writer.Style().Visibility.ETA = true
	b.writer.Style().Visibility.Speed = true
	b.writer.SetTrackerLength(30)
	b.writer.SetMessageLength(36)
	b.writer.SetUpdateFrequency(100 * time.Millisecond)
	// end stops it: a bar whose total is still unknown would end too early.
	b.writer.SetAutoStop(false)
	b.writer.AppendTracker(b.tracker)
	b.wait.Go(b.writer.Render)
	return b
}

// set moves the bar. A message replaces the label, unless it is empty. Without a terminal it shows
// nothing, because a log needs no progress.
func (b *bar) set(done, total int64, message string) {
	b.tracker.UpdateTotal(total)
	b.tracker.SetValue(done)
	if message != "" {
		b.tracker.UpdateMessage(message)
	}
}

// end stops drawing. If the work failed, the bar is marked as failed.
func (b *bar) end(err error) {
	if b.writer == nil {
		// Not a terminal: a second line instead of a bar.
		how := "done"
		if err != nil {
			how = "failed"
		}
		fmt.Fprintf(b.out, "%s: %s after %v\n", b.label, how, time.Since(b.begun).Round(100*time.Millisecond))
		return
	}
	if err != nil {
		b.tracker.MarkAsErrored()
	} else {
		b.tracker.MarkAsDone()
	}
	// Wait for the last frame, so that the result is printed below it.
	b.writer.Stop()
	b.wait.Wait()
}

// ago formats how long before now a time was. The zero time is a dash.
func ago(now, t time.Time) string {
	// A missing protobuf timestamp becomes Unix time 0.
	if t.IsZero() || t.Unix() == 0 {
		return "–"
	}
	// Clocks of different machines can differ, so t may be in the future.
	d := max(now.Sub(t), 0)
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String() + " ago"
	case d < time.Minute:
		return d.Round(100*time.Millisecond).String() + " ago"
	default:
		return d.Round(time.Second).String() + " ago"
	}
}
