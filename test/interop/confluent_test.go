package interop_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"github.com/confluentinc/confluent-kafka-go/v2/schemaregistry"
	"github.com/confluentinc/confluent-kafka-go/v2/schemaregistry/serde"
	"github.com/confluentinc/confluent-kafka-go/v2/schemaregistry/serde/avrov2"
	"github.com/confluentinc/confluent-kafka-go/v2/schemaregistry/serde/protobuf"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/registry"
)

// TestConfluentClientsReadOurTopics reads the relay's records with Confluent's clients and their
// own deserializers, and compares the content.
func TestConfluentClientsReadOurTopics(t *testing.T) {
	t.Parallel()
	for codec, contentType := range map[registry.Codec]string{registry.Avro: "application/avro",
		registry.Protobuf: "application/protobuf"} {
		t.Run(string(codec), func(t *testing.T) {
			t.Parallel()
			s := newShop(t)
			s.appendOrders(t, 40)
			s.publish(t, codec)
			t.Run("Go", func(t *testing.T) {
				t.Parallel()
				s.compare(t, codec, contentType, s.readWithGo(t, codec))
			})
			t.Run("Python", func(t *testing.T) {
				t.Parallel()
				s.compare(t, codec, contentType, s.readWithPython(t, codec))
			})
		})
	}
}

// externalValue is a value as an external client reads it.
type externalValue struct {
	Partition   int32  `json:"partition"`
	Offset      int64  `json:"offset"`
	ContentType string `json:"content_type"`
	Value       any    `json:"value"` // the bytes of a message in hexadecimal, or the content of an Avro value in the form of expected
}

// compare checks that the values are those of all events.
func (s *shop) compare(t *testing.T, codec registry.Codec, contentType string, values []externalValue) {
	t.Helper()
	want := map[string]int{}
	for _, e := range s.events {
		var m orderv1.OrderEvent
		if err := proto.Unmarshal(e.Data, &m); err != nil {
			t.Fatal(err)
		}
		if codec == registry.Protobuf {
			want[text(t, hex.EncodeToString(e.Data))]++
			continue
		}
		expect := expected(m.ProtoReflect()).(map[string]any)
		expect["_unknown"] = nil
		want[text(t, expect)]++
	}
	for _, v := range values {
		if v.ContentType != contentType {
			t.Errorf("the content type is %q, want %q", v.ContentType, contentType)
		}
		if want[text(t, v.Value)]--; want[text(t, v.Value)] < 0 {
			t.Errorf("%d/%d is not a published event: %s", v.Partition, v.Offset, text(t, v.Value))
		}
	}
	if len(values) != len(s.events) {
		t.Errorf("read %d values, want %d", len(values), len(s.events))
	}
}

func text(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// expected returns what a reader of Avro must find for a message: fields by name, null for absent
// ones, times as microseconds, amounts with nine decimals, and numbers as text. It is written
// independently of the encoder.
func expected(m protoreflect.Message) any {
	switch m := m.Interface().(type) {
	case *timestamppb.Timestamp:
		return strconv.FormatInt(m.AsTime().UnixMicro(), 10)
	case *money.Money:
		amount := new(big.Rat).SetFrac64(int64(m.GetNanos()), 1_000_000_000)
		amount.Add(amount, new(big.Rat).SetInt64(m.GetUnits()))
		return map[string]any{"currency_code": m.GetCurrencyCode(), "amount": amount.FloatString(9)}
	}
	record := map[string]any{}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		name := string(f.Name())
		switch {
		case f.IsList():
			items := []any{}
			for j := range m.Get(f).List().Len() {
				items = append(items, expectedValue(f, m.Get(f).List().Get(j)))
			}
			record[name] = items
		case f.HasPresence() && !m.Has(f):
			record[name] = nil
		default:
			record[name] = expectedValue(f, m.Get(f))
		}
	}
	return record
}

func expectedValue(f protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return expected(v.Message())
	case protoreflect.StringKind:
		return v.String()
	default:
		return fmt.Sprint(v.Interface())
	}
}

func (s *shop) readWithGo(t *testing.T, codec registry.Codec) []externalValue {
	t.Helper()
	client, err := schemaregistry.NewClient(schemaregistry.NewConfig(s.url))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	var decode func(value []byte) (any, error)
	if codec == registry.Avro {
		d, err := avrov2.NewDeserializer(client, serde.ValueSerde, avrov2.NewDeserializerConfig())
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close() //nolint:errcheck // it closes nothing but the client
		decode = func(value []byte) (any, error) {
			var into map[string]any
			err := d.DeserializeInto(event.Order.Topic, value, &into)
			return plain(into), err
		}
	} else {
		d, err := protobuf.NewDeserializer(client, serde.ValueSerde, protobuf.NewDeserializerConfig())
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close() //nolint:errcheck // it closes nothing but the client
		if err := d.ProtoRegistry.RegisterMessage((&orderv1.OrderEvent{}).ProtoReflect().Type()); err != nil {
			t.Fatal(err)
		}
		decode = func(value []byte) (any, error) {
			m, err := d.Deserialize(event.Order.Topic, value)
			if err != nil {
				return nil, err
			}
			b, err := proto.Marshal(m.(proto.Message))
			return hex.EncodeToString(b), err
		}
	}

	consumer, err := kafka.NewConsumer(&kafka.ConfigMap{
		"bootstrap.servers": s.kafka.Brokers, "group.id": "go", "auto.offset.reset": "earliest", "isolation.level": "read_committed", "enable.partition.eof": true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := consumer.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := consumer.Assign([]kafka.TopicPartition{{Topic: &event.Order.Topic, Partition: 0, Offset: 0},
		{Topic: &event.Order.Topic, Partition: 1, Offset: 0}}); err != nil {
		t.Fatal(err)
	}
	var values []externalValue
	for ended := 0; ended < 2; {
		switch e := consumer.Poll(int(30 * time.Second / time.Millisecond)).(type) {
		case *kafka.Message:
			v, err := decode(e.Value)
			if err != nil {
				t.Fatal(err)
			}
			out := externalValue{Partition: e.TopicPartition.Partition, Offset: int64(e.TopicPartition.Offset),
				Value: v}
			for _, h := range e.Headers {
				if h.Key == "content-type" {
					out.ContentType = string(h.Value)
				}
			}
			values = append(values, out)
		case kafka.PartitionEOF:
			ended++
		case kafka.Error:
			t.Fatal(e)
		case nil:
			t.Fatal("no record within 30 s")
		}
	}
	return values
}

// plain converts the values of Avro's Go library to the form of expected.
func plain(v any) any {
	switch v := v.(type) {
	case nil:
		return nil
	case time.Time:
		return strconv.FormatInt(v.UnixMicro(), 10)
	case *big.Rat:
		return v.FloatString(9)
	case string:
		return v
	case []byte:
		return hex.EncodeToString(v)
	case map[string]any:
		out := map[string]any{}
		for name, item := range v {
			out[name] = plain(item)
		}
		if len(out) == 1 { // a branch of a union is keyed by the name of its type
			for name, item := range out {
				if bytes.ContainsRune([]byte(name), '.') || name == "string" || name == "long" {
					return item
				}
			}
		}
		return out
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Pointer:
		if r.IsNil() {
			return nil
		}
		return plain(r.Elem().Interface())
	case reflect.Slice:
		items := []any{}
		for i := range r.Len() {
			items = append(items, plain(r.Index(i).Interface()))
		}
		return items
	}
	return fmt.Sprint(v)
}

func (s *shop) readWithPython(t *testing.T, codec registry.Codec) []externalValue {
	t.Helper()
	interpreter, err := filepath.Abs("../../.tools/python/bin/python")
	if err != nil {
		t.Fatal(err)
	}
	probe := exec.CommandContext(t.Context(), interpreter, "-c", "import confluent_kafka.schema_registry")
	if out, err := probe.CombinedOutput(); err != nil {
		why := fmt.Sprintf("Confluent's Python client is not installed; scripts/python-tools installs it: %v: %s",
			err, out)
		if os.Getenv("MILLRACE_REQUIRE_SERVERS") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	args := []string{"testdata/read_topic.py", s.kafka.Brokers, s.url, event.Order.Topic, string(codec)}
	if codec == registry.Protobuf {
		file := filepath.Join(t.TempDir(), "descriptors")
		if err := os.WriteFile(file, descriptorSet(t, orderv1.File_millrace_order_v1_events_proto), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, file, event.Order.Message)
	}
	out, err := exec.CommandContext(t.Context(), interpreter, args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%v: %s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var values []externalValue
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		var v externalValue
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			t.Fatalf("%s: %v", lines.Bytes(), err)
		}
		values = append(values, v)
	}
	return values
}

// descriptorSet returns a file and everything that it imports, with dependencies first.
func descriptorSet(t *testing.T, file protoreflect.FileDescriptor) []byte {
	t.Helper()
	var set descriptorpb.FileDescriptorSet
	seen := map[string]bool{}
	var add func(f protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i).FileDescriptor)
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(f))
	}
	add(file)
	b, err := proto.Marshal(&set)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
