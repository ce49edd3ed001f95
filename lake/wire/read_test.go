package wire_test

import (
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// This file reads rows back as messages, and computes the expected content of a message. It shares
// no code with the decoder.

// validate has Arrow validate a record at all levels.
func validate(rec arrow.RecordBatch) error {
	for i, col := range rec.Columns() {
		if err := validateArray(col); err != nil {
			return fmt.Errorf("column %s: %w", rec.ColumnName(i), err)
		}
	}
	return nil
}

func validateArray(a arrow.Array) error {
	if v, ok := a.(interface{ ValidateFull() error }); ok {
		if err := v.ValidateFull(); err != nil {
			return err
		}
	}
	switch a := a.(type) {
	case *array.Struct:
		for i := range a.NumField() {
			if err := validateArray(a.Field(i)); err != nil {
				return err
			}
			for row := range a.Len() {
				if a.IsNull(row) && a.Field(i).IsValid(row) {
					return fmt.Errorf("row %d is null, and its field %d is not", row, i)
				}
			}
		}
	case array.ListLike:
		return validateArray(a.ListValues())
	}
	return nil
}

// rowOf reads a row as a message.
func rowOf(tb testing.TB, md protoreflect.MessageDescriptor, rec arrow.RecordBatch, row int) *dynamicpb.Message {
	tb.Helper()
	r := reader{tb: tb}
	return r.message(md, func(name string) arrow.Array {
		i := rec.Schema().FieldIndices(name)
		if len(i) != 1 {
			tb.Fatalf("%d columns are called %s", len(i), name)
		}
		return rec.Column(i[0])
	}, row)
}

type reader struct {
	tb     testing.TB
	inside []protoreflect.FullName
}

func (r *reader) message(md protoreflect.MessageDescriptor, column func(string) arrow.Array, row int) *dynamicpb.Message {
	r.inside = append(r.inside, md.FullName())
	defer func() { r.inside = r.inside[:len(r.inside)-1] }()
	m := dynamicpb.NewMessage(md)
	for fd := range fieldsOf(md) {
		name := string(fd.Name())
		col := column(name)
		switch {
		case fd.IsList():
			if col.IsNull(row) {
				r.tb.Errorf("list %s is null", fd.FullName())
				continue
			}
			list := m.Mutable(fd).List()
			from, to := col.(array.ListLike).ValueOffsets(row)
			for i := from; i < to; i++ {
				list.Append(r.value(fd, col.(array.ListLike).ListValues(), nil, int(i)))
			}
		case fd.IsMap():
			if col.IsNull(row) {
				r.tb.Errorf("map %s is null", fd.FullName())
				continue
			}
			from, to := col.(*array.Map).ValueOffsets(row)
			entries := m.Mutable(fd).Map()
			for i := from; i < to; i++ {
				key := r.value(fd.MapKey(), col.(*array.Map).Keys(), nil, int(i)).MapKey()
				if entries.Has(key) {
					r.tb.Errorf("map %s has the key %v twice", fd.FullName(), key)
				}
				entries.Set(key, r.value(fd.MapValue(), col.(*array.Map).Items(), nil, int(i)))
			}
		case col.IsNull(row):
			if !fd.HasPresence() {
				r.tb.Errorf("%s is null, and cannot be absent", fd.FullName())
			}
		default:
			var currency arrow.Array
			if fd.Message() != nil && fd.Message().FullName() == "google.type.Money" {
				currency = column(name + "_currency")
			}
			m.Set(fd, r.value(fd, col, currency, row))
		}
	}
	return m
}

func (r *reader) value(fd protoreflect.FieldDescriptor, col arrow.Array, currency arrow.Array, i int) protoreflect.Value {
	if col.IsNull(i) {
		r.tb.Errorf("a value of %s is null in a list or a map", fd.FullName())
		return fd.Default()
	}
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(col.(*array.Boolean).Value(i))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(col.(*array.Int32).Value(i))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(col.(*array.Int64).Value(i)))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(col.(*array.Int64).Value(i))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(col.(*array.Decimal128).Value(i).BigInt().Uint64())
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(col.(*array.Float32).Value(i))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(col.(*array.Float64).Value(i))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(col.(*array.String).Value(i))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(slices.Clone(col.(*array.Binary).Value(i)))
	case protoreflect.EnumKind:
		text := col.(*array.String).Value(i)
		if v := fd.Enum().Values().ByName(protoreflect.Name(text)); v != nil {
			return protoreflect.ValueOfEnum(v.Number())
		}
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			r.tb.Errorf("%s has the value %q", fd.FullName(), text)
		}
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n))
	}
	m := dynamicpb.NewMessage(fd.Message())
	set := func(name string, v protoreflect.Value) {
		m.Set(m.Descriptor().Fields().ByName(protoreflect.Name(name)), v)
	}
	switch name := fd.Message().FullName(); {
	case name == "google.protobuf.Timestamp":
		at := col.(*array.Timestamp).Value(i).ToTime(arrow.Microsecond)
		set("seconds", protoreflect.ValueOfInt64(at.Unix()))
		set("nanos", protoreflect.ValueOfInt32(int32(at.Nanosecond())))
	case name == "google.protobuf.Duration":
		nanos := col.(*array.Int64).Value(i)
		set("seconds", protoreflect.ValueOfInt64(nanos/1e9))
		set("nanos", protoreflect.ValueOfInt32(int32(nanos%1e9)))
	case name == "google.type.Money":
		amount := col
		if group, inList := col.(*array.Struct); inList {
			amount, currency = group.Field(0), group.Field(1)
		}
		units, nanos := new(big.Int).QuoRem(amount.(*array.Decimal128).Value(i).BigInt(), big.NewInt(1e9), new(big.Int))
		set("units", protoreflect.ValueOfInt64(units.Int64()))
		set("nanos", protoreflect.ValueOfInt32(int32(nanos.Int64())))
		set("currency_code", protoreflect.ValueOfString(currency.(*array.String).Value(i)))
	case isWrapper(name):
		set("value", r.value(m.Descriptor().Fields().ByName("value"), col, nil, i))
	case slices.Contains(r.inside, name):
		if err := proto.Unmarshal(col.(*array.Binary).Value(i), m); err != nil {
			r.tb.Errorf("%s holds no %s: %v", fd.FullName(), name, err)
		}
	default:
		group := col.(*array.Struct)
		return protoreflect.ValueOfMessage(r.message(fd.Message(), func(name string) arrow.Array {
			n, ok := group.DataType().(*arrow.StructType).FieldIdx(name)
			if !ok {
				r.tb.Fatalf("%s has no field %s", fd.FullName(), name)
			}
			return group.Field(n)
		}, i))
	}
	return protoreflect.ValueOfMessage(m)
}

func isWrapper(name protoreflect.FullName) bool {
	return name.Parent() == "google.protobuf" && slices.Contains([]string{
		"BoolValue", "BytesValue", "StringValue", "Int32Value", "Int64Value", "UInt32Value", "UInt64Value", "FloatValue", "DoubleValue",
	}, string(name.Name()))
}

func fieldsOf(md protoreflect.MessageDescriptor) func(func(protoreflect.FieldDescriptor) bool) {
	return func(yield func(protoreflect.FieldDescriptor) bool) {
		for i := range md.Fields().Len() {
			if !yield(md.Fields().Get(i)) {
				return
			}
		}
	}
}

// expected returns the content that the columns must have of a message: without unknown fields, and
// with times in microseconds. Recursive messages keep everything.
func expected(m *dynamicpb.Message) *dynamicpb.Message {
	m = proto.Clone(m).(*dynamicpb.Message)
	walk(m, nil, func(m protoreflect.Message) {
		m.SetUnknown(nil)
		if fd := m.Descriptor().Fields().ByName("nanos"); m.Descriptor().FullName() == "google.protobuf.Timestamp" && m.Has(fd) {
			m.Set(fd, protoreflect.ValueOfInt32(int32(m.Get(fd).Int()/1000*1000)))
		}
	})
	return m
}

// walk visits a message and those in it, but not inside recursive ones.
func walk(m protoreflect.Message, inside []protoreflect.FullName, visit func(protoreflect.Message)) {
	visit(m)
	inside = append(slices.Clip(inside), m.Descriptor().FullName())
	each := func(v protoreflect.Value) {
		if !slices.Contains(inside, v.Message().Descriptor().FullName()) {
			walk(v.Message(), inside, visit)
		}
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap() && fd.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { each(v); return true })
		case fd.IsMap() || fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				each(v.List().Get(i))
			}
		default:
			each(v)
		}
		return true
	})
}

// placeable reports whether all values of a message fit their columns.
func placeable(m *dynamicpb.Message) bool {
	ok := true
	walk(m, nil, func(m protoreflect.Message) {
		get := func(name string) int64 { return m.Get(m.Descriptor().Fields().ByName(protoreflect.Name(name))).Int() }
		switch m.Descriptor().FullName() {
		case "google.protobuf.Timestamp":
			ok = ok && (&timestamppb.Timestamp{Seconds: get("seconds"), Nanos: int32(get("nanos"))}).IsValid()
		case "google.protobuf.Duration":
			d := &durationpb.Duration{Seconds: get("seconds"), Nanos: int32(get("nanos"))}
			sum := new(big.Int).Add(new(big.Int).Mul(big.NewInt(d.Seconds), big.NewInt(1e9)), big.NewInt(int64(d.Nanos)))
			ok = ok && d.IsValid() && sum.CmpAbs(new(big.Int).SetUint64(1<<63)) < 0
		case "google.type.Money":
			u, n := get("units"), get("nanos")
			ok = ok && n > -1e9 && n < 1e9 && (u <= 0 || n >= 0) && (u >= 0 || n <= 0)
		}
	})
	return ok
}

// unknownOf returns a message with the unknown fields of m only, at their places, or nil if there
// are none.
func unknownOf(m protoreflect.Message, inside []protoreflect.FullName) protoreflect.Message {
	out := dynamicpb.NewMessage(m.Descriptor())
	out.SetUnknown(m.GetUnknown())
	some := len(m.GetUnknown()) > 0
	inside = append(slices.Clip(inside), m.Descriptor().FullName())
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		value := fd
		if fd.IsMap() {
			value = fd.MapValue()
		}
		if value.Message() == nil || slices.Contains(inside, value.Message().FullName()) {
			return true
		}
		switch {
		case fd.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				if u := unknownOf(v.Message(), inside); u != nil {
					out.Mutable(fd).Map().Set(k, protoreflect.ValueOfMessage(u))
					some = true
				}
				return true
			})
		case fd.IsList():
			elements, found := make([]protoreflect.Message, v.List().Len()), false
			for i := range elements {
				elements[i] = unknownOf(v.List().Get(i).Message(), inside)
				found = found || elements[i] != nil
			}
			for _, u := range elements {
				if !found {
					break
				}
				if u == nil {
					u = dynamicpb.NewMessage(value.Message())
				}
				out.Mutable(fd).List().Append(protoreflect.ValueOfMessage(u))
			}
			some = some || found
		default:
			if u := unknownOf(v.Message(), inside); u != nil {
				out.Set(fd, protoreflect.ValueOfMessage(u))
				some = true
			}
		}
		return true
	})
	if !some {
		return nil
	}
	return out
}

// checkRow compares a row with the message from which it was made.
func checkRow(tb testing.TB, want *dynamicpb.Message, rec arrow.RecordBatch, row int) {
	tb.Helper()
	if got, want := rowOf(tb, want.Descriptor(), rec, row), expected(want); !proto.Equal(got, want) {
		tb.Errorf("row %d says\n\t%v, not\n\t%v", row, got, want)
	}
	cell := rec.Column(rec.Schema().FieldIndices("_unknown")[0]).(*array.Binary)
	unknown := unknownOf(want, nil)
	if cell.IsNull(row) || unknown == nil {
		if cell.IsNull(row) != (unknown == nil) {
			tb.Errorf("row %d: the unknown is %x in place of %v", row, cell.Value(row), unknown)
		}
		return
	}
	got, err := parse(want.Descriptor(), cell.Value(row))
	if err != nil && !required(want.Descriptor()) {
		tb.Errorf("row %d: the unknown is no message: %v", row, err)
	}
	if !proto.Equal(got, unknown.Interface()) {
		tb.Errorf("row %d: the unknown says\n\t%v, not\n\t%v", row, got, unknown)
	}
	if number, _, n := protowire.ConsumeField(cell.Value(row)); n < 0 || number == 0 {
		tb.Errorf("row %d: the unknown is %x", row, cell.Value(row))
	}
}

func required(md protoreflect.MessageDescriptor) bool {
	return md.ParentFile().Syntax() == protoreflect.Proto2
}
