// Package kafka starts a private Apache Kafka for tests, with one node or three, on loopback and in
// a temporary folder. Nodes can be killed, frozen and restarted. A proxy can be put in front of
// them. A second listener can require TLS and a password.
//
// Cluster has the life cycle, failures of nodes (kafka.go), and questions about the cluster's state
// (admin.go). node is one process with its configuration (node.go). The functions in topics.go
// change topics on any broker, embedded or not.
//
// Every node is both broker and controller (KRaft), with up to four listeners: CLIENT for tests,
// INTERNAL between brokers, CONTROLLER for the quorum, SECURE with TLS and SASL. The listeners
// between nodes do not pass the proxy, so a test that breaks the proxy breaks only the clients'
// connections.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/internal/kafka/security"
	"github.com/millrace/millrace/test/servers/process"
)

// Cluster is one Kafka for a test binary. The zero Cluster is a single node with a plain listener.
// It starts with the first test that needs it, and TestMain stops it. Nodes are counted from 0.
// Methods are safe for concurrent use.
type Cluster struct {
	// Nodes is the number of nodes, 1 or 3; 0 means 1. Each of three is a broker and a voter.
	// Topics have three replicas by default, and two of them must have a record, so the cluster
	// works without any one node.
	Nodes int
	// Secure adds to each node a listener with TLS and a password: PLAIN, SCRAM-SHA-256 or
	// SCRAM-SHA-512.
	Secure bool
	// Authorize denies the users of the secure listener everything that Allow has not allowed. The
	// plain listener may do everything.
	Authorize bool
	// Advertise is called with the port of a node's plain listener before the node starts. It
	// returns the loopback port at which clients reach the node, which is that of a proxy.
	// Connections between brokers do not use it.
	Advertise func(node, port int) (int, error)

	// Set by the first start, and then unchanged. A node's own lock guards its process.
	once  sync.Once
	err   error
	dir   string
	nodes []*node
	ca    *authority
}

// The credentials of the secure listener. The installer wrote them to the data folder.
const (
	Username = "millrace"
	Password = "secret-of-the-tests"
)

// Brokers starts the cluster if necessary, and returns its address, "host:port,host:port". If Kafka
// is not installed, the test is skipped or fails: see process.SkipOrFail.
func (c *Cluster) Brokers(tb testing.TB) string {
	tb.Helper()
	brokers, err := c.Start()
	if err != nil {
		process.SkipOrFail(tb, "Apache Kafka", err)
	}
	return brokers
}

// Secured is Brokers for the secure listener. It also returns the credentials for a mechanism.
func (c *Cluster) Secured(tb testing.TB, mechanism string) (brokers string, with security.Config) {
	tb.Helper()
	c.Brokers(tb)
	if !c.Secure {
		tb.Fatal("this cluster has no secure listener: set Secure")
	}
	return c.SecureAccess(mechanism)
}

// SecureAccess is Secured for a cluster that has been started.
func (c *Cluster) SecureAccess(mechanism string) (brokers string, with security.Config) {
	addrs := make([]string, len(c.nodes))
	for i, n := range c.nodes {
		addrs[i] = loopback(n.secure)
	}
	return strings.Join(addrs, ","), security.Config{TLS: true, CAFile: c.ca.file, Mechanism: mechanism,
		Username: Username, Password: Password}
}

// Start starts the cluster once, and returns its address.
func (c *Cluster) Start() (brokers string, err error) {
	c.once.Do(func() {
		if c.err = c.start(); c.err != nil {
			c.err = errors.Join(c.err, c.Stop())
		}
	})
	addrs := make([]string, len(c.nodes))
	for i, n := range c.nodes {
		addrs[i] = loopback(n.advertised)
	}
	return strings.Join(addrs, ","), c.err
}

// Stop kills the nodes and removes their data. Call it after the last test.
func (c *Cluster) Stop() error {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.kill())
	}
	if c.dir != "" {
		errs = append(errs, os.RemoveAll(c.dir))
	}
	return errors.Join(errs...)
}

// KillNode kills a node with SIGKILL. It may be called for a node that does not run.
func (c *Cluster) KillNode(i int) error { return c.nodes[i].kill() }

// PauseNode freezes a node: its connections remain open, but nothing answers. The others consider
// it dead after broker.session.timeout.ms: see node.properties.
func (c *Cluster) PauseNode(i int) error { return c.nodes[i].signal(syscall.SIGSTOP) }

// ResumeNode resumes a frozen node.
func (c *Cluster) ResumeNode(i int) error { return c.nodes[i].signal(syscall.SIGCONT) }

// RestartNode starts a node again on its data and ports, and kills it first if it runs. It returns
// once the cluster has accepted the node.
func (c *Cluster) RestartNode(ctx context.Context, i int) error {
	if err := c.nodes[i].kill(); err != nil {
		return err
	}
	return c.nodes[i].start(ctx)
}

// ResidentMB returns the current memory of a node, in MB.
func (c *Cluster) ResidentMB(i int) (int, error) { return c.nodes[i].residentMB() }

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// start chooses all ports first, because each node's configuration names the controllers of all
// nodes. Then it formats and starts the nodes concurrently: none is ready before a majority of them
// runs.
func (c *Cluster) start() error {
	if c.Nodes == 0 {
		c.Nodes = 1
	}
	java, err := exec.LookPath("java")
	if err != nil {
		return fmt.Errorf("java 17: %w", process.ErrMissing)
	}
	installed, err := process.InstallDir("kafka")
	if err != nil {
		return err
	}
	if c.dir, err = os.MkdirTemp("", "millrace-kafka-"); err != nil {
		return err
	}
	if c.Secure {
		if c.ca, err = newAuthority(c.dir); err != nil {
			return fmt.Errorf("create a certificate authority: %w", err)
		}
	}
	// The ports client, internal, controller and secure of each node. The last is unused without
	// Secure.
	const perNode = 4
	ports, err := process.FreePorts(perNode * c.Nodes)
	if err != nil {
		return err
	}
	for own := range slices.Chunk(ports, perNode) {
		n := &node{
			id: len(c.nodes) + 1, dir: filepath.Join(c.dir,
				strconv.Itoa(len(c.nodes)+1)), java: java, installed: installed,
			client: own[0], advertised: own[0], internal: own[1], controller: own[2], secure: own[3],
		}
		if c.Advertise != nil {
			if n.advertised, err = c.Advertise(n.id-1, n.client); err != nil {
				return fmt.Errorf("advertise node %d: %w", n.id-1, err)
			}
		}
		c.nodes = append(c.nodes, n)
	}
	var starting errgroup.Group
	for _, n := range c.nodes {
		starting.Go(func() error {
			if err := n.format(c); err != nil {
				return err
			}
			return n.start(context.Background())
		})
	}
	if err := starting.Wait(); err != nil {
		return err
	}
	return c.awaitMembers()
}

// membersTimeout bounds awaitMembers, on a busy machine.
const membersTimeout = 3 * time.Minute

// awaitMembers returns once every node knows all the others. A node is ready as soon as it knows
// itself. A topic that is created before the others have registered would have too few replicas.
func (c *Cluster) awaitMembers() error {
	ctx, cancel := context.WithTimeout(context.Background(), membersTimeout)
	defer cancel()
	for _, n := range c.nodes {
		for {
			known, err := n.brokers(ctx)
			if err == nil && known == c.Nodes {
				break
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("node %d knows %d of %d nodes after %v: %w", n.id-1, known, c.Nodes,
					membersTimeout, errors.Join(err, ctx.Err()))
			}
		}
	}
	return nil
}
