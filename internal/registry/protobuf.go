package registry

import (
	"fmt"
	"strings"

	"github.com/bufbuild/protocompile/parser"
	"github.com/bufbuild/protocompile/reporter"
	"github.com/jhump/protoreflect/v2/protoprint"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// protoText returns a file as the text of a .proto file without comments, which registries store.
// The text is deterministic.
func protoText(f protoreflect.FileDescriptor) (string, error) {
	p := protoprint.Printer{OmitComments: protoprint.CommentsAll, SortElements: false, Indent: "  "}
	text, err := p.PrintProtoToString(f)
	if err != nil {
		return "", fmt.Errorf("print %s as .proto file: %w", f.Path(), err)
	}
	return text, nil
}

// imports returns the files that a file imports, except those that every registry and client of
// Confluent's has built in.
func imports(f protoreflect.FileDescriptor) []protoreflect.FileDescriptor {
	var files []protoreflect.FileDescriptor
	for i := range f.Imports().Len() {
		file := f.Imports().Get(i).FileDescriptor
		if strings.HasPrefix(file.Path(), "google/protobuf/") || strings.HasPrefix(file.Path(), "google/type/") {
			continue
		}
		files = append(files, file)
	}
	return files
}

// parseProto parses a registered file for the names of its messages. Imports are ignored.
func parseProto(text string) (*descriptorpb.FileDescriptorProto, error) {
	handler := reporter.NewHandler(nil) // fails with the first error
	file, err := parser.Parse("schema.proto", strings.NewReader(text), handler)
	if err != nil {
		return nil, fmt.Errorf("parse .proto file: %w", err)
	}
	parsed, err := parser.ResultFromAST(file, false, handler)
	if err != nil {
		return nil, fmt.Errorf("parse .proto file: %w", err)
	}
	return parsed.FileDescriptorProto(), nil
}

// messageAt returns the full name of the message at an index path within a file.
func messageAt(f *descriptorpb.FileDescriptorProto, path []int) (string, error) {
	// Each index selects a message within the previous one, first within the file.
	name, messages := f.GetPackage(), f.GetMessageType()
	for _, i := range path {
		if i >= len(messages) {
			return "", fmt.Errorf("the schema has no message at %v", path)
		}
		if name != "" {
			name += "."
		}
		name += messages[i].GetName()
		messages = messages[i].GetNestedType()
	}
	return name, nil
}
