package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/internal/settings"
)

// Verdict is the result of a check.
type Verdict string

// The verdicts. A failed check means that the system does not start, stops, or loses data.
const (
	OK   Verdict = "ok"
	Warn Verdict = "warn"
	Fail Verdict = "fail"
)

// Check is something that Doctor has looked at.
type Check struct {
	Part    string  `json:"part"` // "kafka"
	Check   string  `json:"check"`
	Verdict Verdict `json:"verdict"`
	Found   string  `json:"found"`
	Remedy  string  `json:"remedy,omitempty"` // what to do, unless the verdict is OK
}

const (
	doctorTimeout = 10 * time.Second // for each server
	// Free space below which a disk is full soon, and below which the embedded servers stop.
	lowSpace, noSpace = 10 << 30, 1 << 30
)

// Doctor checks this machine, and the servers of a configuration that can be asked without changing
// them: it creates no topic and no key, and migrates nothing. A running system checks the others; see
// SettingChecks.
func Doctor(ctx context.Context, c config.Config, log *slog.Logger) []Check {
	all := []Check{checkMemory()}
	if len(embedded(c, wanted(Roles()))) > 0 {
		all = append(all, checkSpace(c.Data))
	}
	return append(append(all, checkKafka(ctx, c, log)...), checkRedis(ctx, c)...)
}

// checkKafka checks the brokers and the settings of the topics.
func checkKafka(ctx context.Context, c config.Config, log *slog.Logger) []Check {
	if c.Kafka.Brokers == "" {
		return []Check{{Part: "kafka", Check: "reachable", Verdict: OK, Found: "embedded"}}
	}
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	access, err := kafkaAccess(c.Kafka)
	var admin *kafka.Admin
	if err == nil {
		admin, err = kafka.NewAdmin(kafka.Config{Brokers: c.Kafka.Brokers, ClientID: "millrace-doctor", Security: access,
			Logger: log})
	}
	if err == nil {
		defer admin.Close()
		err = admin.Ping(ctx)
	}
	if err != nil {
		return []Check{unreachable("kafka", c.Kafka.Brokers, err, "kafka.brokers, kafka.tls and kafka.sasl")}
	}
	all := []Check{{Part: "kafka", Check: "reachable", Verdict: OK, Found: c.Kafka.Brokers}}
	var existing []kafka.Topic
	for _, t := range Shop().logs(c.Kafka) {
		switch _, err := admin.Topic(ctx, t.Name); {
		case errors.Is(err, kafka.ErrUnknownTopic):
			all = append(all, Check{"kafka", "topic " + t.Name, Warn, "does not exist",
				"start a process with the role relay or views, which creates it, or create it as deploy/kafka describes"})
		case err != nil:
			all = append(all, Check{"kafka", "topic " + t.Name, Fail, err.Error(), "grant Describe on the topic"})
		default:
			existing = append(existing, t)
		}
	}
	if len(existing) == 0 {
		return all
	}
	faults, err := admin.Settings(ctx, existing...)
	return append(all, SettingChecks("kafka", faults, err)...)
}

// checkRedis checks the server of the views.
func checkRedis(ctx context.Context, c config.Config) []Check {
	if c.Redis.Addr == "" {
		return []Check{{Part: "redis", Check: "reachable", Verdict: OK, Found: "embedded"}}
	}
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	password, err := c.Redis.Password.Reveal("")
	if err != nil {
		return []Check{{"redis", "password", Fail, err.Error(), "correct redis.password"}}
	}
	trust, err := c.Redis.TLS.Client()
	if err != nil {
		return []Check{{"redis", "certificates", Fail, err.Error(), "correct redis.tls"}}
	}
	client, err := redis.Open(
		ctx,
		redis.Config{Addr: c.Redis.Addr, Username: c.Redis.User, Password: password, TLS: trust},
	)
	if err != nil {
		return []Check{unreachable("redis", c.Redis.Addr, err, "redis.addr, redis.user, redis.password and redis.tls")}
	}
	defer client.Close() //nolint:errcheck // nothing was written
	all := []Check{{Part: "redis", Check: "reachable", Verdict: OK, Found: c.Redis.Addr}}
	faults, err := client.Settings(ctx)
	return append(all, SettingChecks("redis", faults, err)...)
}

// unreachable is the check of a server that does not answer.
func unreachable(part, addr string, err error, keys string) Check {
	return Check{part, "reachable", Fail, fmt.Sprintf("%s: %v", addr, err),
		"start the server, or correct " + keys}
}

// SettingChecks returns the faults of a server's settings as checks, or one that is OK.
func SettingChecks(part string, faults []settings.Fault, err error) []Check {
	if err != nil {
		return []Check{
			{part, "settings", Warn, err.Error(), "grant the right that the error names, so that settings are checked"},
		}
	}
	if len(faults) == 0 {
		return []Check{{Part: part, Check: "settings", Verdict: OK, Found: "as they must be"}}
	}
	var all []Check
	for _, f := range faults {
		verdict := Warn
		if f.Fatal {
			verdict = Fail
		}
		all = append(all, Check{part, f.Resource + ": " + f.Setting, verdict,
			fmt.Sprintf("%q, not %s: %s", f.Value, f.Want, f.Effect), f.Remedy})
	}
	return all
}

// checkSpace checks the disk of the data folder, which need not exist yet.
func checkSpace(folder string) Check {
	check := Check{Part: "disk", Check: folder, Verdict: Fail, Remedy: "correct data, or the rights to the folder"}
	at, err := filepath.Abs(folder)
	if err != nil {
		check.Found = err.Error()
		return check
	}
	var s unix.Statfs_t
	for err = unix.Statfs(at, &s); errors.Is(err, fs.ErrNotExist) && at != filepath.Dir(at); err = unix.Statfs(at, &s) {
		at = filepath.Dir(at)
	}
	if err != nil {
		check.Found = err.Error()
		return check
	}
	check.Verdict, check.Found, check.Remedy = spaceVerdict(s.Bavail * uint64(s.Bsize))
	return check
}

// spaceVerdict judges the free space of a disk.
func spaceVerdict(free uint64) (verdict Verdict, found, remedy string) {
	found = fmt.Sprintf("%.1f GiB free", float64(free)/(1<<30))
	switch {
	case free < noSpace:
		return Fail, found, "free space: commands are refused while the disk of the stores is full"
	case free < lowSpace:
		return Warn, found, "free space, or set data to a folder on a larger disk"
	}
	return OK, found, ""
}

// checkMemory checks that Go knows the limit of the container.
func checkMemory() Check {
	limit, err := os.ReadFile("/sys/fs/cgroup/memory.max")
	if err != nil {
		limit = nil // without a cgroup, nothing limits the memory
	}
	return memoryCheck(limit, debug.SetMemoryLimit(-1))
}

// memoryCheck compares the text of a cgroup's limit with Go's own.
func memoryCheck(cgroup []byte, goLimit int64) Check {
	check := Check{Part: "memory", Check: "GOMEMLIMIT", Verdict: OK, Found: "the container has no limit"}
	limit, err := strconv.ParseInt(string(bytes.TrimSpace(cgroup)), 10, 64)
	if err != nil { // "max"
		return check
	}
	check.Found = fmt.Sprintf("the container has %d MiB", limit>>20)
	if goLimit == math.MaxInt64 || goLimit > limit {
		check.Verdict, check.Found = Warn, check.Found+", and Go does not know it"
		check.Remedy = fmt.Sprintf(
			"set the variable GOMEMLIMIT=%dMiB, four fifths of the limit, or the process can be killed "+
				"before it collects garbage",
			limit/5*4>>20,
		)
	}
	return check
}
