package tracking

import (
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
)

// FuzzBody checks that any body is either refused with a reason, or its events are ones that every
// reader accepts, with the times of the server's clock.
func FuzzBody(f *testing.F) {
	for _, seed := range []string{
		`{"messageId":"1","type":"track","event":"A","userId":"u","anonymousId":"a","properties":{"a":1},"timestamp":"2020-01-01T00:00:00Z","sentAt":"2020-01-01T00:00:01Z"}`,
		`{"batch":[{"type":"identify","userId":7,"traits":{"a":{}},"context":{"consent":{"categoryPreferences":{"ads":false}}}},{"type":"alias","userId":"u","previousId":"p"},null],"sentAt":"0001-01-02","writeKey":"k","context":{}}`,
		`{"batch":[{"type":"group","groupId":"g","anonymousId":"\u00e9\ud800"},{"type":"page","userId":"x","timestamp":"9999-12-31T23:59:59Z"}],"sentAt":"1000-01-01"}`,
	} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	plan, err := ParsePlan([]byte("unplanned: true\ntrack: {A: {closed: true, properties: {a: {type: integer, maximum: 5}}}}"))
	if err != nil {
		f.Fatal(err)
	}
	source := &Source{Name: "web"}
	t := &Intake{config: Config{Plan: plan, Consent: Consent{Purposes: map[string]string{"ads": Reduce}}}, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	received := event.Time(time.Unix(1_700_000_000, 0))
	f.Fuzz(func(tt *testing.T, text []byte, single bool) {
		kind := ""
		if single {
			kind = behavior.Track
		}
		m := &memory{body: text}
		b, err := readBody(m, kind)
		if err != nil {
			if syntax := (*syntaxError)(nil); !errors.As(err, &syntax) {
				tt.Fatalf("untyped error %v", err)
			}
			return
		}
		if b.bad != nil {
			return
		}
		s := t.sort(&b, m, kind, source, received)
		if len(s.records)+len(s.letters)+len(s.rejected)+s.dropped != len(b.events) || len(s.records) != len(s.ids) {
			tt.Fatalf("of %d events, %d are records, %d dead letters, %d rejected, %d dropped",
				len(b.events), len(s.records), len(s.letters), len(s.rejected), s.dropped)
		}
		for _, r := range s.rejected {
			if r.bad.Problem == "cannot be stored" {
				tt.Fatalf("an event that was accepted is none: %q", text)
			}
		}
		for i, r := range s.records {
			e, m, err := behavior.FromRecord(r.Key, r.Value, r.Headers)
			if err != nil {
				tt.Fatalf("%q became a record that readers refuse: %v", text, err)
			}
			if e.ID != s.ids[i] || !e.RecordedAt.Equal(received) || m.GetSource() != "web" {
				tt.Fatalf("%q became %v in %+v", text, m, e)
			}
		}
	})
}

// TestForms checks the forms of times and ids that clients send: what is stored, or why the event is refused.
func TestForms(t *testing.T) {
	t.Parallel()
	at := time.Date(2021, 10, 16, 16, 0, 0, 0, time.UTC)
	const customer, upper = "0199e9a4-43aa-7c01-b5a1-5c0f5e1d2a3b", "0199E9A4-43AA-7C01-B5A1-5C0F5E1D2A3B"
	type want struct {
		time        time.Time
		user, field string
	}
	for text, w := range map[string]want{
		`"timestamp":"2021-10-16T16:00:00.25Z"`:                 {at.Add(time.Second / 4), "u", ""},
		`"timestamp":"2021-10-16T16:00:00.25+0000"`:             {at.Add(time.Second / 4), "u", ""},
		`"timestamp":"2021-10-16T21:30:00+0530"`:                {at, "u", ""},
		`"timestamp":"2021-10-16T09:00:00-07"`:                  {at, "u", ""},
		`"timestamp":"2021-10-16T09:00:00-07:00"`:               {at, "u", ""},
		`"timestamp":"2021-10-16 18:00:00.0000001+02:00"`:       {at, "u", ""},
		`"timestamp":"2021-10-16T16:00Z"`:                       {at, "u", ""},
		`"timestamp":"2021-10-16T16:00"`:                        {at, "u", ""},
		`"timestamp":"2021-10-16 16:00:00"`:                     {at, "u", ""},
		`"timestamp":"2021-10-16"`:                              {at.Add(-16 * time.Hour), "u", ""},
		`"timestamp":"2021-10-16T16:00:00+9999"`:                {field: "timestamp"},
		`"timestamp":"16/10/2021"`:                              {field: "timestamp"},
		`"userId":"` + upper + `"`:                              {user: customer},
		`"userId":" ` + customer + ` "`:                         {user: customer},
		`"userId":"` + strings.ReplaceAll(upper, "-", "") + `"`: {user: strings.ReplaceAll(upper, "-", "")},
		`"userId":" Ann "`:                                      {user: " Ann "},
		`"userId":" "`:                                          {field: "userId"},
		`"userId":" ","anonymousId":"a"`:                        {},
		`"properties":{"price":1e999}`:                          {field: "properties"},
	} {
		if !strings.Contains(text, "userId") {
			text = `"userId":"u",` + text
			w.user = "u"
		}
		m := &memory{body: []byte(`{"event":"A",` + text + `}`)}
		b, err := readBody(m, behavior.Track)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		var e behaviorv1.BehaviorEvent
		bad := b.events[0].fill(&e, &b, behavior.Track, &Source{Name: "web"}, time.Now())
		switch {
		case w.field != "":
			if bad == nil || bad.Field != w.field {
				t.Errorf("%s: %v, want an error of %s", text, bad, w.field)
			}
		case bad != nil:
			t.Errorf("%s: %v", text, bad)
		case e.GetUserId() != w.user:
			t.Errorf("%s: the user is %q, want %q", text, e.GetUserId(), w.user)
		case !w.time.IsZero() && !e.GetTimestamp().AsTime().Equal(w.time):
			t.Errorf("%s: the time is %v, want %v", text, e.GetTimestamp().AsTime(), w.time)
		}
	}
}

// TestCopiesAreWrittenOnce runs requests in any interleaving, with failures whose records may or may
// not be on the log. Each id is on the log once, and no request is told that an event is on the log
// before it is.
func TestCopiesAreWrittenOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := newCopies(100)
		now := time.Unix(1_700_000_000, 0)
		written := map[uuid.UUID]int{} // what is on the log
		var log []seen
		write := func(id uuid.UUID) {
			written[id]++
			log = append(log, seen{id, now})
		}
		session := func() *session { return &session{broken: make(chan struct{})} }
		current := session()
		c.open(current)
		var open []*claim
		asked := map[*claim][]uuid.UUID{}
		reopen := func() {
			if c.available() {
				return
			}
			// As Intake.session does: all writers end, the log is read to its end, and only then is
			// the next session open.
			for _, k := range open {
				if k.session == current {
					c.settle(k, now, errUnavailable)
				}
			}
			open = nil
			c.close(current)
			c.addSeen(log)
			current = session()
			c.open(current)
		}
		t.Repeat(map[string]func(*rapid.T){
			"claim": func(t *rapid.T) {
				ids := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) uuid.UUID {
					return uuid.UUID{byte(rapid.IntRange(1, 9).Draw(t, "id"))}
				}), 1, 4).Draw(t, "ids")
				k, err := c.claim(ids, now)
				if err != nil {
					t.Skip("not available")
				}
				open = append(open, k)
				asked[k] = ids
			},
			"settle": func(t *rapid.T) {
				if len(open) == 0 {
					t.Skip("no request")
				}
				i := rapid.IntRange(0, len(open)-1).Draw(t, "request")
				k := open[i]
				open = append(open[:i:i], open[i+1:]...)
				if rapid.IntRange(0, 3).Draw(t, "outcome") > 0 {
					for _, id := range k.ids {
						write(id)
					}
					c.settle(k, now, nil)
				} else {
					for _, id := range k.ids {
						if rapid.Bool().Draw(t, "on the log") {
							write(id)
						}
					}
					c.settle(k, now, errUnavailable)
				}
			},
			"tail":   func(*rapid.T) { c.addSeen(log) },
			"reopen": func(*rapid.T) { reopen() },
			"": func(t *rapid.T) {
				for id, n := range written {
					if n > 1 {
						t.Fatalf("event %d is on the log %d times", id[0], n)
					}
				}
				for k, ids := range asked {
					if !acknowledged(k) {
						continue
					}
					for _, id := range ids {
						if written[id] == 0 {
							t.Fatalf("a request was told that event %d is on the log", id[0])
						}
					}
				}
			},
		})
	})
}

// acknowledged reports whether a request has the answer that its events are on the log.
func acknowledged(k *claim) bool {
	for _, o := range append(k.others[:len(k.others):len(k.others)], &k.ours) {
		select {
		case <-o.done:
			if o.err != nil {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// TestDamagedPlans checks that an error names the place in the plan, and not the types that it is read into.
func TestDamagedPlans(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"# no events":                                    "it is empty",
		"track:\n  Added:\n    required: [a":             "not YAML: ",
		"track:\n  Added:\n    closed: perhaps":          "line 3: track.Added.closed: want true or false",
		"track: {Added: {propreties: {}}}":               "line 1: track.Added.propreties: unknown key: want some of closed, ",
		"track: {Added: {properties: {a: integer}}}":     "line 1: track.Added.properties.a: want keys with values",
		"page: {properties: {n: {minimum: [1]}}}":        "line 1: page.properties.n.minimum: want a number",
		"track: {Added: {properties: {a: {enum: red}}}}": "line 1: track.Added.properties.a.enum: want a list",
	} {
		if _, err := ParsePlan([]byte(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: error %v, want %s", text, err, want)
		}
	}
}

// TestIdentifiersOfThePlan checks which traits a plan makes identifiers, and that a wrong place or kind
// is an error that names it.
func TestIdentifiersOfThePlan(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`identify: {properties: {email: {type: string, identifier: email_hash}, age: {type: integer}}}`: "",
		`identify: {properties: {email: {type: string, identifier: address}}}`:                          "identify.properties.email.identifier",
		`identify: {properties: {id: {type: string, identifier: anonymous_id}}}`:                        "identify.properties.id.identifier",
		`identify: {properties: {id: {type: integer, identifier: external_id}}}`:                        "identify.properties.id.identifier",
		`identify: {properties: {a: {properties: {id: {type: string, identifier: external_id}}}}}`:      "identify.properties.a.properties.id.identifier",
		`group: {properties: {id: {type: string, identifier: external_id}}}`:                            "group.properties.id.identifier",
		`track: {Added: {properties: {id: {type: string, identifier: external_id}}}}`:                   "track.Added.properties.id.identifier",
	} {
		plan, err := ParsePlan([]byte(text))
		if want != "" {
			if err == nil || !strings.HasPrefix(err.Error(), want+":") {
				t.Errorf("%s: %v, want an error of %s", text, err, want)
			}
			continue
		}
		if got := plan.Identifiers(); err != nil || len(got) != 1 || got["email"] != identityv1.IdentifierKind_IDENTIFIER_KIND_EMAIL_HASH {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	if got := (*Plan)(nil).Identifiers(); len(got) != 0 {
		t.Errorf("no plan has the identifiers %v", got)
	}
}
