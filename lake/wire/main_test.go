package wire_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/bufbuild/protocompile"
	"go.uber.org/goleak"
	_ "google.golang.org/genproto/googleapis/type/money" // linked in for the files that import it
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	everything = messageOf("testdata/everything.proto", "test.v1.Everything")
	legacy     = messageOf("testdata/legacy.proto", "test.legacy.Legacy")
	flat       = messageOf("testdata/flat.proto", "test.flat.Event")
	wide       = wideMessage()
)

// wideMessage has more fields than a machine word has bits.
func wideMessage() protoreflect.MessageDescriptor {
	var text strings.Builder
	text.WriteString("syntax = \"proto3\"; package test.wide; message Wide {")
	for i := 1; i <= 70; i++ {
		fmt.Fprintf(&text, "optional int64 a%d = %d; int32 b%d = %d; ", i, 2*i, i, 2*i+1)
	}
	text.WriteString("}")
	file, err := compileProto(text.String())
	if err != nil {
		panic(err)
	}
	return file.Messages().Get(0)
}

// messageOf compiles a file and returns a message in it.
func messageOf(path string, name protoreflect.FullName) protoreflect.MessageDescriptor {
	text, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	file, err := compileProto(string(text))
	if err != nil {
		panic(err)
	}
	return file.Messages().ByName(name.Name())
}

// compileProto compiles the text of a .proto file. Imports are resolved among linked-in files.
func compileProto(text string) (protoreflect.FileDescriptor, error) {
	c := protocompile.Compiler{
		SourceInfoMode: protocompile.SourceInfoStandard,
		Resolver: protocompile.CompositeResolver{
			&protocompile.SourceResolver{Accessor: protocompile.SourceAccessorFromMap(map[string]string{"test.proto": text})},
			protocompile.ResolverFunc(func(path string) (protocompile.SearchResult, error) {
				f, err := protoregistry.GlobalFiles.FindFileByPath(path)
				return protocompile.SearchResult{Desc: f}, err
			}),
		},
	}
	files, err := c.Compile(context.Background(), "test.proto")
	if err != nil {
		return nil, err
	}
	return files[0], nil
}

// table is a plan with its columns.
type table struct {
	*wire.Decoder
	plan    *wire.Plan
	columns *columnar.Columns
}

func newTable(tb testing.TB, md protoreflect.MessageDescriptor) table {
	tb.Helper()
	plan, err := wire.Compile(md, wire.Options{Unknown: wire.UnknownColumn})
	if err != nil {
		tb.Fatal(err)
	}
	return tableOf(tb, plan)
}

func tableOf(tb testing.TB, plan *wire.Plan) table {
	tb.Helper()
	columns, err := columnar.New(plan.Fields())
	if err != nil {
		tb.Fatal(err)
	}
	d, err := plan.Bind(columns)
	if err != nil {
		tb.Fatal(err)
	}
	return table{d, plan, columns}
}

// record returns all rows as an Arrow record, after validation by Arrow.
func (t table) record(tb testing.TB) arrow.RecordBatch {
	tb.Helper()
	rec := t.columns.Record()
	if err := validate(rec); err != nil {
		tb.Fatal(err)
	}
	return rec
}

func marshal(tb testing.TB, m proto.Message) []byte {
	tb.Helper()
	b, err := proto.MarshalOptions{AllowPartial: true, Deterministic: true}.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// parse returns the result of proto.Unmarshal, with the depth that every implementation supports,
// and extensions as unknown fields.
func parse(md protoreflect.MessageDescriptor, b []byte) (m *dynamicpb.Message, err error) {
	defer func() {
		if recover() != nil {
			err = errPanicked
		}
	}()
	m = dynamicpb.NewMessage(md)
	return m, proto.UnmarshalOptions{RecursionLimit: 100, Resolver: new(protoregistry.Types)}.Unmarshal(b, m)
}

// errPanicked reports that there is nothing to compare with: proto.Unmarshal (v1.36.12) panics for
// a dynamic message with a map entry whose key occurs twice, the second time with another wire
// type.
var errPanicked = errors.New("proto.Unmarshal panicked")
