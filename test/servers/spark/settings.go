package spark

import (
	"encoding/json"
	"path/filepath"
	"strings"

	"github.com/millrace/millrace/test/servers/catalog"
)

// settings returns Spark's settings as JSON, the argument of session.py. They keep Spark small and
// on loopback: driver and executors are one JVM with two threads, and a query shuffles into two
// partitions instead of 200. Times are in UTC, as the comparison with other engines expects.
func (s *Session) settings() (string, error) {
	jars, err := filepath.Glob(filepath.Join(s.home, "jars", "*.jar"))
	if err != nil {
		return "", err
	}
	all := map[string]string{
		"spark.master":                  "local[2]",
		"spark.ui.enabled":              "false",
		"spark.driver.bindAddress":      "127.0.0.1",
		"spark.driver.host":             "127.0.0.1",
		"spark.driver.memory":           "700m",
		"spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Djava.io.tmpdir=" + s.dir,
		"spark.jars":                    strings.Join(jars, ","),
		// The class path is the only place where the drivers of SQLite and PostgreSQL are found.
		"spark.driver.extraClassPath":  strings.Join(jars, ":"),
		"spark.sql.warehouse.dir":      filepath.Join(s.dir, "warehouse"),
		"spark.sql.session.timeZone":   "UTC",
		"spark.sql.shuffle.partitions": "2",
		"spark.sql.extensions":         "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
	}
	for _, c := range s.Catalogs {
		if err := c.Check(); err != nil {
			return "", err
		}
		for name, value := range iceberg(c) {
			all["spark.sql.catalog."+c.Name+name] = value
		}
	}
	settings, err := json.Marshal(all)
	return string(settings), err
}

// iceberg returns the settings of a catalog in the terms of Iceberg's Java library. The keys are
// suffixes of "spark.sql.catalog.NAME". The empty key is the class that implements the catalog.
func iceberg(c catalog.Catalog) map[string]string {
	p := map[string]string{
		"":           "org.apache.iceberg.spark.SparkCatalog",
		".warehouse": c.Warehouse,
		// Tests read what others have just committed.
		".cache-enabled": "false",
	}
	if c.REST != "" {
		p[".type"], p[".uri"] = "rest", c.REST
		if c.Token != "" {
			p[".token"] = c.Token
			p[".token-refresh-enabled"] = "false" // the token cannot be refreshed
		}
		if c.Credential != "" {
			p[".credential"], p[".oauth2-server-uri"] = c.Credential, c.REST+"/v1/oauth/tokens"
		}
		if c.Vended {
			p[".header.X-Iceberg-Access-Delegation"] = "vended-credentials"
		}
	} else {
		// Version V1 of the tables distinguishes tables from views. The Java library would
		// otherwise assume V0.
		p[".type"], p[".uri"] = "jdbc", c.JDBC
		p[".jdbc.schema-version"] = "V1"
		if c.User != "" {
			p[".jdbc.user"], p[".jdbc.password"] = c.User, c.Password
		}
	}
	if c.OnS3() {
		p[".io-impl"] = "org.apache.iceberg.aws.s3.S3FileIO"
		p[".s3.endpoint"], p[".s3.path-style-access"] = c.S3.Endpoint, "true"
		// Without keys of its own, Spark can use only those that the catalog vends. So a query that
		// succeeds shows that vending works.
		if !c.Vended {
			p[".s3.access-key-id"], p[".s3.secret-access-key"] = c.S3.AccessKey, c.S3.SecretKey
		}
		p[".client.region"] = c.S3.Region
	}
	return p
}
