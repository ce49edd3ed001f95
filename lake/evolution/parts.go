package evolution

import "github.com/millrace/millrace/lake/columnar"

func parts(t columnar.Type) []columnar.Field {
	switch t := t.(type) {
	case columnar.Struct:
		return t.Fields
	case columnar.List:
		return []columnar.Field{t.Element}
	case columnar.Map:
		return []columnar.Field{t.Key, t.Value}
	}
	return nil
}

func highest(fields []columnar.Field) int {
	top := 0
	for _, f := range fields {
		top = max(top, f.ID, highest(parts(f.Type)))
	}
	return top
}
