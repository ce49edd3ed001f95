package app

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/ingest/tracking"
	"github.com/millrace/millrace/internal/client"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/internal/server"
	"github.com/millrace/millrace/internal/telemetry"
	"github.com/millrace/millrace/processes/identification"
	"github.com/millrace/millrace/streams"
)

// Process is a module that turns events into commands. It runs in processes with the role views,
// which share the partitions of its topics.
type Process struct {
	Name string
	// Open returns nil if the process cannot reach the commands it would send.
	Open func(context.Context, *App) (OpenProcess, error)
}

// OpenProcess is a process that can run.
type OpenProcess interface {
	Runtime(kafka.Config, *registry.Decoder) *streams.Runtime
	// Progress returns how many commands were accepted since the start, and how many events are to
	// be read.
	Progress() (commands, lag uint64)
}

// process is a process that this App runs.
type process struct {
	Process
	OpenProcess
	runtime *streams.Runtime
}

// startProcesses starts the processes.
func (p *App) startProcesses(ctx context.Context) error {
	for _, m := range p.modules.Processes {
		opened, err := m.Open(ctx, p)
		if err != nil {
			return fmt.Errorf("process %s: %w", m.Name, err)
		}
		if opened == nil {
			continue
		}
		runtime := opened.Runtime(p.kafka, p.decoder)
		runtime.Trace(p.tracer)
		p.measureRuntime("process "+m.Name, runtime, func() bool { return true })
		p.processes = append(p.processes, process{m, opened, runtime})
		p.background("process "+m.Name, runtime.Run)
	}
	p.measureQueues()
	return nil
}

// processSinks returns what status shows of the processes.
func (p *App) processSinks() []telemetry.Sink {
	var all []telemetry.Sink
	for _, running := range p.processes {
		accepted, lag := running.Progress()
		all = append(all, telemetry.Sink{Name: "process " + running.Name, Unit: "commands", Count: accepted, Lag: lag,
			Reads: readings(running.runtime.Progress())})
	}
	return all
}

// mounted is the handler of a service and its path.
type mounted struct {
	path    string
	handler http.Handler
}

// commandServices returns the handlers of the services, which are made once. Callers outside and
// processes use the same ones.
func (p *App) commandServices() []mounted {
	if p.services != nil {
		return p.services
	}
	opts := []commands.Option{commands.WithLogger(p.log), commands.WithInterceptors(p.measured(server.Command)...),
		commands.WithClockLeeway(p.cfg.Commands.ClockLeeway), commands.WithCurrencies(p.cfg.Commands.Currencies)}
	for _, m := range p.modules.Services {
		path, h := m.Handler(p.stores[m.Aggregate.Name], opts...)
		p.services = append(p.services, mounted{path, h})
	}
	return p.services
}

// commandRetries is how long a command of a process is retried before the event is delivered again.
const commandRetries = 10 * time.Second

// sender returns a client of the command API: of this process if it has the role commands, and
// otherwise of the configured one. It is nil if there is none.
func (p *App) sender(c config.Identify) (*client.Client, error) {
	if p.has(Commands) {
		mux := http.NewServeMux()
		for _, s := range p.commandServices() {
			mux.Handle(s.path, s.handler)
		}
		return client.InProcess(mux, commandRetries), nil
	}
	if c.Commands == "" {
		return nil, nil
	}
	token, err := c.Token.Reveal("")
	if err != nil {
		return nil, fmt.Errorf("customer360.identify.token: %w", err)
	}
	trust, err := config.ClientTLS{Enabled: true, CA: c.CA}.Client()
	if err != nil {
		return nil, fmt.Errorf("customer360.identify.ca: %w", err)
	}
	sender := client.New(c.Commands, commandRetries, client.WithToken(token), client.WithTLS(trust))
	p.onStop(func() error {
		sender.Close()
		return nil
	})
	return sender, nil
}

// openIdentification opens the process that links the identifiers of identify events. The tracking
// plan says which traits are identifiers.
func openIdentification(ctx context.Context, p *App) (OpenProcess, error) {
	sender, err := p.sender(p.cfg.Customer360.Identify)
	if err != nil {
		return nil, err
	}
	if sender == nil {
		p.log.Info("identify events are not linked to customers: customer360.identify.commands is empty, " +
			"and this process does not have the role commands")
		return nil, nil
	}
	plan, err := p.trackingPlan()
	if err != nil {
		return nil, err
	}
	positions, err := p.viewSinks.Redis(ctx)
	if err != nil {
		return nil, err
	}
	links := identification.New(identification.Config{Redis: positions, Commands: sender, Traits: plan.Identifiers(),
		Logger: p.log})
	p.metrics.Counts("millrace_identification_outcomes_total",
		"Outcomes of identify events: links that were accepted (linked) and that the service identity refused "+
			"(refused), events of other users than customers (not_customer), and traits that are not an identifier "+
			"of their kind (unusable_trait).",
		[]string{"outcome"}, func(set func(float64, ...string)) {
			s := links.Stats()
			set(float64(s.Linked), "linked")
			set(float64(s.Refused), "refused")
			set(float64(s.NotCustomer), "not_customer")
			set(float64(s.Unusable), "unusable_trait")
		})
	return links, nil
}

// trackingPlan returns the configured tracking plan, or nil.
func (p *App) trackingPlan() (*tracking.Plan, error) {
	if p.cfg.Tracking.Plan == "" {
		return nil, nil
	}
	text, err := os.ReadFile(p.cfg.Tracking.Plan)
	var plan *tracking.Plan
	if err == nil {
		plan, err = tracking.ParsePlan(text)
	}
	if err != nil {
		return nil, fmt.Errorf("tracking.plan: %s: %w", p.cfg.Tracking.Plan, err)
	}
	return plan, nil
}
