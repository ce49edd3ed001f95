package app

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	flagsv1 "github.com/millrace/millrace/gen/millrace/flags/v1"
	"github.com/millrace/millrace/internal/auth"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/restcatalog"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// This file maps each call to the right that it requires. Handlers behind it do not check again.

// onlyWith requires the right to a whole surface, such as operations or profiles.
func onlyWith(surface string, h http.Handler) http.Handler {
	return auth.Need(func(*http.Request) auth.Right { return auth.Right(surface) }, h)
}

// rightTo returns a function that returns the right for a request to a service mounted at path.
func rightTo(path string) func(*http.Request) auth.Right {
	name := strings.Trim(path, "/") // millrace.order.v1.OrderService
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	// Whether a method is a query is part of the contract, so the descriptor decides it.
	service, is := found.(protoreflect.ServiceDescriptor)
	if err != nil || !is {
		panic("no contract of " + name) // unreachable: the descriptor is linked in with the handler
	}
	return func(r *http.Request) auth.Right { return methodRight(service, strings.TrimPrefix(r.URL.Path, path)) }
}

// methodRight returns the right to a method: queries of its service if the method has no side
// effects, else commands.
func methodRight(service protoreflect.ServiceDescriptor, method string) auth.Right {
	part := strings.Split(string(service.FullName()), ".")[1] // of millrace.order.v1
	if reads(service, method) {
		return auth.On(auth.Queries, part)
	}
	return auth.On(auth.Commands, part)
}

// reads reports whether a method has no side effects. An unknown method may have some, which is the
// safer assumption.
func reads(service protoreflect.ServiceDescriptor, method string) bool {
	m := service.Methods().ByName(protoreflect.Name(method))
	if m == nil {
		return false
	}
	o, ok := m.Options().(*descriptorpb.MethodOptions)
	return ok && o.GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS
}

// flagRight returns a function that returns the right for a request to the service of flags. Flags are a
// surface of their own: who may send commands to the shop may not change how the system runs.
func flagRight(path string) func(*http.Request) auth.Right {
	service := flagsv1.File_millrace_flags_v1_flags_proto.Services().ByName("FlagService")
	return func(r *http.Request) auth.Right {
		if reads(service, strings.TrimPrefix(r.URL.Path, path)) {
			return auth.On(auth.Flags, "read")
		}
		return auth.On(auth.Flags, "write")
	}
}

// sqlOf returns the SQL that a caller may use: over every table or over some. It fails if there is
// none.
func (p *App) sqlOf(r *http.Request) (*lakesql.SQL, error) {
	rights := auth.RightsIn(r.Context())
	switch {
	case rights.Allow(auth.SQL):
		return p.sql, nil
	// Rights to some tables only: the query sees no others.
	case rights.Any(auth.SQL):
		return p.sql.Only(func(table string) bool { return rights.Allow(auth.On(auth.SQL, table)) }), nil
	}
	return nil, errors.New(auth.Denied(auth.CallerOf(r.Context()), auth.SQL))
}

// checkParameters rejects unknown and repeated parameters. Ignoring as_off would silently read the
// present instead of the past.
func checkParameters(given url.Values, known ...string) error {
	for name, values := range given {
		if !slices.Contains(known, name) {
			return fmt.Errorf("unknown parameter %q: the parameters are %s", name, strings.Join(known, " and "))
		}
		if len(values) > 1 {
			return fmt.Errorf("parameter %s: set it only once", name)
		}
	}
	return nil
}

// catalogRight returns the highest right of a caller in the REST catalog, whose protocol
// authenticates callers itself.
func catalogRight(rights auth.Rights) restcatalog.Right {
	for _, right := range []restcatalog.Right{restcatalog.Admin, restcatalog.Write, restcatalog.Read} {
		if rights.Allow(auth.On(auth.Catalog, right.String())) {
			return right
		}
	}
	return restcatalog.None
}

// catalogTables returns the rights to single tables of the REST catalog. Tables have the same names
// there as in SQL.
func catalogTables(rights auth.Rights) restcatalog.TableRights {
	return restcatalog.TableRights{
		On: func(name lake.Name) restcatalog.Right {
			for _, right := range []restcatalog.Right{restcatalog.Admin, restcatalog.Write, restcatalog.Read} {
				if rights.Allow(auth.On(auth.Catalog, right.String()+"."+sqlName(name))) {
					return right
				}
			}
			return restcatalog.None
		},
		// Within reports whether a caller may see a namespace: some right names a table in it, or a
		// pattern that can match one. Tables of the default namespace are named without it.
		Within: func(namespace lake.Name) bool {
			within := strings.Join(namespace, ".") + "."
			return slices.ContainsFunc(rights.Tables(), func(given string) bool {
				start, some := strings.CutSuffix(given, "*")
				if len(namespace) == 1 && namespace[0] == declare.Namespace {
					return !strings.Contains(given, ".")
				}
				return strings.HasPrefix(given, within) || some && strings.HasPrefix(within, start)
			})
		},
	}
}

// sqlName returns the name by which queries refer to a table: the default namespace is omitted.
func sqlName(name lake.Name) string {
	if len(name) == 2 && name[0] == declare.Namespace && !strings.Contains(name[1], ".") {
		return name[1]
	}
	return strings.Join(name, ".")
}
