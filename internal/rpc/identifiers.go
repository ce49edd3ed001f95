package rpc

import (
	"fmt"
	"strings"
	"sync"

	validate "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
)

// This is the only place where identifiers in requests are converted to the form that stores, views
// and tokens use. So services can compare identifiers directly. The contract of a field says how it
// is converted.

// step is what is done with one field.
type step struct {
	field protoreflect.FieldDescriptor
	// apply returns the value to continue with, and what is wrong with it. It is nil for a message
	// with sub-steps.
	apply func(*normalizer, protoreflect.Value) (protoreflect.Value, string)
	sub   []step // for a message of this contract
}

// normalizer has the settings that steps need, and collects violations.
type normalizer struct {
	currencies event.Currencies
	violations []*validate.Violation
}

var plans sync.Map // []step, by protoreflect.FullName; bounded by the number of request types

// planOf returns the steps of a message type. It caches them. So the descriptors and options of a
// type are read once, and a request costs only its steps.
func planOf(md protoreflect.MessageDescriptor) []step {
	if plan, ok := plans.Load(md.FullName()); ok {
		return plan.([]step)
	}
	var plan []step
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		s := step{field: fd}
		switch {
		// Maps are left as they are.
		case fd.IsMap():
		case fd.Message() != nil && fd.Message().FullName() == "google.type.Money":
			s.apply = checkMoney
		case fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Timestamp":
			s.apply = checkTime
		case fd.Message() != nil && strings.HasPrefix(string(fd.Message().FullName()), "millrace."): // not recursive
			s.sub = planOf(fd.Message())
		case fd.Kind() == protoreflect.StringKind:
			s.apply = textStep(fd)
		}
		if s.apply != nil || len(s.sub) > 0 {
			plan = append(plan, s)
		}
	}
	// Two requests may compute the same plan at once. Either result is right.
	plans.Store(md.FullName(), plan)
	return plan
}

// textStep returns the step of a string field, or nil. UUIDs are recognised by their rule of
// validation, and other identifiers by an option of the contract.
func textStep(fd protoreflect.FieldDescriptor) func(*normalizer, protoreflect.Value) (protoreflect.Value, string) {
	rules, _ := proto.GetExtension(fd.Options(), validate.E_Field).(*validate.FieldRules)
	if rules.GetString().GetUuid() {
		return func(_ *normalizer, v protoreflect.Value) (protoreflect.Value, string) {
			return protoreflect.ValueOfString(event.CanonicalID(v.String())), ""
		}
	}
	kind, _ := proto.GetExtension(fd.Options(), eventv1.E_Identifier).(eventv1.Identifier)
	switch kind {
	case eventv1.Identifier_IDENTIFIER_NAME:
		return func(_ *normalizer, v protoreflect.Value) (protoreflect.Value, string) {
			name := event.CanonicalName(v.String())
			if err := event.CheckName(name); err != nil {
				return v, err.Error()
			}
			return protoreflect.ValueOfString(name), ""
		}
	case eventv1.Identifier_IDENTIFIER_LOOKUP:
		return func(_ *normalizer, v protoreflect.Value) (protoreflect.Value, string) {
			return protoreflect.ValueOfString(event.CanonicalName(v.String())), ""
		}
	case eventv1.Identifier_IDENTIFIER_CURRENCY:
		return func(n *normalizer, v protoreflect.Value) (protoreflect.Value, string) {
			return v, n.unknownCurrency(v.String())
		}
	case eventv1.Identifier_IDENTIFIER_UNSPECIFIED:
	}
	return nil
}

// unknownCurrency returns what is wrong with a currency's code, or "".
func (n *normalizer) unknownCurrency(code string) string {
	if _, known := n.currencies.Decimals(code); known {
		return ""
	}
	return fmt.Sprintf("%q is not an ISO 4217 currency (commands.currencies adds others)", code)
}

// checkMoney checks currency and decimals. It leaves malformed amounts to the domain.
func checkMoney(n *normalizer, v protoreflect.Value) (protoreflect.Value, string) {
	m, ok := v.Message().Interface().(*money.Money)
	if !ok || event.ValidateMoney(m) != nil {
		return v, ""
	}
	if why := n.unknownCurrency(m.GetCurrencyCode()); why != "" {
		return v, why
	}
	if !n.currencies.Fits(m) {
		decimals, _ := n.currencies.Decimals(m.GetCurrencyCode())
		return v, fmt.Sprintf("%s has more than the %d decimals of %s (commands.currencies allows more)",
			event.MoneyString(m), decimals, m.GetCurrencyCode())
	}
	return v, ""
}

// checkTime refuses times outside of the years 1 to 9999. RFC 3339 cannot represent them.
func checkTime(_ *normalizer, v protoreflect.Value) (protoreflect.Value, string) {
	if t, ok := v.Message().Interface().(*timestamppb.Timestamp); ok && !t.IsValid() {
		return v, "not a time in the years 1 to 9999 with 0 to 999999999 nanoseconds"
	}
	return v, ""
}

// normalize converts the identifiers of a request, in place, to their canonical form. It returns
// those that are refused.
func normalize(m proto.Message, currencies event.Currencies) []*validate.Violation {
	n := &normalizer{currencies: currencies}
	n.message(m.ProtoReflect(), planOf(m.ProtoReflect().Descriptor()), nil)
	return n.violations
}

// pathElement is a field on the path from the request to a value, with the index if the field is a
// list.
type pathElement struct {
	field protoreflect.FieldDescriptor
	index int
}

// message applies a plan to a message.
func (n *normalizer) message(m protoreflect.Message, plan []step, path []pathElement) {
	for _, s := range plan {
		// Missing fields are left to the rules of validation.
		if !m.Has(s.field) {
			continue
		}
		value := m.Get(s.field)
		if !s.field.IsList() {
			// append may share path's array between siblings. That is safe: fieldPath copies it.
			if changed, is := n.value(s, value, append(path, pathElement{field: s.field})); is {
				m.Set(s.field, changed)
			}
			continue
		}
		list := value.List()
		for i := range list.Len() {
			if changed, is := n.value(s, list.Get(i), append(path, pathElement{s.field, i})); is {
				list.Set(i, changed)
			}
		}
	}
}

// value applies a step to a value. It reports whether the value has changed. Messages are changed
// in place, so only scalars need to be set again.
func (n *normalizer) value(s step, v protoreflect.Value, path []pathElement) (protoreflect.Value, bool) {
	if s.sub != nil {
		n.message(v.Message(), s.sub, path)
		return v, false
	}
	now, wrong := s.apply(n, v)
	if wrong != "" {
		n.violations = append(n.violations, &validate.Violation{Field: fieldPath(path), Message: proto.String(wrong)})
	}
	return now, s.field.Message() == nil && now.String() != v.String()
}

// fieldPath converts a path to the form of validation errors.
func fieldPath(path []pathElement) *validate.FieldPath {
	p := &validate.FieldPath{}
	for _, at := range path {
		element := &validate.FieldPathElement{FieldNumber: proto.Int32(int32(at.field.Number())),
			FieldName: proto.String(string(at.field.Name()))}
		if at.field.IsList() {
			element.Subscript = &validate.FieldPathElement_Index{Index: uint64(at.index)}
		}
		p.Elements = append(p.Elements, element)
	}
	return p
}
