package kill

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// report writes docs/kill-matrix.md, or the report of a role.
func report(outcomes []outcome, total int) error {
	var b strings.Builder
	title, command, name := "Kill matrix", "make kill", "kill-matrix"
	if *only != "" {
		title, command, name = "Kill matrix: role "+*only, "make kill ROLE="+*only, name+"-"+*only
	}
	count := map[string]int{}
	var took time.Duration
	var acknowledged int
	for _, o := range outcomes {
		count[o.verdict]++
		took += o.took
		acknowledged += o.acknowledged
	}
	fmt.Fprintf(&b, `# %[12]s

Written by %[1]s%[13]s%[1]s: do not edit. Each row puts the running system under load, breaks one thing at one moment, mends it, and
then looks for every command that a client saw acknowledged — by this row and all before it on the same system — in the event
store, the topic, the lake's table and the views: there, exactly once, in the order of its stream. %[1]smillrace verify%[1]s must find all
sides equal, too.

**%[2]d green, %[3]d red, %[4]d skipped, %[10]d not played yet, of %[11]d rows**; %[5]d commands acknowledged in %[6]v on %[7]d processors (%[8]s).

- *kill*: SIGKILL at the step; the scheduler starts the role again. *error*: the step returns an error. *lost answer*: the step's effect
  has happened, and its answer is an error. *zombie*: SIGSTOP at the step for %[9]v while another process of the role takes over,
  then SIGCONT. *freeze*: the same with nobody to take over.
- *unknown*: commands whose client gave up before an answer; either outcome is right, but never two.
- *settled*: seconds from the mending until all sides were equal, with a hundred more commands in between.
- Rows %[1]sembedded/…%[1]s run all roles in one process on the embedded default; the others run each role as a process of its own on
  PostgreSQL, three nodes of Apache Kafka, Redis, Elasticsearch and S3, each behind a proxy. Rows marked • import the real year
  beside the generated load.

Repeat a row with its pattern from the last column:

    go test ./test/kill -v -run 'TestMatrix/PATTERN'

`, "`", count["green"], count["red"], count["skipped"], acknowledged, took.Round(time.Second), runtime.NumCPU(), time.Now().UTC().Format(time.DateOnly), freezeFor(),
		total-len(outcomes), total, title, command)
	b.WriteString("| row | | acknowledged | unknown | lost | doubled | out of order | settled, s | pattern |\n|---|---|---:|---:|---:|---:|---:|---:|---|\n")
	for _, o := range outcomes {
		called := o.row.name
		if o.row.year {
			called += " •"
		}
		if o.verdict == "skipped" {
			fmt.Fprintf(&b, "| %s | skipped: %s | | | | | | | `%s` |\n", called, cell(o.reason), o.row.pattern())
			continue
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %d | %d | %d | %d | %.1f | `%s` |\n",
			called, o.verdict, o.acknowledged, o.unknown, o.lost, o.doubled, o.disordered, o.settled.Seconds(), o.row.pattern())
	}
	for _, o := range outcomes {
		if more := strings.TrimSpace(o.note + "\n" + o.reason); more != "" && o.verdict != "skipped" {
			fmt.Fprintf(&b, "\n%s, %s: %s\n", o.row.name, o.verdict, cell(more))
		}
	}
	return os.WriteFile(root+"/docs/"+name+".md", []byte(b.String()), 0o644)
}

// pattern names the row alone, as -run understands it.
func (r row) pattern() string {
	words := strings.Split(strings.ReplaceAll(r.name, " ", "_"), "/")
	for i, w := range words {
		words[i] = "^" + regexp.QuoteMeta(w) + "$"
	}
	return strings.Join(words, "/")
}

// cell keeps a text to one line of a table.
func cell(s string) string {
	s = strings.NewReplacer("|", "/", "\n", " ").Replace(s)
	return s[:min(len(s), 600)]
}
