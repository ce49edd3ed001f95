package kafka_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"go.uber.org/goleak"

	embedded "github.com/millrace/millrace/internal/embedded/kafka"
)

// childDir tells this binary to be a broker on that directory instead of running tests, so that a test can kill it.
const childDir = "MILLRACE_TEST_BROKER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		b, err := embedded.Start(context.Background(), embedded.Config{DataDir: dir})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(b.Addr())
		select {}
	}
	goleak.VerifyTestMain(m)
}

type child struct {
	cmd  *exec.Cmd
	addr string
}

func startChild(t *testing.T, dir string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: cmd}
	t.Cleanup(c.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the child did not start: %v", err)
	}
	c.addr = strings.TrimSpace(line)
	return c
}

// kill is kill -9. The child's end is certain when it returns.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

func producer(t *testing.T, addr, txid string) *kafka.Producer {
	t.Helper()
	p, err := kafka.NewProducer(&kafka.ConfigMap{
		"bootstrap.servers": addr, "transactional.id": txid, "linger.ms": 1, "transaction.timeout.ms": 600000, "message.timeout.ms": 60000,
		"go.delivery.reports": false, "enable.metrics.push": false,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	if err := p.InitTransactions(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

func produce(t *testing.T, p *kafka.Producer, topic string, keyValues ...string) {
	t.Helper()
	if err := p.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(keyValues); i += 2 {
		m := &kafka.Message{TopicPartition: kafka.TopicPartition{Topic: &topic, Partition: 0}, Key: []byte(keyValues[i]), Value: []byte(keyValues[i+1])}
		if err := p.Produce(m, nil); err != nil {
			t.Fatal(err)
		}
	}
	if left := p.Flush(10000); left != 0 {
		t.Fatalf("%d messages were not sent", left)
	}
}

func commit(t *testing.T, p *kafka.Producer) {
	t.Helper()
	if err := p.CommitTransaction(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// readAll reads partition 0 with read_committed up to its last stable offset; it fails where that does not come to an end.
func readAll(t *testing.T, addr, topic string) []string {
	t.Helper()
	c, err := kafka.NewConsumer(&kafka.ConfigMap{
		"bootstrap.servers": addr, "group.id": "test", "isolation.level": "read_committed", "enable.auto.commit": false, "enable.partition.eof": true,
		"enable.metrics.push": false,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.Assign([]kafka.TopicPartition{{Topic: &topic, Partition: 0, Offset: kafka.OffsetBeginning}}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		switch e := c.Poll(100).(type) {
		case *kafka.Message:
			got = append(got, string(e.Key)+"="+string(e.Value))
		case kafka.PartitionEOF:
			return got
		}
	}
	t.Fatal("no end of the partition within 20 s")
	return nil
}

func createTopic(t *testing.T, addr, topic string, config map[string]string) {
	t.Helper()
	a, err := kafka.NewAdminClient(&kafka.ConfigMap{"bootstrap.servers": addr})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	res, err := a.CreateTopics(t.Context(), []kafka.TopicSpecification{{Topic: topic, NumPartitions: 1, Config: config}})
	if err != nil {
		t.Fatal(err)
	}
	if e := res[0].Error; e.Code() != kafka.ErrNoError && e.Code() != kafka.ErrTopicAlreadyExists {
		t.Fatal(e)
	}
}

func TestCloseAndStartAgainKeepsTheLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	boots := map[string]bool{}
	var want []string
	for i := range 3 {
		b, err := embedded.Start(t.Context(), embedded.Config{DataDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if boots[b.Boot()] {
			t.Fatalf("boot %s came twice", b.Boot())
		}
		boots[b.Boot()] = true
		createTopic(t, b.Addr(), "events", nil)
		p := producer(t, b.Addr(), "relay-"+b.Boot())
		v := fmt.Sprint(i)
		produce(t, p, "events", "k", v)
		commit(t, p)
		p.Close()
		want = append(want, "k="+v)
		if got := readAll(t, b.Addr(), "events"); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Fatalf("after start %d: %v, want %v", i+1, got, want)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDirectoryHasOneOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, err := embedded.Start(t.Context(), embedded.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := embedded.Start(t.Context(), embedded.Config{DataDir: dir}); !errors.Is(err, embedded.ErrInUse) {
		t.Fatalf("a second broker on the directory: %v, want ErrInUse", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b, err = embedded.Start(t.Context(), embedded.Config{DataDir: dir})
	if err != nil {
		t.Fatalf("after the first was closed: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListensOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	if b, err := embedded.Start(t.Context(), embedded.Config{DataDir: t.TempDir(), Addr: "0.0.0.0:0"}); err == nil {
		_ = b.Close()
		t.Fatal("it listens on every interface")
	}
}

func TestKillKeepsWhatWasCommittedAndHidesTheRest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var want []string
	for i := range 4 {
		c := startChild(t, dir)
		createTopic(t, c.addr, "events", nil)
		v := fmt.Sprint(i)
		done := producer(t, c.addr, fmt.Sprintf("done-%d", i))
		produce(t, done, "events", "done", v)
		commit(t, done)
		want = append(want, "done="+v)
		open := producer(t, c.addr, fmt.Sprintf("open-%d", i))
		produce(t, open, "events", "open", v)
		produceAfter := producer(t, c.addr, fmt.Sprintf("after-%d", i))
		produce(t, produceAfter, "events", "after", v)
		commit(t, produceAfter)
		want = append(want, "after="+v)
		c.kill()
		c = startChild(t, dir)
		if got := readAll(t, c.addr, "events"); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Fatalf("after kill %d: %v, want %v", i+1, got, want)
		}
		c.kill()
	}
}
