package registry

import "github.com/twmb/franz-go/pkg/sr"

// Know tells a Decoder of a schema as if the registry had given it.
func (d *Decoder) Know(id int, typ sr.SchemaType, schema string) error {
	s := readSchema(sr.Schema{Schema: schema, Type: typ})
	d.schemas[id] = s
	return s.bad
}

var ProtoText = protoText
