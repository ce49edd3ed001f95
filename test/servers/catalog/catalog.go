// Package catalog describes where Iceberg tables are, once for every engine under test. Each engine
// has its own settings for the same things, which its package derives from a Catalog.
//
// History reads the commits to a table without an engine. Create makes the tables of a SQL catalog,
// for engines that do not create them.
package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/millrace/millrace/test/servers/s3"
)

// Catalog is a REST catalog or a SQL database, with its files in a folder or on S3. Either REST or
// JDBC is set. Check reports a combination that no engine can use.
type Catalog struct {
	// The name in queries. In a SQL database it is also in the rows; iceberg-go uses "millrace".
	Name string

	REST       string // http://host:port, the catalog's address; empty for SQL
	Token      string // empty if the catalog requires none
	Credential string // name:secret, exchanged for a token by OAuth2; empty for none
	// Vended means that the catalog vends the credentials for S3, so the engine is given none.
	Vended bool

	JDBC           string // jdbc:sqlite:/path or jdbc:postgresql://host:port/database; empty for REST
	User, Password string // of the database

	Warehouse string    // file:///folder or s3://bucket/folder, for new tables
	S3        s3.Config // for a warehouse there
}

// OnS3 reports whether the files are on S3.
func (c Catalog) OnS3() bool { return strings.HasPrefix(c.Warehouse, "s3://") }

// Driver returns the Java class of the database's driver. Every engine is installed with it.
func (c Catalog) Driver() string {
	if strings.HasPrefix(c.JDBC, "jdbc:sqlite:") {
		return "org.sqlite.JDBC"
	}
	return "org.postgresql.Driver"
}

// Check returns an error that names missing fields. An engine with an incomplete catalog would
// start, and fail only at a query, with a message of its own.
func (c Catalog) Check() error {
	switch {
	case c.Name == "":
		return errors.New("catalog: Name is missing")
	case (c.REST == "") == (c.JDBC == ""):
		return fmt.Errorf("catalog %s: set either REST or JDBC", c.Name)
	case !c.OnS3() && !strings.HasPrefix(c.Warehouse, "file:///"):
		return fmt.Errorf("catalog %s: Warehouse %q is neither file:///folder nor s3://bucket/folder", c.Name,
			c.Warehouse)
	case c.OnS3() && c.S3.Endpoint == "":
		return fmt.Errorf("catalog %s: Warehouse is on S3, but S3.Endpoint is missing", c.Name)
	}
	return nil
}

// Create creates the tables of a SQL catalog in a database. iceberg-go and Spark create them on
// their own, but Trino does not.
func Create(ctx context.Context, db *sql.DB) error {
	for _, table := range []string{
		`CREATE TABLE iceberg_tables (catalog_name VARCHAR(255) NOT NULL, table_namespace VARCHAR(255) NOT NULL, table_name VARCHAR(255) NOT NULL,
			metadata_location VARCHAR(1000), previous_metadata_location VARCHAR(1000), iceberg_type VARCHAR(5),
			PRIMARY KEY (catalog_name, table_namespace, table_name))`,
		`CREATE TABLE iceberg_namespace_properties (catalog_name VARCHAR(255) NOT NULL, namespace VARCHAR(255) NOT NULL,
			property_key VARCHAR(255), property_value VARCHAR(1000), PRIMARY KEY (catalog_name, namespace, property_key))`,
	} {
		if _, err := db.ExecContext(ctx, table); err != nil {
			return fmt.Errorf("create the tables of the SQL catalog: %w", err)
		}
	}
	return nil
}
