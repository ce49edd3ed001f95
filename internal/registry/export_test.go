package registry

import "github.com/twmb/franz-go/pkg/sr"

// Plan lets tests try the mapping without a registry.
type Plan struct{ plan *plan }

func NewPlan(schema string) (Plan, error) {
	p, err := newPlan(schema)
	return Plan{p}, err
}

func (p Plan) Encode(message []byte) ([]byte, error) { return p.plan.encode(nil, message) }

func (p Plan) Decode(value []byte) ([]byte, error) { return p.plan.decode(nil, value) }

// Know tells a Decoder of a schema as if the registry had given it.
func (d *Decoder) Know(id int, typ sr.SchemaType, schema string) error {
	s := readSchema(sr.Schema{Schema: schema, Type: typ})
	d.schemas[id] = s
	return s.bad
}

var ProtoText = protoText
