package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/internal/app"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/external"
)

// landing holds the flags of "lake land". Exactly one of proto, registry and json is set: it is the
// format of the values, and decides how the columns are found.
type landing struct {
	topic, table string
	proto        string   // FILE:MESSAGE
	folders      []string // of imported .proto files
	registry     string   // URL
	subject      external.Subject
	json, times  bool
	headers      bool
	landers      int
	until        bool // end when the table has what is on the topic now
}

// newLakeLand returns the command lake land.
//
// Any topic can be landed, so the table is not one of the declared ones. The names of the columns
// and the handling of values are those of package external.
func newLakeLand(a *cli) *cobra.Command {
	var l landing
	cmd := &cobra.Command{
		Use:   "land --topic TOPIC (--proto FILE:MESSAGE | --registry URL | --json)",
		Short: "Land any Kafka topic of Protobuf, Avro or JSON in a table of its own",
		Long: `Land a Kafka topic in an Iceberg table, whatever its producer: a column for each field, and the origin of each
row (_topic, _partition, _offset, _timestamp and _timestamp_raw, _key). Each record lands exactly once, even
if processes are killed. Run it in up to as many processes as the topic has partitions. A record that cannot
be a row becomes a dead letter (topic millrace.parked) with the reason, truncated if it is too large for that
topic. An error of the table ends the command, with the reason and the remedy. Temporary errors (brokers,
registry, object store or catalog unavailable) are retried.

One of three flags selects the format of the values:

  --proto FILE:MESSAGE  Protobuf messages. FILE is a .proto file, or a descriptor set of "buf build -o
                        FILE.binpb". Values may be plain, or framed for a schema registry. A new field becomes
                        a column at the next start.
  --registry URL        Avro, Protobuf or JSON framed for a Confluent-compatible schema registry. The columns
                        are those of the subject's newest schema. Values of schemas with more fields add
                        columns. A field that a value's schema lacks is null. A field with an Avro alias
                        renames the column of this name, and values of both schemas go there. A schema that
                        does not fit the table (a string became a number) makes its values dead letters. While
                        the registry is unavailable, values of known schemas land, and others wait. User and
                        password are registry.user and registry.password of the configuration.
  --json                JSON objects. Columns follow from the values, and new fields add columns: objects
                        become structs, arrays lists. Integers are long, other numbers double. A value that
                        does not fit its column is beside it: a fraction for a long x in x_double, anything
                        else for x in x_json. A field that cannot be a column is in _extra, as JSON. So no
                        value is lost or rejected for its type. Columns of an existing table keep their types.
                        A value fills them if it is exactly of the type: 9.99 in a decimal(10,2), "2024-01-01"
                        in a date, "10:00:00" in a time, a UUID in a uuid, base64 in a binary, an object in a
                        map from text (or integers) to values of its type. A field finds a column that differs
                        only in upper and lower case.

Times have the years 1 to 9999 and microseconds. Nanoseconds of a Protobuf Timestamp are truncated. Avro's
timestamp-nanos and Protobuf's Duration are integers of nanoseconds, Avro's times of day integers of
microseconds, and its local timestamps integers in their own unit. ClickHouse, and so "millrace sql", shows a
column of type time in whole seconds; other engines show its microseconds. A value outside of these years is
never changed into another time: its record becomes a dead letter, or, in JSON, the value remains text. If a
record's own timestamp is outside, _timestamp is null and _timestamp_raw has the number.

With --headers, the column _headers maps the names of headers to their bytes. If a name occurs twice, the last
value is there.

Brokers and lake come from the configuration: kafka.*, lake.*; see "millrace config".`,
		Example: `  export MILLRACE_KAFKA_BROKERS=broker:9092
  millrace lake land --topic clicks --proto clicks.proto:Click --table web.clicks
  millrace lake land --topic orders --registry http://registry:8081
  millrace lake land --topic orders --registry http://registry:8081 --subject shop.Order --message shop.Order
  millrace lake land --topic orders --registry http://registry:8081 --table shop.orders --headers
  millrace lake land --topic logs --json --json-times --until-end && millrace lake tables`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringVar(&l.topic, "topic", "", "topic to land")
	flags.StringVar(&l.proto, "proto", "", "FILE:MESSAGE of the topic's values")
	flags.StringArrayVarP(&l.folders, "proto-path", "I", nil, "folder of imported .proto files (repeatable)")
	flags.StringVar(&l.registry, "registry", "", "URL of the schema registry for the framing of the values")
	flags.StringVar(&l.subject.Name, "subject", "", "subject in the registry (default TOPIC-value)")
	flags.StringVar(&l.subject.Message, "message", "",
		"full name of the message in the registry's Protobuf file (default its first)")
	flags.BoolVar(&l.json, "json", false, "the values are JSON objects")
	flags.BoolVar(&l.times, "json-times", false, "convert JSON strings that are RFC 3339 times to timestamps")
	flags.BoolVar(&l.headers, "headers", false, "land the headers of the records in the column _headers")
	flags.StringVar(&l.table, "table", "", "TABLE or NAMESPACE.TABLE to land in (default foreign.TOPIC)")
	flags.IntVar(&l.landers, "landers", 1, "number of concurrent landers, each with its own partitions")
	flags.BoolVar(&l.until, "until-end", false, "exit once every record that is on the topic now is in the table")
	a.dataFlag(cmd, "data folder of the lake, unless the configuration sets a warehouse and a catalog")
	if err := cmd.MarkFlagRequired("topic"); err != nil {
		panic(err) // unreachable: the flag is defined above
	}
	// Exactly one format.
	cmd.MarkFlagsOneRequired("proto", "registry", "json")
	cmd.MarkFlagsMutuallyExclusive("proto", "registry", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.config()
		if err != nil {
			return err
		}
		return l.run(cmd, c)
	}
	return cmd
}

// run lands the topic until it is interrupted, or with --until-end until the table has what was on
// the topic when the command began.
func (l landing) run(cmd *cobra.Command, c config.Config) error {
	// The default name must be valid in every engine, so dots and hyphens become underscores.
	into := lake.Name{"foreign", strings.NewReplacer(".", "_", "-", "_").Replace(l.topic)}
	if l.table != "" {
		var err error
		if into, err = lake.ParseName(l.table); err != nil {
			return err
		}
	}
	// c is passed by reference, because --registry overrides a setting.
	table, err := l.source(cmd.Context(), &c, into)
	if err != nil {
		return err
	}
	landing := app.Landing{Table: table, Landers: l.landers, Until: l.until}
	if !l.until {
		fmt.Fprintf(cmd.ErrOrStderr(), "landing %s in %s until Ctrl-C\n", l.topic, strings.Join(into, "."))
		return app.Land(cmd.Context(), c, landing, c.Log.Logger(os.Stderr))
	}
	// Only a landing with an end has progress to show.
	b := newBar("land " + l.topic)
	landing.Progress = func(have, of int64) { b.set(have, of, "") }
	err = app.Land(cmd.Context(), c, landing, c.Log.Logger(os.Stderr))
	b.end(err)
	return err
}

// source returns a function that returns the table's declaration. Only a table from the registry
// needs the function, because the registry may be unavailable for a while. The table of a .proto
// file or of JSON is known at once.
func (l landing) source(
	ctx context.Context, c *config.Config, into lake.Name,
) (func(context.Context, *registry.Client) (declare.Table, error), error) {
	var options []external.Option
	if l.headers {
		options = append(options, external.Headers())
	}
	switch {
	case l.json:
		t := external.JSON(into, l.topic, l.times, options...)
		return func(context.Context, *registry.Client) (declare.Table, error) { return t, nil }, nil
	case l.registry != "":
		// Other users of the machine can read the arguments of a process, so they must not contain
		// a password.
		if u, err := url.Parse(l.registry); err != nil || u.User != nil {
			return nil,
				errors.New("--registry: want http(s)://host:port without credentials: " +
					"set registry.user and registry.password, which other users cannot read")
		}
		// The flag overrides the configuration, which app.Land reads.
		c.Registry.URL = l.registry
		l.subject.Times = l.times
		return func(ctx context.Context, schemas *registry.Client) (declare.Table, error) {
			return external.Registered(ctx, into, l.topic, l.subject, schemas, options...)
		}, nil
	}
	// --proto: the definition is read from a file, once, at the start.
	file, of, ok := cutLast(l.proto, ":")
	if !ok {
		return nil, fmt.Errorf("--proto %s: want FILE:MESSAGE, such as clicks.proto:Click", l.proto)
	}
	md, err := external.Message(ctx, file, of, l.folders...)
	if err != nil {
		return nil, err
	}
	t, err := external.Proto(into, l.topic, md, options...)
	return func(context.Context, *registry.Client) (declare.Table, error) { return t, nil }, err
}

// cutLast is strings.Cut around the last separator, because paths can contain colons.
func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
