package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/cmd/millrace/internal/platform"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/foreign"
)

// landing is what the flags of "lake land" say.
type landing struct {
	topic, table string
	proto        string
	folders      []string
	registry     string
	subject      foreign.Subject
	json, times  bool
	headers      bool
	landers      int
	until        bool
}

func newLakeLand(a *app) *cobra.Command {
	var l landing
	cmd := &cobra.Command{
		Use:   "land --topic TOPIC (--proto FILE:MESSAGE | --registry URL | --json)",
		Short: "Land any Kafka topic, of Protobuf, Avro or JSON, in a table of its own",
		Long: `Land a Kafka topic, whoever writes it, in an Iceberg table: a column for each field, and where each row comes from (_topic,
_partition, _offset, _timestamp and _timestamp_raw, _key). Each record lands once, whatever dies when; run it in as many processes as the topic has
partitions. What cannot be a row is put on the topic millrace.parked, with the reason; what is too large for that topic, shortened.
A table that cannot be landed as it is ends the command, with the reason and what to do about it; what passes by itself (brokers, registry, store
or catalog away) is waited for.

What the values are, one of three says:

  --proto FILE:MESSAGE  Protobuf messages. FILE is a .proto file, or a set of descriptors as "buf build -o FILE.binpb" writes it;
                        values may be plain, or framed for a schema registry. A new field is a new column at the next start.
  --registry URL        Avro, Protobuf or JSON framed for a Confluent-compatible schema registry. Columns are those of the subject's
                        newest schema, and more as soon as values come of schemas that have more. What a value's schema lacks is
                        null; a field with an Avro alias renames the column that is called so, and values of both schemas go there;
                        a schema that does not go into the table (a field was a string and is a number) parks its values.
                        While the registry is away, values of schemas that it has told land, others wait.
                        User and password are registry.user and registry.password of the configuration.
  --json                JSON objects. Columns follow from what comes, and grow: objects become structs, arrays lists. Whole numbers
                        are long, others double. What does not fit its column stands beside it: fractions of a long x in x_double,
                        anything else of x in x_json; what has no column at all in _extra, as JSON. So nothing is lost or parked
                        for its type. Columns of a table that is there keep their types, and are filled where a value is one of
                        theirs exactly: 9.99 in a decimal(10,2), "2024-01-01" in a date, "10:00:00" in a time, a UUID in a uuid,
                        base64 in a binary, an object in a map of texts (or whole numbers) to values that it holds. A field finds a column that differs
                        from it in capitals alone.

Times are of the years 1 to 9999 and have microseconds: the nanoseconds of a Protobuf Timestamp are cut off to them, Avro's
timestamp-nanos and Protobuf's Duration are whole numbers of nanoseconds, its times of day whole numbers of microseconds, and its local
timestamps whole numbers in their own unit. ClickHouse, and so "millrace sql", shows a column of type time in whole seconds; other
engines show its microseconds. A value that is not such a time is never changed into another:
its record is put on millrace.parked, or, in JSON, stays the text that it is. A record whose own timestamp is none has null in
_timestamp and the number in _timestamp_raw.

With --headers, the column _headers is a map of the headers' names to their bytes; of several headers of one name the last is there.

Where Kafka and the lake are, the configuration says: kafka.*, lake.*; see "millrace config".`,
		Example: `  export MILLRACE_KAFKA_BROKERS=broker:9092
  millrace lake land --topic clicks --proto clicks.proto:Click --table web.clicks
  millrace lake land --topic orders --registry http://registry:8081
  millrace lake land --topic orders --registry http://registry:8081 --subject shop.Order --message shop.Order
  millrace lake land --topic orders --registry http://registry:8081 --table shop.orders --headers
  millrace lake land --topic logs --json --json-times --until-end && millrace lake tables`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringVar(&l.topic, "topic", "", "what to land")
	flags.StringVar(&l.proto, "proto", "", "FILE:MESSAGE that the topic's values are")
	flags.StringArrayVarP(&l.folders, "proto-path", "I", nil, "further folders of imported .proto files")
	flags.StringVar(&l.registry, "registry", "", "URL of the schema registry that the values are framed for")
	flags.StringVar(&l.subject.Name, "subject", "", "of the registry, whose newest schema the table begins with (default TOPIC-value)")
	flags.StringVar(&l.subject.Message, "message", "", "of the registry's Protobuf file, in full (default its first)")
	flags.BoolVar(&l.json, "json", false, "the values are JSON objects")
	flags.BoolVar(&l.times, "json-times", false, "make times of strings of JSON that are RFC 3339 times")
	flags.BoolVar(&l.headers, "headers", false, "land the records' headers, in the column _headers")
	flags.StringVar(&l.table, "table", "", "TABLE or NAMESPACE.TABLE to land in (default foreign.TOPIC)")
	flags.IntVar(&l.landers, "landers", 1, "how many work at a time, on partitions of their own")
	flags.BoolVar(&l.until, "until-end", false, "end once everything that stands on the topic now is in the table")
	a.dataFlag(cmd, "the lake of this data folder, where the configuration names no other")
	if err := cmd.MarkFlagRequired("topic"); err != nil {
		panic(err) // the flag stands above
	}
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

func (l landing) run(cmd *cobra.Command, c config.Config) error {
	into := lake.Name{"foreign", strings.NewReplacer(".", "_", "-", "_").Replace(l.topic)}
	if l.table != "" {
		var err error
		if into, err = lake.ParseName(l.table); err != nil {
			return err
		}
	}
	table, err := l.source(cmd.Context(), &c, into)
	if err != nil {
		return err
	}
	landing := platform.Landing{Table: table, Landers: l.landers, Until: l.until}
	if !l.until {
		fmt.Fprintf(cmd.ErrOrStderr(), "landing %s in %s until Ctrl-C\n", l.topic, strings.Join(into, "."))
		return platform.Land(cmd.Context(), c, landing, c.Log.Logger(os.Stderr))
	}
	b := newBar("land " + l.topic)
	landing.Progress = func(have, of int64) { b.set(have, of, "") }
	err = platform.Land(cmd.Context(), c, landing, c.Log.Logger(os.Stderr))
	b.end(err)
	return err
}

// source is what makes the table.
func (l landing) source(ctx context.Context, c *config.Config, into lake.Name) (func(context.Context, *registry.Client) (lake.Table, error), error) {
	var options []foreign.Option
	if l.headers {
		options = append(options, foreign.Headers())
	}
	switch {
	case l.json:
		t := foreign.JSON(into, l.topic, l.times, options...)
		return func(context.Context, *registry.Client) (lake.Table, error) { return t, nil }, nil
	case l.registry != "":
		if u, err := url.Parse(l.registry); err != nil || u.User != nil {
			return nil, errors.New("--registry: want http(s)://host:port; who logs in is said by registry.user and registry.password, not here, where others can read it")
		}
		c.Registry.URL = l.registry
		l.subject.Times = l.times
		return func(ctx context.Context, schemas *registry.Client) (lake.Table, error) {
			return foreign.Registered(ctx, into, l.topic, l.subject, schemas, options...)
		}, nil
	}
	file, of, ok := cutLast(l.proto, ":")
	if !ok {
		return nil, fmt.Errorf("--proto %s: want FILE:MESSAGE, such as clicks.proto:Click", l.proto)
	}
	md, err := foreign.Message(ctx, file, of, l.folders...)
	if err != nil {
		return nil, err
	}
	t, err := foreign.Proto(into, l.topic, md, options...)
	return func(context.Context, *registry.Client) (lake.Table, error) { return t, nil }, err
}

// cutLast cuts a text around the last separator.
func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
