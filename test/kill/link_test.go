package kill

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// link is the network between the roles and one server. It is a TCP proxy that can delay data,
// reset connections, or drop the data of one direction.
type link struct{ proxy *toxiproxy.Proxy }

// newLink puts a link in front of a server on loopback.
func newLink(port int) (*link, error) {
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	l := &link{toxiproxy.NewProxy(server, "", "127.0.0.1:0", loopback(port))}
	return l, l.proxy.Start()
}

// addr returns the address at which clients reach the server through the link.
func (l *link) addr() string { return l.proxy.Listen }

func (l *link) port() int {
	_, port, _ := net.SplitHostPort(l.addr())
	n, _ := strconv.Atoi(port)
	return n
}

// toxic is a defect of a link, in the terms of Toxiproxy. Upstream is the direction from the roles
// to the server.
type toxic struct {
	Type       string           `json:"type"`
	Stream     string           `json:"stream"`
	Attributes map[string]int64 `json:"attributes"`
}

func (l *link) addToxic(t toxic) error {
	text, err := json.Marshal(t)
	if err != nil {
		return err
	}
	_, err = l.proxy.Toxics.AddToxicJson(strings.NewReader(string(text)))
	return err
}

func (l *link) removeToxics(ctx context.Context) { l.proxy.Toxics.ResetToxics(ctx) }

// addToxic adds a toxic to all links to a server.
func (s *system) addToxic(server string, t toxic) error {
	if len(s.links[server]) == 0 {
		return fmt.Errorf("no link to %q", server)
	}
	for _, l := range s.links[server] {
		if err := l.addToxic(t); err != nil {
			return err
		}
	}
	return nil
}

// removeToxics repairs all links to a server.
func (s *system) removeToxics(ctx context.Context, server string) {
	for _, l := range s.links[server] {
		l.removeToxics(ctx)
	}
}
