// Package served keeps a sample of the vectors that were answered, and checks them later.
//
// Log writes the sample to Topic while vectors are served. Read reads the newest ones back, and
// Verify recomputes each by features.Group.Vector, from the events that precede its positions,
// those of the identity graph among them. The events come from elsewhere than the served values
// did: from the lake's tables, see Events. So a difference shows that a caller got something else
// than the definition says, such as a value that contains a later record, or one of another window.
//
// Invariants:
//
//   - Logging never delays an answer. What does not fit into the queue is dropped, and counted.
//   - Verify compares values to the last bit.
//   - Memory is bounded: by the number of vectors, and by the facts that Verify keeps at a time.
package served

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/features/persons"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/internal/kafka"
)

// Topic has the sample. The values of its records are millrace.features.v1.ServedVector.
const Topic = "millrace.features.served"

// Retention is how long Topic keeps records.
const Retention = 30 * 24 * time.Hour

// Vector is a served vector, and where its record is.
type Vector struct {
	Partition int32
	Offset    int64
	*featuresv1.ServedVector
}

// Place names the record.
func (v Vector) Place() string { return fmt.Sprintf("%s/%d@%d", Topic, v.Partition, v.Offset) }

// messageOf returns the message of a vector. It shares no memory with the vector, which is reused.
func messageOf(q *online.Query, v *online.Vector, at, now time.Time) *featuresv1.ServedVector {
	m := &featuresv1.ServedVector{
		Group: q.Group.Name, Version: uint32(q.Group.Version), Entity: v.Entity, Found: v.Found,
		At: timestamppb.New(at), ServedAt: timestamppb.New(now), Values: make([]*featuresv1.ServedValue, len(v.Values)),
	}
	for i := range v.Values {
		m.Values[i] = valueOf(q.Outputs[i].Name, v.Values[i])
	}
	topics := persons.Topics(q.Group)
	for _, t := range v.Positions.Topics {
		if !slices.Contains(topics, t.Topic) {
			continue
		}
		for partition, next := range t.Partitions {
			if next.Next >= 0 {
				m.Positions = append(m.Positions, &featuresv1.ServedPosition{
					Topic: t.Topic, Partition: int32(partition), NextOffset: next.Next})
			}
		}
	}
	return m
}

// valueOf returns the message of a value.
func valueOf(feature string, r exact.Result) *featuresv1.ServedValue {
	v := &featuresv1.ServedValue{Feature: feature}
	switch r.Kind {
	case exact.IntResult:
		v.Kind = &featuresv1.ServedValue_Integer{Integer: r.Int}
	case exact.FloatResult:
		v.Kind = &featuresv1.ServedValue_Number{Number: r.Float}
	case exact.TextResult:
		v.Kind = &featuresv1.ServedValue_Text{Text: r.Text}
	case exact.TextsResult:
		v.Kind = &featuresv1.ServedValue_Texts{Texts: &featuresv1.ServedTexts{Items: slices.Clone(r.Texts)}}
	}
	return v
}

// resultOf is the reverse of valueOf.
func resultOf(v *featuresv1.ServedValue) exact.Result {
	switch k := v.GetKind().(type) {
	case *featuresv1.ServedValue_Integer:
		return exact.Result{Kind: exact.IntResult, Int: k.Integer}
	case *featuresv1.ServedValue_Number:
		return exact.Result{Kind: exact.FloatResult, Float: k.Number}
	case *featuresv1.ServedValue_Text:
		return exact.Result{Kind: exact.TextResult, Text: k.Text}
	case *featuresv1.ServedValue_Texts:
		return exact.Result{Kind: exact.TextsResult, Texts: k.Texts.GetItems()}
	}
	return exact.Result{}
}

// record returns the record of a vector.
func record(m *featuresv1.ServedVector) (kafka.Record, error) {
	value, err := proto.Marshal(m)
	if err != nil {
		return kafka.Record{}, fmt.Errorf("marshal a vector of %s: %w", m.GetGroup(), err)
	}
	return kafka.Record{Topic: Topic, Partition: kafka.AnyPartition, Key: []byte(m.GetEntity()), Value: value,
		Headers: []event.Header{{Key: "content-type", Value: []byte(event.ContentType)}}}, nil
}

// decode reads the value of a record, and checks what Verify relies on.
func decode(value []byte) (*featuresv1.ServedVector, error) {
	m := &featuresv1.ServedVector{}
	if err := proto.Unmarshal(value, m); err != nil {
		return nil, fmt.Errorf("not a ServedVector: %w", err)
	}
	switch {
	case m.GetGroup() == "" || m.GetVersion() == 0:
		return nil, errors.New("group and version: missing")
	case m.GetEntity() == "":
		return nil, errors.New("entity: missing")
	case m.GetAt().CheckValid() != nil:
		return nil, fmt.Errorf("at: %w", m.GetAt().CheckValid())
	case m.GetServedAt().CheckValid() != nil:
		return nil, fmt.Errorf("served_at: %w", m.GetServedAt().CheckValid())
	case len(m.GetValues()) == 0:
		return nil, errors.New("values: none")
	}
	return m, nil
}
