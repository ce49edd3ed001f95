package landing

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"
	"github.com/aws/smithy-go"

	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/tables"
)

// A process that does not land sees why another one does not land a table, and when that is
// resolved. Waiting for the table then succeeds.
func TestFaultsAreReportedByEveryProcess(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		values, good, _ := numbered(40)
		s, _ := pickyWorld(t, values)
		config := fresh(t)
		var mended atomic.Bool
		config.Tables = []declare.Table{picky(func(string) bool { return !mended.Load() }), tables.OrdersEvents}
		lander, asked := openLake(t, config), openLake(t, config)
		c := s.runConfig()
		c.WriteDeadLetters, c.retryInterval = new(letterBox).write, 50*time.Millisecond
		stop := start(t, lander, c)
		eventually(t, func() error {
			_, broken, err := asked.Report(t.Context())
			if err == nil && (len(broken) != 1 || broken[0].Table != "picky" || !strings.Contains(broken[0].Err.Error(), "no record can be written") || broken[0].Remedy != faults.RemedyFit) {
				err = fmt.Errorf("reported: %v", broken)
			}
			return err
		})
		var fault *faults.TableError
		if _, err := asked.Applied(t.Context(), pickyTopic); !errors.As(err, &fault) {
			t.Errorf("how far the table is: %v", err)
		}
		mended.Store(true)
		pickyLanded(t, s, lander)
		eventually(t, func() error {
			_, broken, err := asked.Report(t.Context())
			if err == nil && len(broken) > 0 {
				err = fmt.Errorf("still reported: %v", broken)
			}
			return err
		})
		pickyLanded(t, s, asked)
		mustStop(t, stop)
		if have := said(t, asked, config.Tables[0]); !slices.Equal(have, good) {
			t.Errorf("%d rows, want %d", len(have), len(good))
		}
	})
}

// refusing fails commits to one table while an error is set.
type refusing struct {
	catalog.Catalog
	table string
	err   atomic.Pointer[error]
	asked atomic.Int64
}

func (r *refusing) LoadTable(ctx context.Context, ident table.Identifier) (*table.Table, error) {
	t, err := r.Catalog.LoadTable(ctx, ident)
	if err != nil {
		return nil, err
	}
	return table.New(t.Identifier(), t.Metadata(), t.MetadataLocation(), t.FS, r), nil
}

func (r *refusing) CommitTable(ctx context.Context, ident table.Identifier, reqs []table.Requirement, updates []table.Update) (table.Metadata, string, error) {
	if err := r.err.Load(); err != nil && ident[1] == r.table {
		r.asked.Add(1)
		return nil, "", *err
	}
	return r.Catalog.CommitTable(ctx, ident, reqs, updates)
}

// A commit that is refused for a permanent reason stops its table with a remedy. An unclassified
// reason does so after a while. The other tables land, and so does this one once commits succeed.
func TestCommitsThatNeverPassStopTheirTable(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err    error
		remedy string
	}{
		"no right to a file":       {&fs.PathError{Op: "create", Path: "/w/t", Err: syscall.EACCES}, faults.RemedyDenied},
		"a disk that is read only": {&fs.PathError{Op: "create", Path: "/w/t", Err: syscall.EROFS}, faults.RemedyDenied},
		"no right to an object":    {&smithy.OperationError{ServiceID: "S3", OperationName: "PutObject", Err: &smithy.GenericAPIError{Code: "AccessDenied"}}, faults.RemedyDenied},
		"no bucket":                {&smithy.OperationError{ServiceID: "S3", OperationName: "PutObject", Err: &smithy.GenericAPIError{Code: "NoSuchBucket"}}, faults.RemedyDenied},
		"no right to the catalog":  {stateError("42501"), faults.RemedyDenied},
		"an unclassified reason":   {errors.New("the catalog does not like the table"), faults.RemedyCommit},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShop(t)
			s.mustTrade(t, 20)
			l := openLake(t, ordersOnly(localLake(t)))
			refuses := &refusing{Catalog: l.Catalog(), table: tables.OrdersEvents.Name}
			refuses.err.Store(&c.err)
			l.SetCatalog(refuses)
			run := s.runConfig()
			run.retryInterval, run.unknownTimeout = 50*time.Millisecond, 100*time.Millisecond
			stop := start(t, l, run)
			eventually(t, func() error {
				if have := stoppedTables(l); !slices.Equal(have, []string{tables.OrdersEvents.Name}) {
					return fmt.Errorf("stopped: %v", have)
				}
				return nil
			})
			if fault := l.Stopped()[0]; fault.Remedy != c.remedy || !errors.Is(fault, c.err) {
				t.Errorf("the reason is %v, the remedy %s", fault.Err, fault.Remedy)
			}
			s.landed(t, l) // the others
			refuses.err.Store(nil)
			eventually(t, func() error {
				if have := stoppedTables(l); len(have) > 0 {
					return fmt.Errorf("stopped: %v", have)
				}
				return nil
			})
			s.landed(t, l)
			mustStop(t, stop)
			s.check(t, l)
			if c.remedy == faults.RemedyDenied { // else it may have landed, and its files are left to maintenance
				checkFiles(t, l)
			}
		})
	}
}

// A temporary error is waited for, however long, and does not stop the table.
func TestCommitsThatPassAreWaitedFor(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		&fs.PathError{Op: "write", Path: "/w/t", Err: syscall.ENOSPC}, context.DeadlineExceeded, table.ErrCommitFailed,
		&smithy.OperationError{ServiceID: "S3", OperationName: "PutObject", Err: &smithy.GenericAPIError{Code: "SlowDown"}},
	} {
		t.Run(fmt.Sprintf("%.20s", err), func(t *testing.T) {
			t.Parallel()
			s := newShop(t)
			s.mustTrade(t, 20)
			l := openLake(t, ordersOnly(localLake(t)))
			refuses := &refusing{Catalog: l.Catalog(), table: tables.OrdersEvents.Name}
			refuses.err.Store(&err)
			l.SetCatalog(refuses)
			run := s.runConfig()
			run.unknownTimeout = time.Nanosecond
			stop := start(t, l, run)
			eventually(t, func() error {
				if n := refuses.asked.Load(); n < 2*minAttempts {
					return fmt.Errorf("%d tries", n)
				}
				return nil
			})
			if have := stoppedTables(l); len(have) > 0 {
				t.Errorf("stopped: %v", l.Stopped())
			}
			refuses.err.Store(nil)
			s.landed(t, l)
			mustStop(t, stop)
			s.check(t, l)
		})
	}
}

// stateError is an error of PostgreSQL.
type stateError string

func (e stateError) Error() string { return "SQLSTATE " + string(e) }

func (e stateError) SQLState() string { return string(e) }
