package lake

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/io"
	_ "github.com/apache/iceberg-go/io/gocloud/s3" // s3:// locations; the package above it links three clouds' clients
	"github.com/apache/iceberg-go/table"
	"github.com/apache/iceberg-go/utils"
	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/millrace/millrace/internal/dependency"
	"github.com/millrace/millrace/internal/stall"
	"github.com/millrace/millrace/lake/internal/datafile"
	"github.com/millrace/millrace/lake/location"
)

// S3 has the settings of an object store.
type S3 struct {
	// Endpoint is http(s)://host:port, used with path-style addressing. If it is empty, Amazon's
	// endpoint of the region is used.
	Endpoint             string
	Region               string
	AccessKey, SecretKey string // empty: credentials of the environment or the machine's role
	// Dependency guards the requests. Nil guards nothing.
	Dependency *dependency.Dependency
}

// warehouse is the root location of all tables, with the settings to access it.
type warehouse struct {
	url    string
	props  iceberg.Properties // for iceberg-go's file system; no credentials
	s3     S3
	aws    *aws.Config  // nil for a folder
	client *http.Client // of the object store
}

const s3Scheme = "s3://"

// openWarehouse validates the location and, unless the lake is read-only, creates the folder of a
// local warehouse.
func openWarehouse(ctx context.Context, c Config) (*warehouse, error) {
	if strings.HasPrefix(c.Warehouse, s3Scheme) {
		return openBucket(ctx, c.Warehouse, c.S3)
	}
	if strings.Contains(c.Warehouse, "://") {
		return nil, fmt.Errorf("warehouse %s: want a folder or s3://bucket/folder", c.Warehouse)
	}
	dir, err := filepath.Abs(c.Warehouse)
	if err != nil {
		return nil, fmt.Errorf("warehouse %s: %w", c.Warehouse, err)
	}
	if !c.ReadOnly {
		if err := plainFolder(dir); err != nil {
			return nil, fmt.Errorf("warehouse %s: %w", dir, err)
		}
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, fmt.Errorf("create the warehouse: %w", err)
		}
	}
	return &warehouse{url: "file://" + filepath.ToSlash(dir)}, nil
}

// plainFolder fails if a new warehouse would have locations that readers interpret differently. An
// existing warehouse is accepted as it is.
func plainFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if len(entries) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return location.Plain(filepath.ToSlash(dir))
}

// Timeouts of connections to the object store. A connection that exceeds one is closed and the call
// is retried.
const (
	s3ConnectTimeout = 5 * time.Second
	s3AnswerTimeout  = 20 * time.Second
	s3StallTimeout   = 30 * time.Second // between two bytes of a request or an answer
)

// openBucket prepares access to a warehouse in a bucket. It makes no request, so wrong credentials
// only fail at the first access.
func openBucket(ctx context.Context, at string, c S3) (*warehouse, error) {
	u, err := url.Parse(at)
	if err != nil {
		return nil, fmt.Errorf("warehouse: %w", err)
	}
	if u.Host == "" || u.User != nil || u.RawQuery != "" {
		return nil, fmt.Errorf("warehouse %s: want s3://bucket/folder", u.Redacted())
	}
	if err := location.Plain(u.Path); err != nil {
		return nil, fmt.Errorf("warehouse %s: %w", u.Redacted(), err)
	}
	if (c.AccessKey == "") != (c.SecretKey == "") {
		return nil, errors.New("S3: set both the access key and the secret key, or neither")
	}
	if c.Region == "" {
		return nil, errors.New("S3: set a region; servers without regions accept us-east-1")
	}
	e, err := url.Parse(c.Endpoint)
	if c.Endpoint != "" && (err != nil || e.Host == "" || e.Scheme != "http" && e.Scheme != "https") {
		return nil, fmt.Errorf("S3: the endpoint %q is not http(s)://host:port", c.Endpoint)
	}
	options := []func(*config.LoadOptions) error{
		config.WithRegion(c.Region), config.WithHTTPClient(awshttp.NewBuildableClient()),
	}
	// Without keys, the SDK finds credentials in the environment.
	if c.AccessKey != "" {
		options = append(options,
			config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(c.AccessKey, c.SecretKey, "")))
	}
	loaded, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("S3: %w", err)
	}
	// iceberg-go creates a client per table load. They share the connections of this transport.
	transport := loaded.HTTPClient.(*awshttp.BuildableClient).GetTransport() // trusts the certificates in AWS_CA_BUNDLE
	transport.DialContext = stall.Dialer(&net.Dialer{Timeout: s3ConnectTimeout}, s3StallTimeout)
	transport.ResponseHeaderTimeout = s3AnswerTimeout
	transport.MaxIdleConnsPerHost = 64
	transport.IdleConnTimeout = s3AnswerTimeout // close idle connections before they count as stalled
	client := &http.Client{Transport: c.Dependency.Transport(transport, false)}
	loaded.HTTPClient = client
	w := &warehouse{url: strings.TrimSuffix(at, "/"), s3: c, aws: &loaded, client: client, props: iceberg.Properties{}}
	// Stores other than Amazon's rarely have a host name per bucket.
	if c.Endpoint != "" {
		w.props[io.S3EndpointURL] = c.Endpoint
		w.props[io.S3ForceVirtualAddressing] = "false"
	}
	return w, nil
}

// close closes idle connections to the object store.
func (w *warehouse) close() {
	if w.client != nil {
		w.client.CloseIdleConnections()
	}
}

// owns reports whether a location has the same kind of storage as the warehouse.
func (w *warehouse) owns(at string) bool {
	return strings.HasPrefix(at, s3Scheme) == (w.aws != nil)
}

// tableLocation returns the location of a new table.
func (w *warehouse) tableLocation(name table.Identifier) string { return location.Table(w.url, name) }

// fenced wraps a catalog so that its tables can access their own files and nothing else. iceberg-go
// takes object store settings, including keys, from the context. This keeps keys out of table
// properties, which are stored.
func (w *warehouse) fenced(c catalog.Catalog) catalog.Catalog { return fencedCatalog{c, w.url, w.aws} }

// fencedCatalog is a catalog whose tables can access their files.
type fencedCatalog struct {
	catalog.Catalog
	warehouse string
	aws       *aws.Config // nil for a folder
}

// extraFolders returns the other folders in which a table's properties place files. Such properties
// can no longer be set. A table that already had them keeps working as long as the folders are in
// the warehouse.
func (p fencedCatalog) extraFolders(t *table.Table) (folders []string) {
	for _, key := range datafile.LocationProperties {
		if folder, ok := t.Properties()[key]; ok && location.Inside(p.warehouse, strings.TrimRight(folder, "/")+"/x") {
			folders = append(folders, folder)
		}
	}
	return folders
}

// storageContext adds the object store's settings to a context.
func (p fencedCatalog) storageContext(ctx context.Context) context.Context {
	if p.aws == nil {
		return ctx
	}
	return utils.WithAwsConfig(ctx, p.aws)
}

// LoadTable loads a table whose file system is limited to its own folders.
func (p fencedCatalog) LoadTable(ctx context.Context, ident table.Identifier) (*table.Table, error) {
	t, err := p.Catalog.LoadTable(p.storageContext(ctx), ident)
	if err != nil {
		return nil, err
	}
	fs := func(ctx context.Context) (io.IO, error) {
		files, err := t.FS(p.storageContext(ctx))
		if err != nil {
			return nil, err
		}
		return location.Fence(files, t.Location(), p.extraFolders(t)...), nil
	}
	return table.New(t.Identifier(), t.Metadata(), t.MetadataLocation(), fs, p), nil
}

// CommitTable adds the object store's settings to the context of a commit.
func (p fencedCatalog) CommitTable(
	ctx context.Context, ident table.Identifier, reqs []table.Requirement, updates []table.Update,
) (table.Metadata, string, error) {
	return p.Catalog.CommitTable(p.storageContext(ctx), ident, reqs, updates)
}
