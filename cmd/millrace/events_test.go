package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// ordersContract is the contract of orders, which this program has linked in.
const ordersContract = "../../proto/millrace/order/v1/events.proto"

// changedContract returns a file with the contract of orders after replacements.
func changedContract(t *testing.T, replacements ...string) string {
	t.Helper()
	b, err := os.ReadFile(ordersContract)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer(replacements...).Replace(string(b))
	if len(replacements) > 0 && text == string(b) {
		t.Fatalf("the contract does not have %q", replacements[0])
	}
	file := filepath.Join(t.TempDir(), "events.proto")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestEventsDiff: the report says what stored events and tables become, and a breaking change is an
// error.
func TestEventsDiff(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change []string
		want   []string // parts of the report
		err    string   // empty if nothing breaks
	}{
		"nothing": {nil, []string{"millrace.order.v1.OrderEvent", "no change"}, ""},
		"a new field": {[]string{"string country = 5;", "string country = 5; optional string channel = 9;"},
			[]string{"placed.channel", "field channel = 9 is new", "safe", "table: column placed.channel is new"}, ""},
		"another type": {[]string{"int64 quantity = 4;", "string quantity = 4;"},
			[]string{"placed.lines.quantity", "breaks", "they become unknown fields", "table: stops, because"},
			"the change breaks stored events of millrace.order.v1.OrderEvent, the table of millrace.order.v1.OrderEvent"},
		"a removed event type": {[]string{"OrderConfirmed confirmed = 3;", ""}, []string{"the event type OrderConfirmed is gone"},
			"the change breaks stored events of millrace.order.v1.OrderEvent:"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := run(t, "events", "diff", changedContract(t, c.change...))
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			for _, want := range c.want {
				if !strings.Contains(out, want) {
					t.Errorf("the report lacks %q:\n%s", want, out)
				}
			}
		})
	}
}

// TestEventsDiffOfFiles compares two files, as JSON.
func TestEventsDiffOfFiles(t *testing.T) {
	t.Parallel()
	after := changedContract(t, "string reason = 2;", "string reason = 2; string note = 9;")
	out, err := run(t, "events", "diff", after, "--from", changedContract(t), "--message", "OrderCancelled",
		"--output", "json")
	if err != nil {
		t.Fatal(err)
	}
	var reports []contractReport
	if err := json.Unmarshal([]byte(out), &reports); err != nil {
		t.Fatal(err)
	}
	if len(reports) != 1 || len(reports[0].Changes) != 1 || reports[0].Changes[0].Path != "note" ||
		reports[0].Changes[0].Breaks {
		t.Errorf("got %+v, want one safe change of note", reports)
	}
}

// TestEventsDiffErrors: an error names the file and what to do.
func TestEventsDiffErrors(t *testing.T) {
	t.Parallel()
	garbage := filepath.Join(t.TempDir(), "contract.binpb")
	if err := os.WriteFile(garbage, []byte("no descriptors"), 0o600); err != nil {
		t.Fatal(err)
	}
	for words, want := range map[string]string{
		"missing.proto": "read missing.proto: ",
		garbage:         "it is neither a .proto file nor a descriptor set",
		"../../proto/millrace/order/v1/order_service.proto --import ../../proto": "has no events message of Millrace: for another message, set --message and --from",
		ordersContract + " --message OrderPlaced":                                "--message needs --from",
		ordersContract + " --from missing.proto":                                 "--from: read missing.proto: ",
	} {
		_, err := run(t, append([]string{"events", "diff"}, strings.Fields(words)...)...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %s", words, err, want)
		}
	}
}
