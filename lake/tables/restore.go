package tables

import (
	"fmt"
	"iter"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/wire"
)

// restoredColumns are the columns of the message, and that of the fields which it does not know.
var restoredColumns = func() (names []string) {
	for _, f := range behaviorPlan.Fields() {
		names = append(names, f.Name)
	}
	return names
}()

// restoreBehavior returns the events of rows of BehaviorEvents. The table does not keep the bytes of
// a message, as those of aggregates do, so the message is put together from its columns. Its times
// then have whole microseconds, as those of the envelope.
func restoreBehavior(rec arrow.RecordBatch) (iter.Seq2[event.Event, error], error) {
	var setters []setter
	fields := (*behaviorv1.BehaviorEvent)(nil).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		set, err := setterOf(fields.Get(i), rec)
		if err != nil {
			return nil, err
		}
		setters = append(setters, set)
	}
	unknown, err := declare.ColumnOf[*array.Binary](rec, wire.UnknownColumn)
	if err != nil {
		return nil, err
	}
	return func(yield func(event.Event, error) bool) {
		for row := range int(rec.NumRows()) {
			m := &behaviorv1.BehaviorEvent{}
			for _, set := range setters {
				set(m.ProtoReflect(), row)
			}
			err := proto.UnmarshalOptions{Merge: true}.Unmarshal(unknown.Value(row), m)
			var e event.Event
			if err == nil {
				e, err = behavior.Envelope(m)
			}
			if !yield(e, err) {
				return
			}
		}
	}, nil
}

// setter sets a field of a message to the value in a row.
type setter func(to protoreflect.Message, row int)

// setterOf returns the setter of a field, for the kinds of fields that BehaviorEvent has.
func setterOf(f protoreflect.FieldDescriptor, rec arrow.RecordBatch) (setter, error) {
	name := string(f.Name())
	switch {
	case f.IsMap() && f.MapKey().Kind() == protoreflect.StringKind && f.MapValue().Kind() == protoreflect.BoolKind:
		c, err := declare.ColumnOf[*array.Map](rec, name)
		if err != nil {
			return nil, err
		}
		keys, isText := c.Keys().(*array.String)
		values, isBool := c.Items().(*array.Boolean)
		if !isText || !isBool {
			return nil, fmt.Errorf("column %s is %s", name, c.DataType())
		}
		return func(to protoreflect.Message, row int) {
			for begin, end := c.ValueOffsets(row); begin < end; begin++ {
				key := strings.Clone(keys.Value(int(begin)))
				to.Mutable(f).Map().Set(protoreflect.ValueOfString(key).MapKey(),
					protoreflect.ValueOfBool(values.Value(int(begin))))
			}
		}, nil
	case f.IsList() && f.Kind() == protoreflect.StringKind:
		c, err := declare.ColumnOf[*array.List](rec, name)
		if err != nil {
			return nil, err
		}
		values, isText := c.ListValues().(*array.String)
		if !isText {
			return nil, fmt.Errorf("column %s is %s", name, c.DataType())
		}
		return func(to protoreflect.Message, row int) {
			for begin, end := c.ValueOffsets(row); begin < end; begin++ {
				to.Mutable(f).List().Append(protoreflect.ValueOfString(strings.Clone(values.Value(int(begin)))))
			}
		}, nil
	case f.Kind() == protoreflect.StringKind:
		c, err := declare.ColumnOf[*array.String](rec, name)
		if err != nil {
			return nil, err
		}
		return func(to protoreflect.Message, row int) {
			if text := c.Value(row); text != "" {
				to.Set(f, protoreflect.ValueOfString(strings.Clone(text)))
			}
		}, nil
	case f.Message() != nil && f.Message().FullName() == "google.protobuf.Timestamp":
		c, err := declare.ColumnOf[*array.Timestamp](rec, name)
		if err != nil {
			return nil, err
		}
		return func(to protoreflect.Message, row int) {
			if !c.IsNull(row) {
				at := timestamppb.New(c.Value(row).ToTime(arrow.Microsecond))
				to.Set(f, protoreflect.ValueOfMessage(at.ProtoReflect()))
			}
		}, nil
	}
	return nil, fmt.Errorf("field %s: a %s cannot be restored from its column", name, f.Kind())
}
