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

	"github.com/millrace/millrace/internal/auth"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/restcatalog"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// Which right each call takes. Behind what is here, nobody asks again.

// onlyWith lets those to a handler who have the right to a whole surface.
func onlyWith(surface string, h http.Handler) http.Handler {
	return auth.Need(func(*http.Request) auth.Right { return auth.Right(surface) }, h)
}

// rightTo tells the right to each method of a service.
func rightTo(path string) func(*http.Request) auth.Right {
	name := strings.Trim(path, "/") // millrace.order.v1.OrderService
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	service, is := found.(protoreflect.ServiceDescriptor)
	if err != nil || !is {
		panic("no contract of " + name) // it is linked in with the handler
	}
	return func(r *http.Request) auth.Right { return methodRight(service, strings.TrimPrefix(r.URL.Path, path)) }
}

// methodRight is the right to a method: to the commands of its service, or to its queries where it has no side effects.
func methodRight(service protoreflect.ServiceDescriptor, method string) auth.Right {
	part := strings.Split(string(service.FullName()), ".")[1] // of millrace.order.v1
	if m := service.Methods().ByName(protoreflect.Name(method)); m != nil {
		if o, ok := m.Options().(*descriptorpb.MethodOptions); ok && o.GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS {
			return auth.On(auth.Queries, part)
		}
	}
	return auth.On(auth.Commands, part)
}

// sqlOf is the SQL that a caller may ask: over every table, over some, or none.
func (p *App) sqlOf(r *http.Request) (*lakesql.SQL, error) {
	rights := auth.RightsIn(r.Context())
	switch {
	case rights.Allow(auth.SQL):
		return p.sql, nil
	case rights.Any(auth.SQL):
		return p.sql.Only(func(table string) bool { return rights.Allow(auth.On(auth.SQL, table)) }), nil
	}
	return nil, errors.New(auth.Denied(auth.CallerOf(r.Context()), auth.SQL))
}

// knownParameters refuses what would be passed over: as_off would read the present instead of the past.
func knownParameters(given url.Values, known ...string) error {
	for name, values := range given {
		if !slices.Contains(known, name) {
			return fmt.Errorf("unknown parameter %q: the parameters are %s", name, strings.Join(known, " and "))
		}
		if len(values) > 1 {
			return fmt.Errorf("the parameter %s is given twice", name)
		}
	}
	return nil
}

// catalogRight is what a caller may do in the REST catalog, which asks for tokens in its protocol's own way.
func catalogRight(rights auth.Rights) restcatalog.Right {
	for _, right := range []restcatalog.Right{restcatalog.Admin, restcatalog.Write, restcatalog.Read} {
		if rights.Allow(auth.On(auth.Catalog, right.String())) {
			return right
		}
	}
	return restcatalog.None
}

// catalogTables are rights to single tables of the REST catalog, which have the names there that they have in SQL.
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

// sqlName is a table's name as queries address it.
func sqlName(name lake.Name) string {
	if len(name) == 2 && name[0] == declare.Namespace && !strings.Contains(name[1], ".") {
		return name[1]
	}
	return strings.Join(name, ".")
}
