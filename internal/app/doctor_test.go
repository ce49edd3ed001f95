package app

import (
	"errors"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/settings"
)

// TestDoctor: the doctor asks configured servers without a running system, and says what to do.
func TestDoctor(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	p := startEmbedded(t, embeddedConfig(t), Shop(), Commands, Relay, Views)
	for name, c := range map[string]struct {
		kafka, redis string
		part, check  string
		want         Verdict
		found        string
	}{
		"embedded":           {part: "kafka", check: "reachable", want: OK, found: "embedded"},
		"brokers":            {kafka: p.addresses["kafka"], part: "kafka", check: "settings", want: OK},
		"no broker":          {kafka: "127.0.0.1:1", part: "kafka", check: "reachable", want: Fail, found: "127.0.0.1:1"},
		"redis":              {redis: p.addresses["redis"], part: "redis", check: "reachable", want: OK},
		"no redis":           {redis: "127.0.0.1:1", part: "redis", check: "reachable", want: Fail, found: "127.0.0.1:1"},
		"disk of the folder": {part: "disk", check: "", want: "", found: "GiB free"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conf := embeddedConfig(t)
			conf.Kafka.Brokers, conf.Redis.Addr = c.kafka, c.redis
			checks := Doctor(t.Context(), conf, log)
			i := slices.IndexFunc(
				checks,
				func(k Check) bool { return k.Part == c.part && (c.check == "" || k.Check == c.check) },
			)
			if i < 0 || c.want != "" && checks[i].Verdict != c.want || !strings.Contains(checks[i].Found, c.found) {
				t.Fatalf("checks %v: want %+v", checks, c)
			}
			for _, k := range checks {
				if (k.Verdict == OK) != (k.Remedy == "") {
					t.Errorf("%+v: a remedy is for what is not ok", k)
				}
			}
		})
	}
}

// TestVerdicts: what the doctor says of settings, space and memory.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	fault := settings.Fault{
		Resource: "topic a",
		Setting:  "cleanup.policy",
		Value:    "compact",
		Want:     "delete",
		Effect:   "loses events",
		Remedy:   "set it",
	}
	fatal := fault
	fatal.Fatal = true
	for want, checks := range map[Verdict][]Check{
		OK:   append(SettingChecks("kafka", nil, nil), memoryCheck([]byte("max\n"), math.MaxInt64), memoryCheck(nil, 1), memoryCheck([]byte("1000000\n"), 900_000)),
		Warn: append(SettingChecks("kafka", []settings.Fault{fault}, nil), memoryCheck([]byte("1000000\n"), math.MaxInt64), memoryCheck([]byte("10"), 20), SettingChecks("kafka", nil, errors.New("denied"))[0]),
		Fail: SettingChecks("kafka", []settings.Fault{fatal}, nil),
	} {
		for _, c := range checks {
			if c.Verdict != want || (want == OK) != (c.Remedy == "") {
				t.Errorf("%+v: want %s", c, want)
			}
		}
	}
	for free, want := range map[uint64]Verdict{0: Fail, noSpace: Warn, lowSpace: OK} {
		if got, _, _ := spaceVerdict(free); got != want {
			t.Errorf("%d bytes free: %s, want %s", free, got, want)
		}
	}
}
