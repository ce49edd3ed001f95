package app

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"time"

	sdk "github.com/open-feature/go-sdk/openfeature"
	"github.com/open-feature/go-sdk/openfeature/isolated"

	"github.com/millrace/millrace/flags"
	"github.com/millrace/millrace/flags/openfeature"
	flagserving "github.com/millrace/millrace/flags/serving"
	"github.com/millrace/millrace/gen/millrace/flags/v1/flagsv1connect"
	"github.com/millrace/millrace/internal/rpc"
)

// The flags that this program reads.
const (
	// maintenanceFlag switches the maintenance of tables. The targeting key is the table's name.
	maintenanceFlag = "lake.maintenance"
	// logSampleFlag is the share of served vectors that are logged. It has no targeting key.
	logSampleFlag = "features.log_sample"
)

// declaredFlags describes the flags that this program reads.
func (p *App) declaredFlags() []flags.Declaration {
	return []flags.Declaration{{
		Name: maintenanceFlag, Type: flags.Bool, Default: json.RawMessage("true"),
		Description: "Maintenance of tables by the role lake. Key of a rollout: the table",
	}, {
		Name: logSampleFlag, Type: flags.Float,
		Default:     json.RawMessage(strconv.FormatFloat(p.cfg.Features.Online.LogSample, 'f', -1, 64)),
		Description: "Share of served vectors that are logged, from 0 to 1",
	}}
}

// switches are the flags of this process.
type switches struct {
	reader *flags.Reader
	api    *sdk.EvaluationAPI
	client *sdk.Client
	writer *flags.Writer // nil without the role admin
}

// flagsTimeout is how long the start waits for the flags. It continues without them, and the defaults
// apply until they are read.
const flagsTimeout = 10 * time.Second

// startFlags follows the flags.
func (p *App) startFlags(ctx context.Context) error {
	log := p.log.With("part", "flags")
	reader := flags.NewReader(p.kafka, log)
	p.background("flags", reader.Run)
	// An API of its own: a process, such as a test, may run several Apps.
	api := isolated.NewAPI()
	p.onStop(func() error { return api.Shutdown(context.WithoutCancel(ctx)) })
	short, cancel := context.WithTimeout(ctx, flagsTimeout)
	defer cancel()
	if err := api.SetProviderAndWait(short, openfeature.NewProvider(reader)); err != nil {
		if ctx.Err() != nil {
			return err
		}
		log.Warn("the flags cannot be read yet; their defaults apply", "error", err)
	}
	p.flags = &switches{reader: reader, api: api, client: api.NewClient()}
	p.metrics.Gauge("millrace_flags_stale", "1 while the flags are not those of the brokers.", func() float64 {
		if reader.State() == flags.Current {
			return 0
		}
		return 1
	})
	p.metrics.Count("millrace_flags_invalid_records_total", "Records of the topic of flags that were skipped.",
		func() float64 { return float64(reader.Invalid()) })
	if !p.has(Admin) {
		return nil
	}
	writer, err := flags.NewWriter(flags.WriterConfig{Kafka: p.kafka, TransactionalID: "millrace-flags" + p.boot,
		Reader: reader, Declared: p.declaredFlags(), Now: time.Now})
	if err != nil {
		return err
	}
	p.onStop(func() error {
		writer.Close()
		return nil
	})
	p.flags.writer = writer
	return nil
}

// follow calls fn now and after each change of flags. It is for values that are read too often to
// evaluate a flag each time.
func (s *switches) follow(fn func()) {
	// One call at a time, so that an earlier one does not overwrite what a later one has read.
	var mu sync.Mutex
	update := func(sdk.EventDetails) {
		mu.Lock()
		defer mu.Unlock()
		fn()
	}
	s.api.AddHandler(sdk.ProviderConfigChange, &update)
	update(sdk.EventDetails{})
}

// logSample returns the share of served vectors that are to be logged.
func (p *App) logSample() float64 {
	return p.flags.client.Float(context.Background(), logSampleFlag, p.cfg.Features.Online.LogSample,
		sdk.NewTargetlessEvaluationContext(nil))
}

// maintains reports whether a table is to be maintained now.
func (p *App) maintains(table string) bool {
	return p.flags.client.Boolean(context.Background(), maintenanceFlag, true, sdk.NewEvaluationContext(table, nil))
}

// flagService returns the service of flags, and where to mount it.
func (p *App) flagService() (string, http.Handler) {
	return flagsv1connect.NewFlagServiceHandler(flagserving.New(p.flags.reader, p.flags.writer, p.declaredFlags()),
		rpc.OperationOptions(p.log)...)
}
