package config_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/config"
)

func none(string) (string, bool) { return "", false }

func TestDefaultIsSound(t *testing.T) {
	t.Parallel()
	if err := config.Default().Check(); err != nil {
		t.Fatal(err)
	}
}

func TestWrittenFileReadsBack(t *testing.T) {
	t.Parallel()
	want := config.Default()
	want.Addr, want.Log.Level, want.Log.Format = "127.0.0.1:1", slog.LevelInfo, "json"
	want.Lake.CommitInterval, want.Kafka.Partitions = 1500*time.Millisecond, 7
	var b bytes.Buffer
	if _, err := want.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := config.Load(path, none)
	if err != nil {
		t.Fatalf("%v in:\n%s", err, b.String())
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, file string
		env        map[string]string
		check      func(config.Config) bool
		wantErr    string
	}{
		{name: "the file goes over the default", file: "kafka: {partitions: 9}", check: func(c config.Config) bool { return c.Kafka.Partitions == 9 && c.Addr == config.Default().Addr }},
		{name: "the environment goes over the file", file: "kafka: {partitions: 9}", env: map[string]string{"MILLRACE_KAFKA_PARTITIONS": "3"}, check: func(c config.Config) bool { return c.Kafka.Partitions == 3 }},
		{name: "durations and levels are read", env: map[string]string{"MILLRACE_LAKE_COMMIT_INTERVAL": "250ms", "MILLRACE_LOG_LEVEL": "debug"}, check: func(c config.Config) bool {
			return c.Lake.CommitInterval == 250*time.Millisecond && c.Log.Level == slog.LevelDebug
		}},
		{name: "text that looks like a number stays text", env: map[string]string{"MILLRACE_KAFKA_BROKERS": "1234"}, check: func(c config.Config) bool { return c.Kafka.Brokers == "1234" }},
		{name: "an empty file is the default", file: "\n", check: func(c config.Config) bool { return reflect.DeepEqual(c, config.Default()) }},
		{name: "an unknown key is named", file: "kafka: {broker: x}", wantErr: "broker"},
		{name: "a bad variable is named", env: map[string]string{"MILLRACE_KAFKA_PARTITIONS": "many"}, wantErr: "MILLRACE_KAFKA_PARTITIONS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "c.yaml")
			if err := os.WriteFile(path, []byte(c.file), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := config.Load(path, func(k string) (string, bool) { v, ok := c.env[k]; return v, ok })
			switch {
			case c.wantErr != "":
				if err == nil || !strings.Contains(err.Error(), c.wantErr) {
					t.Fatalf("error %v does not name %s", err, c.wantErr)
				}
			case err != nil:
				t.Fatal(err)
			case !c.check(got):
				t.Fatalf("got %+v", got)
			}
		})
	}
}

func TestAFileThatWasNamedMustExist(t *testing.T) {
	t.Parallel()
	if _, err := config.Load(filepath.Join(t.TempDir(), "absent.yaml"), none); err == nil {
		t.Fatal("want an error")
	}
}

func TestCheckNamesTheKey(t *testing.T) {
	t.Parallel()
	for key, change := range map[string]func(*config.Config){
		"addr":                 func(c *config.Config) { c.Addr = "0.0.0.0:7400" },
		"kafka.listen":         func(c *config.Config) { c.Kafka.Listen = "nonsense" },
		"kafka.partitions":     func(c *config.Config) { c.Kafka.Partitions = 0 },
		"lake.commit_interval": func(c *config.Config) { c.Lake.CommitInterval = 0 },
		"log.format":           func(c *config.Config) { c.Log.Format = "xml" },
		"data":                 func(c *config.Config) { c.Data = "" },
	} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			c := config.Default()
			change(&c)
			if err := c.Check(); err == nil || !strings.Contains(err.Error(), key) {
				t.Fatalf("error %v does not name %s", err, key)
			}
		})
	}
}
