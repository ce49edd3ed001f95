package registry

import "github.com/twmb/franz-go/pkg/sr"

// AddSchema adds a schema to a Decoder as if the registry had returned it.
func (d *Decoder) AddSchema(id int, typ sr.SchemaType, schema string) error {
	s := readSchema(sr.Schema{Schema: schema, Type: typ})
	d.schemas[id] = s
	return s.err
}

var ProtoText = protoText
