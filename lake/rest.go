package lake

import (
	"context"
	"net/http"

	"github.com/apache/iceberg-go/utils"

	"github.com/millrace/millrace/lake/restcatalog"
)

// REST returns a handler that serves the catalog by Iceberg's REST protocol. Engines can find the
// tables and write them beside the landers. Clients get the credentials in access; those of the
// landers are never handed out.
func (l *Lake) REST(ctx context.Context, access restcatalog.Access) (http.Handler, error) {
	swapper, err := restcatalog.NewSQL(ctx, l.db, l.dialect, CatalogName)
	if err != nil {
		return nil, err
	}
	c := restcatalog.Config{
		Catalog: l.rows, Swapper: swapper, Name: CatalogName, Warehouse: l.warehouse.url, Files: l.warehouse.props,
		Storage: restcatalog.Storage{Endpoint: l.warehouse.s3.Endpoint, Region: l.warehouse.s3.Region},
		Access:  access, Guard: l.guard, Drop: checkDrop, Logger: l.log,
	}
	if l.warehouse.aws != nil {
		c.RequestContext = func(ctx context.Context) context.Context { return utils.WithAwsConfig(ctx, l.warehouse.aws) }
	}
	return restcatalog.New(c)
}
