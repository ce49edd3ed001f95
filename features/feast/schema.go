package feast

import (
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow/flight"
	flatbuffers "github.com/google/flatbuffers/go"
)

// Positions in the tables of Arrow's Message.fbs and Schema.fbs, and numbers of their unions.
const (
	messageType, messageHeader               = 6, 8
	schemaFields, schemaMetadata             = 6, 8
	fieldType, fieldTypeTable, fieldChildren = 8, 10, 14
	fieldMetadata                            = 16
	unionIDs                                 = 6

	headerSchema = 1
	typeUnion    = 14
)

// maxFields bounds the fields of a schema, with nested ones.
const maxFields = 10_000

// checked checks schemas before Arrow's reader sees them: it allocates as much as they say.
type checked struct{ flight.DataStreamReader }

// Recv implements flight.DataStreamReader.
func (c checked) Recv() (*flight.FlightData, error) {
	d, err := c.DataStreamReader.Recv()
	if err == nil && len(d.GetDataHeader()) > 0 {
		err = checkSchema(d.GetDataHeader())
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// checkSchema returns an error if the message is a schema whose lists are longer than the message, or
// that has too many fields. Fields may share their children, so few bytes can describe very many.
func checkSchema(message []byte) (err error) {
	defer func() {
		if r := recover(); r != nil { // an offset beyond the message
			err = fmt.Errorf("the schema is damaged: %v", r)
		}
	}()
	root := flatbuffers.Table{Bytes: message, Pos: flatbuffers.GetUOffsetT(message)}
	at := func(t flatbuffers.Table, slot flatbuffers.VOffsetT) (flatbuffers.UOffsetT, bool) {
		o := flatbuffers.UOffsetT(t.Offset(slot))
		return o, o != 0
	}
	kind, ok := at(root, messageType)
	if !ok || root.GetByte(root.Pos+kind) != headerSchema {
		return nil
	}
	header, ok := at(root, messageHeader)
	if !ok {
		return nil
	}
	var schema flatbuffers.Table
	root.Union(&schema, header)
	fields := 0
	list := func(t flatbuffers.Table, slot flatbuffers.VOffsetT, size int, each func(flatbuffers.Table) error) error {
		o, ok := at(t, slot)
		if !ok {
			return nil
		}
		n, first := t.VectorLen(o), t.Vector(o)
		if n < 0 || n > (len(message)-int(first))/size {
			return errors.New("the schema is damaged: a list ends beyond it")
		}
		for i := range n {
			if each == nil {
				break
			}
			item := flatbuffers.Table{Bytes: message, Pos: t.Indirect(first + flatbuffers.UOffsetT(i*size))}
			if err := each(item); err != nil {
				return err
			}
		}
		return nil
	}
	const offset = flatbuffers.SizeUOffsetT
	var field func(flatbuffers.Table) error
	field = func(f flatbuffers.Table) error {
		if fields++; fields > maxFields {
			return fmt.Errorf("the schema has more than %d fields", maxFields)
		}
		if kind, ok := at(f, fieldType); ok && f.GetByte(f.Pos+kind) == typeUnion {
			if o, ok := at(f, fieldTypeTable); ok {
				var union flatbuffers.Table
				f.Union(&union, o)
				if err := list(union, unionIDs, flatbuffers.SizeInt32, nil); err != nil {
					return err
				}
			}
		}
		if err := list(f, fieldMetadata, offset, nil); err != nil {
			return err
		}
		return list(f, fieldChildren, offset, field)
	}
	if err := list(schema, schemaMetadata, offset, nil); err != nil {
		return err
	}
	return list(schema, schemaFields, offset, field)
}
