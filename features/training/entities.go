package training

import "slices"

// entities numbers the entities of the spine's rows of one range.
type entities struct {
	names []string
	id    map[string]int32
}

// add returns the number of an entity, which it adds if it is missing.
func (e *entities) add(name []byte) int32 {
	id, ok := e.id[string(name)]
	if !ok {
		if e.id == nil {
			e.id = map[string]int32{}
		}
		id = int32(len(e.names))
		e.names = append(e.names, string(name))
		e.id[e.names[id]] = id
	}
	return id
}

// sort numbers the entities in their order. It returns the new number of each by the number that add
// returned.
func (e *entities) sort() []int32 {
	added := slices.Clone(e.names)
	slices.Sort(e.names)
	for i, name := range e.names {
		e.id[name] = int32(i)
	}
	renumbered := make([]int32, len(added))
	for i, name := range added {
		renumbered[i] = e.id[name]
	}
	return renumbered
}

// probes is how many entities after the previous one number tries before it looks up.
const probes = 8

// number returns the number of an entity, or -1 if the range does not have it. Tables return facts in
// the order of entities, so number tries those from near on first: a lookup among many costs more.
// The entities must be sorted.
func (e *entities) number(name string, near int32) int32 {
	for i := near; i < min(near+probes, int32(len(e.names))); i++ {
		switch {
		case e.names[i] == name:
			return i
		case e.names[i] > name && i > near: // and the one before is less
			return -1
		case e.names[i] > name:
			return e.lookup(name)
		}
	}
	return e.lookup(name)
}

// lookup returns the number of an entity, or -1.
func (e *entities) lookup(name string) int32 {
	if id, ok := e.id[name]; ok {
		return id
	}
	return -1
}
