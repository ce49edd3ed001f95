package app

import (
	"fmt"
	"testing"

	"connectrpc.com/connect"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/internal/polltest"
	server "github.com/millrace/millrace/test/servers/kafka"
)

// TestReplayFromTheLake deletes the log up to now, and builds a view again: the lake has the deleted
// events. The version has the same digest as the one that was built before, and follows the log.
func TestReplayFromTheLake(t *testing.T) {
	t.Parallel()
	r := startReplayed(t, embeddedConfig(t))
	ids := make([]string, 30)
	for i := range ids {
		ids[i] = r.place(t, fmt.Sprintf("L-%d", i))
		for line := range uint32(i % 4) {
			if _, err := r.extend(t.Context(), ids[i], line+1); err != nil {
				t.Fatal(err)
			}
		}
	}
	polltest.Until(t, "the lake has every event", func() bool {
		res, err := r.admin.Status(t.Context(), connect.NewRequest(&adminv1.StatusRequest{}))
		if err != nil {
			return false
		}
		for _, s := range res.Msg.GetSinks() {
			if s.GetSink() == "table orders_events" {
				return s.GetCount() == 30+7*(1+2+3)+1 && s.GetLagEvents() == 0
			}
		}
		return false
	})
	if err := server.DeleteRecords(t.Context(), r.addresses["kafka"], "millrace.orders"); err != nil {
		t.Fatal(err)
	}
	for i, id := range ids[:5] { // they are on the log
		if _, err := r.extend(t.Context(), id, 1+uint32(i%4)); err != nil {
			t.Fatal(err)
		}
	}
	version := r.replay(t, "next")
	c := r.compare(t, version.GetSink())
	if !c.GetEqual() || c.GetEqualDocuments() != 30 || c.GetServingHash() != c.GetVersionHash() {
		t.Errorf("the version differs: %v", c)
	}
	letters, err := r.admin.ListDeadLetters(t.Context(), connect.NewRequest(&adminv1.ListDeadLettersRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(letters.Msg.GetDeadLetters()); n > 0 {
		t.Errorf("%d dead letters", n)
	}
	verified, err := r.admin.Verify(t.Context(), connect.NewRequest(&adminv1.VerifyRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for verified.Receive() {
		if result := verified.Msg().GetResult(); result != nil && !result.GetEqual() {
			t.Errorf("verify finds a difference: %v", result)
		}
	}
	if err := verified.Err(); err != nil {
		t.Error(err)
	}
	if _, err := r.admin.SwapVersion(t.Context(), connect.NewRequest(&adminv1.SwapVersionRequest{
		Sink: version.GetSink()})); err != nil {
		t.Fatal(err)
	}
	r.place(t, "L-last")
}
