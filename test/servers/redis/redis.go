// Package redis starts Redis for tests, from Debian's package: one server, or a cluster of masters
// without replicas, with or without TLS and passwords. Everything ends with the test process, even
// if that is killed.
//
// Tests lose data on purpose with Kill, Restart and FlushAll, because Millrace must notice that a
// view has lost its data. So the servers never write to disk on their own. Save determines what a
// Restart finds.
package redis

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/test/servers/certs"
	"github.com/millrace/millrace/test/servers/process"
)

// Servers is one Redis or a cluster. The zero value is one server without access control. It starts
// with the first test that needs it, and TestMain stops it.
type Servers struct {
	Nodes  int  // number of masters of a cluster, at least 3; 0 or 1 means a single server
	Secure bool // TLS only, with a login for every user; the default user is off

	once sync.Once
	// err is the result of the first start.
	err error
	dir string
	// certs are written in any case, but used only with Secure.
	certs certs.Files
	nodes []*node
}

// With Secure, User has exactly the rights of a view, as in deploy/redis. Reader may only read.
const (
	// The password has characters that a URL or a query string would change, so a client that does
	// not escape it fails.
	User     = "views"
	Reader   = "query"
	Password = "pass word+of%views"

	// Rules of Redis' access control: keys, then commands. A client of a cluster needs the three
	// commands of "cluster" to find the nodes. INFO is allowed because -@dangerous excludes it.
	viewRules   = "resetchannels ~millrace:* -@all +@read +@write +@scripting +@connection -@dangerous +cluster|slots +cluster|shards +cluster|nodes +info"
	readerRules = "resetchannels %R~millrace:* -@all +@read +@connection -@dangerous +cluster|slots +cluster|shards +cluster|nodes +info"

	operator = "operator" // the user of Do
)

// node is one server. Its folder has its configuration, its log, its dump and, in a cluster, what
// it knows of the other nodes.
type node struct {
	servers *Servers
	number  int
	dir     string
	port    int
	process *process.Process
}

// Addr starts the servers if necessary, and returns their address: "host:port", or that of all
// nodes separated by commas. If Redis is not installed, the test is skipped or fails: see
// process.SkipOrFail.
func (s *Servers) Addr(tb testing.TB) string {
	tb.Helper()
	addr, err := s.Start()
	if err != nil {
		process.SkipOrFail(tb, "Redis", err)
	}
	return addr
}

// Start starts the servers once, and returns their address.
func (s *Servers) Start() (addr string, err error) {
	s.once.Do(func() {
		if s.err = s.start(); s.err != nil {
			s.err = errors.Join(s.err, s.Stop())
		}
	})
	var addrs []string
	for _, n := range s.nodes {
		addrs = append(addrs, n.addr())
	}
	return strings.Join(addrs, ","), s.err
}

// Stop ends the servers and removes their data.
func (s *Servers) Stop() error {
	var err error
	for i, n := range s.nodes {
		if n.process != nil {
			err = errors.Join(err, s.Kill(i)) // there is no data worth a slower end
		}
	}
	if s.dir == "" {
		return err
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// Kill kills one node with SIGKILL. Restart starts it again. Data since the last Save is lost.
func (s *Servers) Kill(node int) error { return s.nodes[node].process.Kill() }

// Restart starts a killed node again, with the data of its last Save or with none. A cluster's node
// keeps its slots in either case, because they are in nodes.conf. It returns once all nodes
// consider the cluster complete.
func (s *Servers) Restart(node int, withData bool) error {
	n := s.nodes[node]
	if !withData {
		if err := os.Remove(filepath.Join(n.dir, "dump.rdb")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return errors.Join(n.start(), s.awaitCluster())
}

// Save makes a node write its data to disk, and returns when that is done. With Redis' defaults,
// that happens every few minutes.
func (s *Servers) Save(node int) error { return s.must(node, "SAVE") }

// FlushAll deletes all data of a node.
func (s *Servers) FlushAll(node int) error { return s.must(node, "FLUSHALL") }

// Pause freezes a node: connections remain open, but nothing answers.
func (s *Servers) Pause(node int) error { return s.nodes[node].process.Pause() }

// Resume resumes a paused node.
func (s *Servers) Resume(node int) error { return s.nodes[node].process.Resume() }

// ResidentMB returns the memory of a node, in MB.
func (s *Servers) ResidentMB(node int) (int, error) { return s.nodes[node].process.ResidentMB() }

// CA returns the file of the authority that signed the servers' certificates.
func (s *Servers) CA() string { return s.certs.CA }

// Do sends a command to a node, and returns the answer as redis-cli prints it. With Secure, the
// user is one that may do everything. It uses redis-cli, so that the state of Redis is checked
// without Millrace's own client.
func (s *Servers) Do(ctx context.Context, node int, command ...string) (string, error) {
	n := s.nodes[node]
	args := []string{"-e", "-h", "127.0.0.1", "-p", strconv.Itoa(n.port)}
	if s.Secure {
		args = append(args, "--tls", "--cacert", s.certs.CA, "--user", operator)
	}
	cli := exec.CommandContext(ctx, "redis-cli", append(args, command...)...) //nolint:gosec // a test's own server
	if s.Secure {
		// In the environment, which other users cannot read, unlike the arguments.
		cli.Env = append(os.Environ(), "REDISCLI_AUTH="+Password)
	}
	out, err := cli.CombinedOutput()
	answer := strings.TrimSpace(string(out))
	if err != nil {
		return "", fmt.Errorf("redis-cli %s: %w: %s", strings.Join(command, " "), err, answer)
	}
	return answer, nil
}

// must is Do without the answer.
func (s *Servers) must(node int, command ...string) error {
	_, err := s.Do(context.Background(), node, command...)
	return err
}

const (
	// slots is Redis' number of hash slots. A key belongs to one of them, and each to a node.
	slots        = 16384
	startTimeout = time.Minute
	pollInterval = 20 * time.Millisecond
)

// start starts the nodes. For a cluster, it then does what `redis-cli --cluster create` does, but
// without its pauses:
//
//  1. Each node gets a contiguous range of the slots, and an epoch of its own, so that no two nodes
//     claim the same configuration.
//  2. The first node meets each of the others. They learn of each other by gossip.
func (s *Servers) start() (err error) {
	for _, program := range []string{"redis-server", "redis-cli"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s: %w", program, process.ErrMissing)
		}
	}
	if s.dir, err = os.MkdirTemp("", "millrace-redis-"); err != nil {
		return err
	}
	if s.certs, err = certs.Write(s.dir); err != nil {
		return err
	}
	size := max(1, s.Nodes)
	ports, err := process.FreePorts(2 * size) // the second half is for the cluster's own protocol
	if err != nil {
		return err
	}
	for i := range size {
		n := &node{servers: s, number: i, dir: filepath.Join(s.dir, strconv.Itoa(i)), port: ports[2*i]}
		s.nodes = append(s.nodes, n)
		if err := n.configure(ports[2*i+1]); err != nil {
			return err
		}
		if err := n.start(); err != nil {
			return err
		}
	}
	if size == 1 {
		return nil
	}
	for i := range size {
		from, to := i*slots/size, (i+1)*slots/size-1
		if err := s.must(i, "CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(from), strconv.Itoa(to)); err != nil {
			return err
		}
		if err := s.must(i, "CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1)); err != nil {
			return err
		}
	}
	for i := 1; i < size; i++ {
		if err := s.must(0, "CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(s.nodes[i].port),
			strconv.Itoa(ports[2*i+1])); err != nil {
			return err
		}
	}
	return s.awaitCluster()
}

// awaitCluster waits until every node knows the location of every slot. Before that, nodes refuse
// commands with CLUSTERDOWN.
func (s *Servers) awaitCluster() error {
	if len(s.nodes) == 1 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for i := 0; i < len(s.nodes); {
		info, err := s.Do(ctx, i, "CLUSTER", "INFO")
		if err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info,
			fmt.Sprint("cluster_size:", len(s.nodes))) {
			i++
			continue
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("node %d's cluster is not ready: %w\n%s", i, errors.Join(ctx.Err(), err), info)
		}
	}
	return nil
}

func (n *node) addr() string { return fmt.Sprint("127.0.0.1:", n.port) }

// configure writes the node's settings. bus is the port on which the nodes of a cluster talk to
// each other. Passwords are in a file, because every user can read the arguments of a process.
//
// A node that does not answer for 2 s is considered dead, instead of 15 s by default, to keep tests
// short.
func (n *node) configure(bus int) error {
	s := n.servers
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		return err
	}
	lines := []string{"bind 127.0.0.1", "dir " + n.dir, `save ""`, "appendonly no", "protected-mode yes"}
	if s.Secure {
		lines = append(lines, "port 0", fmt.Sprint("tls-port ", n.port), "tls-auth-clients no",
			"tls-ca-cert-file "+s.certs.CA, "tls-cert-file "+s.certs.Cert, "tls-key-file "+s.certs.Key,
			"user default off", fmt.Sprintf(`user %s on ">%s" ~* &* +@all`, operator, Password),
			fmt.Sprintf(`user %s on ">%s" %s`, User, Password, viewRules), fmt.Sprintf(`user %s on ">%s" %s`,
				Reader, Password, readerRules))
	} else {
		lines = append(lines, fmt.Sprint("port ", n.port))
	}
	if s.Nodes > 1 {
		lines = append(lines, "cluster-enabled yes", "cluster-config-file nodes.conf", fmt.Sprint("cluster-port ", bus),
			"cluster-node-timeout 2000", "cluster-allow-replica-migration no")
		if s.Secure {
			lines = append(lines, "tls-cluster yes")
		}
	}
	return os.WriteFile(n.file(), []byte(strings.Join(lines, "\n")+"\n"), 0o600)
}

func (n *node) file() string { return filepath.Join(n.dir, "redis.conf") }

// start runs the server on its existing folder, and returns once it has loaded its data.
func (n *node) start() (err error) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return fmt.Errorf("redis-server: %w", process.ErrMissing)
	}
	n.process, err = process.Start(context.Background(), process.Command{
		Name: "Redis", Path: program, Args: []string{n.file()}, Dir: n.dir, Scratch: n.servers.dir,
		Ready: func(ctx context.Context) error {
			answer, err := n.servers.Do(ctx, n.number, "PING")
			if err == nil && answer != "PONG" { // it is loading its data
				err = errors.New(answer)
			}
			return err
		},
	})
	return err
}
