// Package external declares tables for external topics, those that Millrace does not write. So
// landers can land any Kafka topic.
//
// There are three sources of columns, each with a function that returns a declare.Table:
//
//   - Proto: a Protobuf message from a .proto file or descriptor set. Message finds it.
//   - Registered: the schemas of a schema registry, in Avro, Protobuf or JSON. The table gains
//     columns with new schemas.
//   - JSON: the values themselves, which are JSON objects. The table gains columns with new fields.
//
// All of them have further columns for the record's key, timestamp and, optionally, headers; see
// recordcolumns.go. Names of such columns begin with an underscore, so that they rarely collide
// with fields.
package external

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/wire"

	// google/type/money.proto, which is often imported without being present.
	_ "google.golang.org/genproto/googleapis/type/money"
)

// ErrNoMessage means that a file does not have a message.
var ErrNoMessage = errors.New("has no message")

// Message returns the descriptor of a message. file is a .proto file, which may import files from
// its own folder or the given ones, or a descriptor set written by protoc or buf (.binpb, .pb,
// .desc). The package may be omitted from name. The error wraps ErrNoMessage if the file has none of
// this name.
func Message(ctx context.Context, file, name string, folders ...string) (protoreflect.MessageDescriptor, error) {
	files, err := describe(ctx, file, folders)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	var found []protoreflect.MessageDescriptor
	var all []string
	files.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		// Nested messages can be values, too.
		for md := range messages(f.Messages()) {
			full := string(md.FullName())
			// The package may be omitted, as long as the name is unambiguous.
			if full == name || strings.HasSuffix(full, "."+name) {
				found = append(found, md)
			}
			all = append(all, full)
		}
		return true
	})
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		slices.Sort(all)
		return nil, fmt.Errorf("%s %w %q; it has %s", file, ErrNoMessage, name, strings.Join(all, ", "))
	}
	return nil, fmt.Errorf("%s has %d messages named %q: include the package in the name", file, len(found), name)
}

// messages iterates over messages and those nested in them.
func messages(in protoreflect.MessageDescriptors) func(func(protoreflect.MessageDescriptor) bool) {
	return func(yield func(protoreflect.MessageDescriptor) bool) {
		for i := range in.Len() {
			md := in.Get(i)
			// Map fields have generated message types, which cannot be the value of a record.
			if md.IsMapEntry() {
				continue
			}
			if !yield(md) {
				return
			}
			for inner := range messages(md.Messages()) {
				if !yield(inner) {
					return
				}
			}
		}
	}
}

// describe loads a .proto file or a descriptor set.
func describe(ctx context.Context, file string, folders []string) (*protoregistry.Files, error) {
	if filepath.Ext(file) != ".proto" {
		b, err := os.ReadFile(file) //nolint:gosec // the file that the user names
		if err != nil {
			return nil, err
		}
		var set descriptorpb.FileDescriptorSet
		// Almost any bytes are valid Protobuf, so also require a file.
		if err := proto.Unmarshal(b, &set); err != nil || len(set.File) == 0 {
			return nil, errors.Join(errors.New("it is neither a .proto file nor a descriptor set"), err)
		}
		return protodesc.NewFiles(&set)
	}
	// Files that are linked in, such as google/protobuf and google/type, need not be present.
	known := protocompile.ResolverFunc(func(path string) (protocompile.SearchResult, error) {
		f, err := protoregistry.GlobalFiles.FindFileByPath(path)
		return protocompile.SearchResult{Desc: f}, err
	})
	c := protocompile.Compiler{
		SourceInfoMode: protocompile.SourceInfoStandard, // keep comments, which become the columns' descriptions
		// Imports are searched beside the file, then in the given folders, then among linked files.
		Resolver: protocompile.CompositeResolver{
			&protocompile.SourceResolver{ImportPaths: append([]string{filepath.Dir(file)}, folders...)}, known,
		},
	}
	compiled, err := c.Compile(ctx, filepath.Base(file))
	if err != nil {
		return nil, err
	}
	// Only the file itself, without its imports: its messages are the candidates.
	files := new(protoregistry.Files)
	for _, f := range compiled {
		if err := files.RegisterFile(f); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// declared returns the common part of all tables of external topics.
func declared(name lake.Name, topic, doc string) declare.Table {
	last := len(name) - 1
	return declare.Table{
		Name: name[last], Namespace: strings.Join(name[:last], "."), Topic: topic, Origin: origin, Doc: doc,
	}
}

// errNoValue is the reason for a dead letter without a value.
var errNoValue = errors.New("the record has no value: it deletes its key from a compacted topic, " +
	"which a table of events cannot express")

// Proto declares a table for a topic of Protobuf messages, with a column for each field. Values may
// be plain or framed for a schema registry.
func Proto(name lake.Name, topic string, md protoreflect.MessageDescriptor, options ...Option) (declare.Table, error) {
	with := layoutOf(options)
	t := declared(name, topic, fmt.Sprintf("Every %s on the topic %s.", md.FullName(), topic))
	// The message is fixed at start, so an incompatible one fails here rather than record by
	// record.
	plan, err := wire.Compile(md, wire.Options{Unknown: wire.UnknownColumn, Reserved: with.reserved()})
	if err != nil {
		return declare.Table{}, err
	}
	t.Columns = slices.Concat(plan.Fields(), with.columns())
	t.Rows = func(to *columnar.Columns, _ *registry.Decoder) (declare.Rows, error) {
		message, err := plan.Bind(to)
		if err != nil {
			return nil, err
		}
		// Fields and the record's own columns are filled by different writers of one row.
		at, err := with.bind(to)
		return &protoRows{message, at}, err
	}
	return t, nil
}

// protoRows are the Rows of a table declared by Proto.
type protoRows struct {
	message *wire.Decoder
	record  recordColumns
}

// Append implements declare.Rows.
func (p *protoRows) Append(_ context.Context, r declare.Record) (declare.Appended, error) {
	if r.Value == nil {
		return declare.Appended{}, errNoValue
	}
	value := r.Value
	// A frame begins with a zero byte, which no Protobuf message does.
	if registry.IsFramed(value) {
		var err error
		if value, err = registry.CutProtobufFrame(value); err != nil {
			return declare.Appended{}, err
		}
	}
	if err := p.message.Append(value); err != nil {
		return declare.Appended{}, err
	}
	return p.record.append(r), nil
}
