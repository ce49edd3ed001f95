package kill

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// report writes docs/kill-matrix.md, or the page of one role.
func report(outcomes []outcome, total int) error {
	var b strings.Builder
	title, command, name := "Kill matrix", "make kill", "kill-matrix"
	if *only != "" {
		title, command, name = "Kill matrix: role "+*only, "make kill ROLE="+*only, name+"-"+*only
	}
	count := map[string]int{}
	var took time.Duration
	acknowledged := 0
	for _, o := range outcomes {
		count[o.verdict]++
		took += o.took
		acknowledged += o.acknowledged
	}
	// A backquote cannot be part of a raw string, so it is the first argument.
	fmt.Fprintf(&b, `# %[12]s

Written by %[1]s%[13]s%[1]s: do not edit.

Each row puts the running system under load, breaks one thing, and repairs it. Then every command
that a client saw acknowledged, in this row or an earlier one on the same system, must be in the
event store, the topic, the lake's table and the views: exactly once, and in the order of its
stream. %[1]smillrace verify%[1]s must find all sides equal, too. In the rows of the role tracking, the
same holds for the events of visitors. In the rows features/online, all vectors that were served are
recomputed from the lake.

**%[2]d green, %[3]d red, %[4]d skipped, %[10]d not run yet, of %[11]d rows**;
%[5]d commands acknowledged in %[6]v on %[7]d processors (%[8]s).

- *kill*: SIGKILL at the step. The scheduler restarts the role.
- *error*: the step returns an error.
- *lost answer*: the step takes effect, but returns an error.
- *zombie*: SIGSTOP at the step for %[9]v while another process of the role takes over, then
  SIGCONT.
- *freeze*: SIGSTOP at the step for %[9]v, then SIGCONT. No other process takes over.
- *unknown*: commands whose client gave up before an answer. They may have taken effect once or not
  at all.
- *settled*: seconds from the repair until all sides were equal. A hundred more commands run in that
  time.
- Rows %[1]sembedded/…%[1]s run all roles in one process on the embedded default. The others run a
  process per role on PostgreSQL, three nodes of Apache Kafka, Redis, Elasticsearch, S3 and
  ClickHouse, each behind a proxy.
- Rows marked • import the real year beside the generated load.

Repeat a row with its pattern from the last column:

    go test ./test/kill -v -run 'TestMatrix/PATTERN'

`, "`", count["green"], count["red"], count["skipped"], acknowledged, took.Round(time.Second), runtime.NumCPU(),
		time.Now().UTC().Format(time.DateOnly), freezeFor(), total-len(outcomes), total, title, command)
	b.WriteString("| row | | acknowledged | unknown | lost | doubled | out of order | settled, s | pattern |\n" +
		"|---|---|---:|---:|---:|---:|---:|---:|---|\n")
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
			called, o.verdict, o.acknowledged, o.unknown, o.lost, o.doubled, o.disordered,
			o.settled.Seconds(), o.row.pattern())
	}
	for _, o := range outcomes {
		if more := strings.TrimSpace(o.note + "\n" + o.reason); more != "" && o.verdict != "skipped" {
			fmt.Fprintf(&b, "\n%s, %s: %s\n", o.row.name, o.verdict, cell(more))
		}
	}
	return os.WriteFile(root+"/docs/"+name+".md", []byte(b.String()), 0o644)
}

// pattern returns a pattern for -run that matches only this row.
func (r row) pattern() string {
	words := strings.Split(strings.ReplaceAll(r.name, " ", "_"), "/")
	for i, w := range words {
		words[i] = "^" + regexp.QuoteMeta(w) + "$"
	}
	return strings.Join(words, "/")
}

// cell shortens a text, and makes it fit in one cell of a table.
func cell(s string) string {
	s = strings.NewReplacer("|", "/", "\n", " ").Replace(s)
	return s[:min(len(s), 600)]
}
