package app

import (
	"context"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/internal/server"
	"github.com/millrace/millrace/internal/tracing"
)

// startTraces starts to record traces, if a receiver is configured.
func (p *App) startTraces(ctx context.Context) error {
	c := p.cfg.Telemetry.Traces
	if c.Endpoint == "" {
		return nil
	}
	tracer, err := tracing.New(ctx, tracing.Config{Endpoint: c.Endpoint, Ratio: c.Ratio, Slow: c.Slow, Logger: p.log})
	if err != nil {
		return err
	}
	p.tracer = tracer
	p.onStop(tracer.Close)
	p.metrics.Gauge(
		"millrace_trace_spans_buffered",
		"Spans of traces that are not sampled, kept in case their trace fails.",
		func() float64 { return float64(tracer.Stats().Buffered) },
	)
	p.metrics.Counts("millrace_trace_spans_total", "Spans by what became of them: sent, failed (the receiver did not "+
		"take them), dropped (the queue was full), left (over the limit of a batch or a trace).",
		[]string{"result"}, func(set func(value float64, labels ...string)) {
			s := tracer.Stats()
			set(float64(s.Sent), "sent")
			set(float64(s.Failed), "failed")
			set(float64(s.Dropped), "dropped")
			set(float64(s.Left), "left")
		})
	return nil
}

// measured returns the interceptors that observe the calls of a class: the span of a call first, so that
// it covers the rest.
func (p *App) measured(class server.Class) []connect.Interceptor {
	measure := p.metrics.Interceptor(class.String())
	if p.tracer == nil {
		return []connect.Interceptor{measure}
	}
	return []connect.Interceptor{p.tracer.Interceptor(), measure}
}
