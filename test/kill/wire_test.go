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

// wire is the connection between the roles and one server: a proxy that can be made slow, cut, or
// made to swallow one direction.
type wire struct{ proxy *toxiproxy.Proxy }

// newWire puts a wire in front of a server on loopback.
func newWire(port int) (*wire, error) {
	w := &wire{toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), "", "127.0.0.1:0", local(port))}
	return w, w.proxy.Start()
}

// addr returns the address at which clients reach the server through the wire.
func (w *wire) addr() string { return w.proxy.Listen }

func (w *wire) port() int {
	_, port, _ := net.SplitHostPort(w.addr())
	n, _ := strconv.Atoi(port)
	return n
}

// toxic is a defect of a wire. Upstream is the direction from the roles to the server.
type toxic struct {
	Type       string           `json:"type"`
	Stream     string           `json:"stream"`
	Attributes map[string]int64 `json:"attributes"`
}

func (w *wire) poison(t toxic) error {
	text, err := json.Marshal(t)
	if err != nil {
		return err
	}
	_, err = w.proxy.Toxics.AddToxicJson(strings.NewReader(string(text)))
	return err
}

func (w *wire) heal(ctx context.Context) { w.proxy.Toxics.ResetToxics(ctx) }

// poison adds a toxic to the wires of a server.
func (s *system) poison(server string, t toxic) error {
	if len(s.wires[server]) == 0 {
		return fmt.Errorf("there is no wire to %q", server)
	}
	for _, w := range s.wires[server] {
		if err := w.poison(t); err != nil {
			return err
		}
	}
	return nil
}

func (s *system) heal(ctx context.Context, server string) {
	for _, w := range s.wires[server] {
		w.heal(ctx)
	}
}
