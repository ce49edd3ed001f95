package registry

// Plan lets tests try the mapping without a registry.
type Plan struct{ plan *plan }

func NewPlan(schema string) (Plan, error) {
	p, err := newPlan(schema)
	return Plan{p}, err
}

func (p Plan) Encode(message []byte) ([]byte, error) { return p.plan.encode(nil, message) }

func (p Plan) Decode(value []byte) ([]byte, error) { return p.plan.decode(nil, value) }
