package kafka

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace/millrace/test/servers/process"
)

// node is one server, both broker and controller. All its files are in one folder: configuration,
// data and log. It keeps its folder and ports over restarts.
type node struct {
	id        int // Kafka's id, from 1
	dir       string
	java      string // the java program
	installed string // folder with the jars

	// Ports. Clients connect to the advertised one, which may be that of a proxy in front of
	// client. Brokers use internal among each other, and controller for the quorum.
	client, advertised, internal, controller, secure int

	// The lock is held during a start, so a kill does not miss a process that is about to run.
	mu      sync.Mutex       // serialises start, kill and signals
	process *process.Process // nil unless it runs
}

// clusterID is a UUID in Kafka's notation, that of the installed data folder. All nodes have the
// same one.
const clusterID = "wN5EzFFoRB-eNLVEQS0m0Q"

// format writes the node's configuration and its data folder. The installer has formatted one in
// advance, because that takes Java a second. The copy contains the accounts of the secure listener,
// so they need not be created later.
func (n *node) format(c *Cluster) error {
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return err
	}
	properties, err := n.properties(c)
	if err != nil {
		return err
	}
	if err := os.WriteFile(n.config(), []byte(properties), 0o600); err != nil {
		return err
	}
	if err := os.CopyFS(n.data(), os.DirFS(filepath.Join(n.installed, "formatted"))); err != nil {
		return err
	}
	// Each data folder needs an id of its own. Kafka writes ids as 22 characters of URL-safe
	// base64, and never generates one that begins with "-". So the first character is fixed.
	id := uuid.New()
	meta := fmt.Sprintf("version=1\ncluster.id=%s\nnode.id=%d\ndirectory.id=0%s\n", clusterID, n.id,
		base64.RawURLEncoding.EncodeToString(id[:])[1:])
	return os.WriteFile(filepath.Join(n.data(), "meta.properties"), []byte(meta), 0o600)
}

func (n *node) data() string { return filepath.Join(n.dir, "data") }

func (n *node) config() string { return filepath.Join(n.dir, "server.properties") }

// jvm returns the options for Java. Its small heap and simple garbage collector suit tests with
// little data. The installer's archive of loaded classes halves the time of a start. Java also
// starts without it, or if the class path has changed.
func (n *node) jvm() []string {
	// The jars are sorted, as in the installer's archive. Glob fails only if the pattern is
	// malformed.
	jars, _ := filepath.Glob(filepath.Join(n.installed, "lib", "*.jar"))
	return []string{
		"-Xmx320m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:MaxDirectMemorySize=256m",
		"-XX:SharedArchiveFile=" + filepath.Join(n.installed, "kafka.jsa"), "-Xlog:cds=off", "-Xlog:cds+dynamic=off",
		"-Dlog4j2.level=WARN", "-cp", strings.Join(jars, ":"),
	}
}

// start runs the node and returns once it is ready.
func (n *node) start(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, err := process.Start(ctx, process.Command{
		Name: fmt.Sprintf("Kafka node %d", n.id-1), Path: n.java, Args: append(n.jvm(), "kafka.Kafka",
			n.config()), Dir: n.dir,
		StartTimeout: 3 * time.Minute, // two seconds on an idle machine
		Ready: func(ctx context.Context) error {
			// A broker answers once the controller has accepted it.
			_, err := n.brokers(ctx)
			return err
		},
	})
	if err != nil {
		return err
	}
	n.process = p
	return nil
}

// brokers asks the node how many brokers of the cluster are alive. It asks exactly this node:
// SeedBrokers bypasses the client's choice among the brokers that it discovers.
func (n *node) brokers(ctx context.Context) (int, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(loopback(n.client)))
	if err != nil {
		return 0, err
	}
	defer client.Close()
	request := kmsg.NewPtrMetadataRequest()
	request.Topics = []kmsg.MetadataRequestTopic{} // none
	response, err := client.SeedBrokers()[0].Request(ctx, request)
	if err != nil {
		return 0, err
	}
	return len(response.(*kmsg.MetadataResponse).Brokers), nil
}

// kill ends the process, if one runs, and returns once it has ended, so that a restart finds the
// ports free.
func (n *node) kill() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process == nil {
		return nil
	}
	p := n.process
	n.process = nil
	return p.Kill()
}

// signal sends a signal to the process. It returns before the signal has taken effect.
func (n *node) signal(s syscall.Signal) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process == nil {
		return fmt.Errorf("broker %d is not running", n.id-1)
	}
	return n.process.Signal(s)
}

func (n *node) residentMB() (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process == nil {
		return 0, errors.New("node is not running")
	}
	return n.process.ResidentMB()
}

// properties returns the node's configuration file. c.nodes must be complete, because every node
// lists all voters of the quorum. With Secure, it also issues the node's certificate.
func (n *node) properties(c *Cluster) (string, error) {
	voters := make([]string, len(c.nodes))
	for i, v := range c.nodes {
		voters[i] = fmt.Sprintf("%d@%s", v.id, loopback(v.controller))
	}
	// Two of three replicas must have a record before it is acknowledged. So any one node may fail
	// without loss, and without refusing records.
	replicas, insync := strconv.Itoa(c.Nodes), strconv.Itoa(min(c.Nodes, 2))
	listeners := []string{"CLIENT://" + loopback(n.client), "INTERNAL://" + loopback(n.internal),
		"CONTROLLER://" + loopback(n.controller)}
	advertised := []string{"CLIENT://" + loopback(n.advertised), "INTERNAL://" + loopback(n.internal)}
	protocols := []string{"CLIENT:PLAINTEXT", "INTERNAL:PLAINTEXT", "CONTROLLER:PLAINTEXT"}
	var lines []string
	set := func(name, value string) { lines = append(lines, name+"="+value) }
	if c.Secure {
		keystore, err := c.ca.issue(n.dir)
		if err != nil {
			return "", fmt.Errorf("certificate for node %d: %w", n.id-1, err)
		}
		listeners = append(listeners, "SECURE://"+loopback(n.secure))
		advertised = append(advertised, "SECURE://"+loopback(n.secure))
		protocols = append(protocols, "SECURE:SASL_SSL")
		const prefix = "listener.name.secure."
		set(prefix+"ssl.keystore.type", "PEM")
		set(prefix+"ssl.keystore.location", keystore)
		set(prefix+"sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512")
		set(prefix+"plain.sasl.jaas.config",
			fmt.Sprintf("org.apache.kafka.common.security.plain.PlainLoginModule required user_%s=%q;", Username,
				Password))
		// PLAIN has its account in the configuration. Those of SCRAM are in the data folder.
		for _, mechanism := range []string{"scram-sha-256", "scram-sha-512"} {
			set(prefix+mechanism+".sasl.jaas.config",
				"org.apache.kafka.common.security.scram.ScramLoginModule required;")
		}
	}
	if c.Authorize {
		set("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer")
		set("super.users", "User:ANONYMOUS") // of listeners without authentication
	}
	set("process.roles", "broker,controller")
	set("node.id", strconv.Itoa(n.id))
	set("controller.quorum.voters", strings.Join(voters, ","))
	set("controller.listener.names", "CONTROLLER")
	set("inter.broker.listener.name", "INTERNAL")
	set("listeners", strings.Join(listeners, ","))
	set("advertised.listeners", strings.Join(advertised, ","))
	set("listener.security.protocol.map", strings.Join(protocols, ","))
	set("log.dirs", n.data())
	set("auto.create.topics.enable", "false")
	for _, topic := range []string{"offsets.topic", "transaction.state.log", "share.coordinator.state.topic"} {
		set(topic+".replication.factor", replicas)
		set(topic+".num.partitions", "4") // creating the default, 50, takes seconds
	}
	set("default.replication.factor", replicas)
	set("min.insync.replicas", insync)
	set("transaction.state.log.min.isr", insync)
	set("share.coordinator.state.topic.min.isr", insync)
	// By default, a new group waits 3 s for further members.
	set("group.initial.rebalance.delay.ms", "0")
	// The time until a killed broker is considered dead. The default, 9 s, would slow the tests.
	set("broker.session.timeout.ms", "3000")
	set("broker.heartbeat.interval.ms", "500")
	set("log.cleaner.dedupe.buffer.size", "2097152")
	return strings.Join(lines, "\n") + "\n", nil
}
