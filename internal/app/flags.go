package app

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	sdk "github.com/open-feature/go-sdk/openfeature"
	"github.com/open-feature/go-sdk/openfeature/isolated"

	"github.com/millrace/millrace/flags"
	"github.com/millrace/millrace/flags/openfeature"
	flagserving "github.com/millrace/millrace/flags/serving"
	"github.com/millrace/millrace/gen/millrace/flags/v1/flagsv1connect"
	"github.com/millrace/millrace/internal/rpc"
)

// maintenanceFlag switches the maintenance of tables. The targeting key is the table's name.
const maintenanceFlag = "lake.maintenance"

// declaredFlags are the flags that this program reads.
func declaredFlags() []flags.Declaration {
	return []flags.Declaration{{
		Name: maintenanceFlag, Type: flags.Bool, Default: json.RawMessage("true"),
		Description: "Maintenance of tables by the role lake. Key of a rollout: the table",
	}}
}

// switches are the flags of this process.
type switches struct {
	reader *flags.Reader
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
	p.flags = &switches{reader: reader, client: api.NewClient()}
	p.metrics.Gauge("millrace_flags_stale", "1 while the flags are not those of the brokers.", func() float64 {
		if reader.State() == flags.Current {
			return 0
		}
		return 1
	})
	p.metrics.Gauge("millrace_flags_invalid", "Records of the topic of flags that were skipped, since the start.",
		func() float64 { return float64(reader.Invalid()) })
	if !p.has(Admin) {
		return nil
	}
	writer, err := flags.NewWriter(flags.WriterConfig{Kafka: p.kafka, TransactionalID: "millrace-flags" + p.boot,
		Reader: reader, Declared: declaredFlags(), Now: time.Now})
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

// maintains reports whether a table is to be maintained now.
func (p *App) maintains(table string) bool {
	return p.flags.client.Boolean(context.Background(), maintenanceFlag, true, sdk.NewEvaluationContext(table, nil))
}

// flagService returns the service of flags, and where to mount it.
func (p *App) flagService() (string, http.Handler) {
	return flagsv1connect.NewFlagServiceHandler(flagserving.New(p.flags.reader, p.flags.writer, declaredFlags()),
		rpc.OperationOptions(p.log)...)
}
