package connect

import (
	"strconv"
	"time"

	"github.com/millrace/millrace/test/servers/catalog"
)

// Sink is a connector that lands one topic of JSON objects in one Iceberg table.
//
// Its tasks read the topic and write data files. One of them also coordinates: at each commit
// interval, it asks all tasks over the control topic for their files, and commits them together.
type Sink struct {
	Name         string // new for each run, because its consumer groups are named after it
	Topic        string
	ControlTopic string // with one partition, new for each run; it must exist
	Tasks        int
	Catalog      catalog.Catalog // a SQL catalog; its tables must exist, because tasks race to create them
	// Table is namespace.table. If it is missing it is created, which fails for one of two tasks.
	Table  string
	Commit time.Duration // commit interval
}

// config returns the connector's configuration, in the terms of Kafka Connect. errors.tolerance
// "none" makes a task fail at the first bad record, so that a benchmark cannot skip records
// unnoticed.
func (s Sink) config() map[string]string {
	c := map[string]string{
		"connector.class": "org.apache.iceberg.connect.IcebergSinkConnector",
		"tasks.max":       strconv.Itoa(s.Tasks),
		"topics":          s.Topic,
		// An existing table is used as it is.
		"iceberg.tables":                                             s.Table,
		"iceberg.tables.auto-create-enabled":                         "true",
		"iceberg.tables.evolve-schema-enabled":                       "true",
		"iceberg.tables.write-props.write.parquet.compression-codec": "zstd",
		"iceberg.control.topic":                                      s.ControlTopic,
		"iceberg.control.group-id-prefix":                            "control-" + s.Name,
		"iceberg.control.commit.interval-ms":                         strconv.FormatInt(s.Commit.Milliseconds(), 10),
		"iceberg.control.commit.timeout-ms":                          "30000",
		"iceberg.catalog":                                            s.Catalog.Name,
		"iceberg.catalog.type":                                       "jdbc",
		"iceberg.catalog.uri":                                        s.Catalog.JDBC,
		"iceberg.catalog.jdbc.schema-version":                        "V1",
		"iceberg.catalog.warehouse":                                  s.Catalog.Warehouse,
		"errors.tolerance":                                           "none",
	}
	// Fetch as much at a time as a lander does. Kafka's defaults are for many small messages, and
	// slower.
	for name, value := range map[string]string{
		"auto.offset.reset":         "earliest",
		"fetch.min.bytes":           "1048576",
		"fetch.max.wait.ms":         "500",
		"fetch.max.bytes":           "104857600",
		"max.partition.fetch.bytes": "16777216",
		"max.poll.records":          "10000",
	} {
		c["consumer.override."+name] = value
	}
	return c
}
