package client

import (
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
)

// message is a request or a response of any method. The type parameters of Connect's clients must
// be structs, so this one type is used for all.
type message struct{ proto.Message }

// commandResponse is implemented by the response of every command.
type commandResponse interface{ GetReceipt() *eventv1.Receipt }

// methodOf returns the method with this request if it changes something, or nil.
func methodOf(request protoreflect.MessageDescriptor) protoreflect.MethodDescriptor {
	services := request.ParentFile().Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			o, _ := m.Options().(*descriptorpb.MethodOptions)
			if m.Input() == request && o.GetIdempotencyLevel() != descriptorpb.MethodOptions_NO_SIDE_EFFECTS {
				return m
			}
		}
	}
	return nil
}

// method returns the client of a method. It is created at the method's first call. Two first calls
// at once may both create one; the same one is then used by both.
func (c *Client) method(m protoreflect.MethodDescriptor) (*connect.Client[message, message], error) {
	if call, ok := c.methods.Load(m.FullName()); ok {
		return call.(*connect.Client[message, message]), nil
	}
	output, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		return nil, fmt.Errorf("response type of %s: %w", m.FullName(), err)
	}
	if _, ok := output.Zero().Interface().(commandResponse); !ok {
		return nil, fmt.Errorf("%s is not a command: its response has no receipt", m.FullName())
	}
	procedure := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	options := append([]connect.ClientOption{
		connect.WithSchema(m), connect.WithCodec(codec{}),
		connect.WithResponseInitializer(func(_ connect.Spec, into any) error {
			if into, ok := into.(*message); ok {
				into.Message = output.New().Interface()
			}
			return nil
		}),
	}, c.options...)
	call, _ := c.methods.LoadOrStore(m.FullName(), connect.NewClient[message, message](c.http, c.url+procedure,
		options...))
	return call.(*connect.Client[message, message]), nil
}

// codec is Connect's binary codec for message.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) ([]byte, error) {
	m, ok := v.(*message)
	if !ok {
		return nil, fmt.Errorf("%T is not a message", v)
	}
	return proto.Marshal(m.Message)
}

func (codec) Unmarshal(data []byte, v any) error {
	m, ok := v.(*message)
	if !ok {
		return fmt.Errorf("%T is not a message", v)
	}
	return proto.Unmarshal(data, m.Message)
}
