package registry

import (
	"context"
	"fmt"

	"github.com/bufbuild/protocompile"
	"github.com/twmb/franz-go/pkg/sr"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "google.golang.org/genproto/googleapis/type/money" // google/type/money.proto, which registries do not have
)

// Schema is a registered schema of any writer, with everything that is needed to read its values.
type Schema struct {
	ID   int
	Type string // "AVRO", "PROTOBUF", "JSON"
	Text string
	// References are the schemas that it refers to, each after its own references.
	References []Reference
}

// Reference is a schema under the name by which others refer to it. For Protobuf, that is the
// import path.
type Reference struct{ Name, Text string }

// Types of schemas.
const (
	TypeAvro     = "AVRO"
	TypeProtobuf = "PROTOBUF"
	TypeJSON     = "JSON"
)

// maxReferences limits the number of direct and indirect references of a schema.
const maxReferences = 1000

// Schema returns the schema with an id. The error wraps ErrUnavailable if the caller should retry.
func (c *Client) Schema(ctx context.Context, id int) (Schema, error) {
	s, err := c.schema(ctx, id)
	if err != nil {
		return Schema{}, err
	}
	return c.withReferences(ctx, id, s)
}

// Latest returns the newest schema of a subject. Errors are as for Schema.
func (c *Client) Latest(ctx context.Context, subject string) (Schema, error) {
	s, err := c.api.SchemaByVersion(ctx, subject, -1)
	if err = c.recordOutcome(ctx, err); err != nil {
		return Schema{}, fmt.Errorf("the newest schema of subject %s: %w", subject, err)
	}
	return c.withReferences(ctx, s.ID, s.Schema)
}

// withReferences returns a schema with all of its references.
func (c *Client) withReferences(ctx context.Context, id int, s sr.Schema) (Schema, error) {
	out := Schema{ID: id, Type: s.Type.String(), Text: s.Schema}
	err := c.fetchReferences(ctx, &out, s.References, map[string]bool{})
	if err != nil {
		return Schema{}, fmt.Errorf("schema %d: %w", id, err)
	}
	return out, nil
}

// fetchReferences appends the references of a schema to into, recursively.
func (c *Client) fetchReferences(ctx context.Context, into *Schema, refer []sr.SchemaReference,
	seen map[string]bool) error {
	for _, r := range refer {
		if seen[r.Name] {
			continue
		}
		// Other systems write these schemas, so the work is bounded.
		if seen[r.Name] = true; len(seen) > maxReferences {
			return fmt.Errorf("more than %d references", maxReferences)
		}
		s, err := c.api.SchemaByVersion(ctx, r.Subject, r.Version)
		if err = c.recordOutcome(ctx, err); err != nil {
			return fmt.Errorf("reference %s, version %d of subject %s: %w", r.Name, r.Version, r.Subject, err)
		}
		if err := c.fetchReferences(ctx, into, s.References, seen); err != nil {
			return err
		}
		into.References = append(into.References, Reference{r.Name, s.Schema.Schema})
	}
	return nil
}

// Subject returns the default subject of a topic's values.
func Subject(topic string) string { return subject(topic) }

// CutFrame removes Confluent's frame from a value. It returns the schema's id and the rest.
func CutFrame(value []byte) (id int, rest []byte, err error) {
	if !IsFramed(value) {
		return 0, nil, fmt.Errorf("not framed for a schema registry: the value begins with %.1q, want a byte 0", value)
	}
	return cutFrame(value)
}

// CutMessage removes the message index between the frame and a Protobuf message. It returns the
// index path of the message type in its file, such as [0].
func CutMessage(rest []byte) (path []int, message []byte, err error) {
	path, message, err = cutPath(rest)
	if path == nil {
		path = []int{0}
	}
	return path, message, err
}

// CompileProto compiles a Protobuf schema.
func CompileProto(ctx context.Context, s Schema) (protoreflect.FileDescriptor, error) {
	const name = "schema.proto"
	texts := map[string]string{name: s.Text}
	for _, r := range s.References {
		texts[r.Name] = r.Text
	}
	// Google's common types are linked in, and registries do not have them.
	known := protocompile.ResolverFunc(func(path string) (protocompile.SearchResult, error) {
		f, err := protoregistry.GlobalFiles.FindFileByPath(path)
		return protocompile.SearchResult{Desc: f}, err
	})
	c := protocompile.Compiler{
		SourceInfoMode: protocompile.SourceInfoStandard, // keep comments, which become the columns' descriptions
		Resolver: protocompile.CompositeResolver{
			&protocompile.SourceResolver{Accessor: protocompile.SourceAccessorFromMap(texts)}, known,
		},
	}
	files, err := c.Compile(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("compile .proto file: %w", err)
	}
	return files[0], nil
}

// MessageAt returns the message at an index path within a file.
func MessageAt(f protoreflect.FileDescriptor, path []int) (protoreflect.MessageDescriptor, error) {
	var found protoreflect.MessageDescriptor
	messages := f.Messages()
	for _, i := range path {
		if i < 0 || i >= messages.Len() {
			return nil, fmt.Errorf("the schema has no message at %v", path)
		}
		found = messages.Get(i)
		messages = found.Messages()
	}
	if found == nil {
		return nil, fmt.Errorf("the schema has no message at %v", path)
	}
	return found, nil
}
