// Package foreign makes tables of topics that are not Millrace's own, so that the lander serves whoever has a Kafka: the columns
// follow from a Protobuf message that the topic's values are, from the schemas that a registry has of them, or, where they are JSON, from
// the values themselves.
package foreign

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

	_ "google.golang.org/genproto/googleapis/type/money" // google/type/money.proto, which people import without having it
)

// Message finds the description of a message. The file is a .proto file, which may import what lies in its folder or in the
// folders given, or a set of descriptors as protoc and buf write them (.binpb, .pb, .desc). The name may leave out the package.
func Message(ctx context.Context, file, name string, folders ...string) (protoreflect.MessageDescriptor, error) {
	files, err := describe(ctx, file, folders)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	var found []protoreflect.MessageDescriptor
	var all []string
	files.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for md := range messages(f.Messages()) {
			full := string(md.FullName())
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
		return nil, fmt.Errorf("%s has no message %q; it has %s", file, name, strings.Join(all, ", "))
	}
	return nil, fmt.Errorf("%s has %d messages that are called %q: name the package too", file, len(found), name)
}

// messages yields messages, and those declared inside of them.
func messages(in protoreflect.MessageDescriptors) func(func(protoreflect.MessageDescriptor) bool) {
	return func(yield func(protoreflect.MessageDescriptor) bool) {
		for i := range in.Len() {
			md := in.Get(i)
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

func describe(ctx context.Context, file string, folders []string) (*protoregistry.Files, error) {
	if filepath.Ext(file) != ".proto" {
		b, err := os.ReadFile(file) //nolint:gosec // the file that the user names
		if err != nil {
			return nil, err
		}
		var set descriptorpb.FileDescriptorSet
		if err := proto.Unmarshal(b, &set); err != nil || len(set.File) == 0 {
			return nil, errors.Join(errors.New("it is neither a .proto file nor a set of descriptors"), err)
		}
		return protodesc.NewFiles(&set)
	}
	known := protocompile.ResolverFunc(func(path string) (protocompile.SearchResult, error) {
		f, err := protoregistry.GlobalFiles.FindFileByPath(path)
		return protocompile.SearchResult{Desc: f}, err
	})
	c := protocompile.Compiler{
		SourceInfoMode: protocompile.SourceInfoStandard, // comments become the columns' descriptions
		Resolver: protocompile.CompositeResolver{
			&protocompile.SourceResolver{ImportPaths: append([]string{filepath.Dir(file)}, folders...)}, known,
		},
	}
	compiled, err := c.Compile(ctx, filepath.Base(file))
	if err != nil {
		return nil, err
	}
	files := new(protoregistry.Files)
	for _, f := range compiled {
		if err := files.RegisterFile(f); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// declare is what all tables of foreign topics have in common.
func declared(name lake.Name, topic, doc string) declare.Table {
	return declare.Table{Name: name[len(name)-1], Namespace: strings.Join(name[:len(name)-1], "."), Topic: topic, Origin: origin, Doc: doc}
}

// errNoValue is of a record that takes its key away from a compacted topic.
var errNoValue = errors.New("the record has no value: it takes its key away from a compacted topic, which a table of events cannot say")

// Proto is the table that a topic of Protobuf messages lands in: a column for each field, and where each row comes from. Values
// may be plain, or framed for a schema registry.
func Proto(name lake.Name, topic string, md protoreflect.MessageDescriptor, options ...Option) (declare.Table, error) {
	with := layoutOf(options)
	t := declared(name, topic, fmt.Sprintf("Every %s on the topic %s.", md.FullName(), topic))
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
		at, err := with.placeIn(to)
		return &protoRows{message, at}, err
	}
	return t, nil
}

type protoRows struct {
	message *wire.Decoder
	place   place
}

// Append implements lake.Rows.
func (p *protoRows) Append(_ context.Context, r declare.Record) (declare.Appended, error) {
	if r.Value == nil {
		return declare.Appended{}, errNoValue
	}
	value := r.Value
	if registry.IsFramed(value) {
		var err error
		if value, err = registry.CutProtobufFrame(value); err != nil {
			return declare.Appended{}, err
		}
	}
	if err := p.message.Append(value); err != nil {
		return declare.Appended{}, err
	}
	return p.place.append(r), nil
}
