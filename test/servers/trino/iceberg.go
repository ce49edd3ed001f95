package trino

import (
	"bytes"

	"github.com/millrace/millrace/test/servers/catalog"
)

// properties are the content of a properties file: names and values, in order.
type properties [][2]string

func (p *properties) add(name, value string) { *p = append(*p, [2]string{name, value}) }

func (p properties) bytes() []byte {
	var b bytes.Buffer
	for _, line := range p {
		b.WriteString(line[0] + "=" + line[1] + "\n")
	}
	return b.Bytes()
}

// iceberg returns the settings of a catalog in Trino's terms, the content of NAME.properties. Trino
// has its own client for each kind of catalog, and its own file systems, which are all off unless
// enabled.
func iceberg(c catalog.Catalog) properties {
	p := properties{{"connector.name", "iceberg"}}
	if c.REST != "" {
		p.add("iceberg.catalog.type", "rest")
		p.add("iceberg.rest-catalog.uri", c.REST)
		p.add("iceberg.rest-catalog.warehouse", c.Warehouse)
		if c.Token != "" {
			p.add("iceberg.rest-catalog.security", "OAUTH2")
			p.add("iceberg.rest-catalog.oauth2.token", c.Token)
			// The token can neither be exchanged nor refreshed.
			p.add("iceberg.rest-catalog.oauth2.token-exchange-enabled", "false")
			p.add("iceberg.rest-catalog.oauth2.token-refresh-enabled", "false")
		}
		if c.Credential != "" {
			p.add("iceberg.rest-catalog.security", "OAUTH2")
			p.add("iceberg.rest-catalog.oauth2.credential", c.Credential)
			p.add("iceberg.rest-catalog.oauth2.server-uri", c.REST+"/v1/oauth/tokens")
		}
		if c.Vended {
			p.add("iceberg.rest-catalog.vended-credentials-enabled", "true")
		}
	} else {
		// The tables of this catalog must exist: see catalog.Create.
		p.add("iceberg.catalog.type", "jdbc")
		p.add("iceberg.jdbc-catalog.catalog-name", c.Name)
		p.add("iceberg.jdbc-catalog.driver-class", c.Driver())
		p.add("iceberg.jdbc-catalog.connection-url", c.JDBC)
		p.add("iceberg.jdbc-catalog.default-warehouse-dir", c.Warehouse)
		if c.User != "" {
			p.add("iceberg.jdbc-catalog.connection-user", c.User)
			p.add("iceberg.jdbc-catalog.connection-password", c.Password)
		}
	}
	if c.OnS3() {
		p.add("fs.s3.enabled", "true")
		p.add("s3.endpoint", c.S3.Endpoint)
		p.add("s3.region", c.S3.Region)
		p.add("s3.path-style-access", "true")
		// Without keys of its own, Trino can use only those that the catalog vends.
		if !c.Vended {
			p.add("s3.aws-access-key", c.S3.AccessKey)
			p.add("s3.aws-secret-key", c.S3.SecretKey)
		}
		return p
	}
	p.add("fs.local.enabled", "true")
	p.add("local.location", "/") // so that file:///folder is that folder
	return p
}
