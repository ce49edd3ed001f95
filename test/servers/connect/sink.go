package connect

import (
	"strconv"
	"time"

	"github.com/millrace/millrace/test/servers/catalog"
)

// Sink is a connector that brings one topic of JSON objects into one Iceberg table.
type Sink struct {
	Name         string // its own for each run: its consumers' groups are named after it
	Topic        string
	ControlTopic string // with one partition, and its own for each run; it must be there
	Tasks        int
	Catalog      catalog.Catalog // in SQL; its tables must be there before tasks race to make them
	Table        string          // namespace.table; made where it is not there, at which two tasks stumble over each other
	Commit       time.Duration   // how often it commits
}

func (s Sink) config() map[string]string {
	c := map[string]string{
		"connector.class": "org.apache.iceberg.connect.IcebergSinkConnector",
		"tasks.max":       strconv.Itoa(s.Tasks),
		"topics":          s.Topic,
		// A table that is there is taken as it is.
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
	// Fetches as large as those that a lander of its own would ask for: with Kafka's defaults,
	// which are for many small messages at once, it is slower.
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
