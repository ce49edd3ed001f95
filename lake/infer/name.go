package infer

import (
	"strings"
	"unicode"

	"github.com/millrace/millrace/lake/columnar"
)

// fieldOf returns the name of the field that a column is of.
func fieldOf(f columnar.Field) string {
	for _, kind := range []string{renamedKey, doubleKey, jsonKey} {
		if name, ok := strings.CutPrefix(f.Key, kind); ok {
			return name
		}
	}
	return f.Name
}

// fold returns the same for all names that differ in capitals alone, as strings.EqualFold has it.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		for {
			next := unicode.SimpleFold(r)
			if next <= r { // the lowest comes after the highest
				return next
			}
			r = next
		}
	}, name)
}

// claims reports whether a member of an object, which has no column of its own name, has the one of
// a field whose name differs in capitals alone: unless another member is called as the field, or
// came before with a name like it.
func claims(members []value, i int, field string) bool {
	for j := range members {
		other := &members[j]
		switch {
		case j == i || other.kind == null || other.unnamed:
		case string(other.name) == field, j < i && strings.EqualFold(string(other.name), field):
			return false
		}
	}
	return true
}
