package kill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/internal/client"
	"github.com/millrace/millrace/test/servers/s3"
)

// outage is how long a server is unavailable, or its network broken.
const outage = 10 * time.Second

// killKafkaNode kills a node of the cluster. The others elect new leaders, so the commands that are
// counted during the outage need a cluster that has recovered.
func killKafkaNode(ctx context.Context, s *system, node int) error {
	if err := s.servers.kafka.KillNode(node); err != nil {
		return err
	}
	if err := sleep(ctx, outage); err != nil {
		return err
	}
	return s.servers.kafka.RestartNode(ctx, node)
}

func crashPostgres(_ context.Context, s *system) error {
	return errors.Join(s.servers.postgres.Kill(), s.servers.postgres.Restart())
}

func flushRedis(_ context.Context, s *system) error { return s.servers.redis.FlushAll(0) }

func crashRedis(_ context.Context, s *system) error {
	return errors.Join(s.servers.redis.Kill(0), s.servers.redis.Restart(0, false))
}

func crashS3(ctx context.Context, s *system) error {
	return errors.Join(s.servers.s3.Kill(), s.servers.s3.Restart(ctx))
}

func crashSearch(ctx context.Context, s *system) error {
	return errors.Join(s.servers.search.Kill(), s.servers.search.Restart(ctx))
}

// deleteIndex deletes the index of the view catalog, as an operator might.
func deleteIndex(ctx context.Context, s *system) error {
	base, err := s.servers.search.Start()
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/_cat/indices/*millrace*?h=index",
		http.NoBody)
	if err != nil {
		return err
	}
	names, err := call(request)
	if err != nil {
		return err
	}
	if strings.TrimSpace(names) == "" {
		return errors.New("no index to delete: the row shows nothing")
	}
	for name := range strings.FieldsSeq(names) {
		if request, err = http.NewRequestWithContext(ctx, http.MethodDelete, base+"/"+name, http.NoBody); err != nil {
			return err
		}
		if _, err := call(request); err != nil {
			return err
		}
	}
	return nil
}

// breakS3 returns a fault that breaks every third call to S3 for a while.
func breakS3(f s3.Fault) fault {
	return func(ctx context.Context, s *system) error {
		var calls, broken atomic.Int64
		s.servers.s3faults.Break(func(*http.Request) s3.Fault {
			if calls.Add(1)%3 != 0 {
				return s3.Fault{}
			}
			broken.Add(1)
			return f
		})
		defer s.servers.s3faults.Break(nil)
		if err := sleep(ctx, outage); err != nil {
			return err
		}
		if broken.Load() == 0 {
			return errors.New("no call to S3 failed: the row shows nothing")
		}
		return nil
	}
}

// withToxic returns a fault that breaks the network to a server for a while.
func withToxic(server string, t toxic) fault {
	return func(ctx context.Context, s *system) error {
		if err := s.addToxic(server, t); err != nil {
			return err
		}
		defer s.removeToxics(context.WithoutCancel(ctx), server)
		return sleep(ctx, outage)
	}
}

// fillDisk fills the disk under the embedded default. Commands must be rejected with this reason.
// After room is made and the system is restarted, it must continue.
func fillDisk(ctx context.Context, s *system) error {
	return s.exhaustDisk(ctx, func(i *instance) error { return i.Stop(time.Minute) })
}

// fillDiskAndKill is like fillDisk, but kills the system instead of stopping it.
func fillDiskAndKill(ctx context.Context, s *system) error {
	return s.exhaustDisk(ctx, func(i *instance) error { return i.Kill() })
}

// exhaustDisk fills the disk until a command is rejected, makes room again, and restarts the system
// by end.
func (s *system) exhaustDisk(ctx context.Context, end func(*instance) error) error {
	filler := filepath.Join(s.dir, "filler")
	// dd ends with an error when the disk is full, as intended.
	_ = exec.CommandContext(ctx, "dd", "if=/dev/zero", "of="+filler, "bs=64k").Run()
	rejected, err := s.rejectedForSpace(ctx)
	if err != nil {
		return err
	}
	r := s.role("up")
	i, starts, err := r.now()
	if err != nil {
		return err
	}
	if err := os.Remove(filler); err != nil {
		return err
	}
	if !i.ended() {
		if err := end(i); err != nil && !i.ended() {
			return err
		}
	}
	if err := r.backSince(ctx, starts); err != nil {
		return err
	}
	s.note = "commands were rejected with: " + rejected
	return nil
}

// rejectedForSpace sends commands, each under a new key, until one is rejected because the disk is
// full.
func (s *system) rejectedForSpace(ctx context.Context) (reason string, err error) {
	c := client.New(s.recorder.addr, 0)
	defer c.Close()
	var lastErr error
	err = await(ctx, "a command rejected because the disk is full", time.Minute, func() (bool, error) {
		command := &catalogv1.SetPriceRequest{Sku: sku(0), Price: price(), IdempotencyKey: key("price")}
		_, lastErr = c.Send(ctx, command)
		var rejected *connect.Error
		if !errors.As(lastErr, &rejected) || !connect.IsWireError(rejected) {
			return false, nil
		}
		reason = fmt.Sprintf("%s: %s", rejected.Code(), rejected.Message())
		return strings.Contains(reason, "disk is full"), nil
	})
	if err != nil {
		return "", fmt.Errorf("%w; the last answer: %w", err, lastErr)
	}
	return reason, nil
}

// call sends a request and reads its answer.
func call(r *http.Request) (string, error) {
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer response.Body.Close() //nolint:errcheck // read to its end
	var b strings.Builder
	if _, err := io.Copy(&b, response.Body); err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s %s: %s: %s", r.Method, r.URL, response.Status, b.String())
	}
	return b.String(), nil
}
