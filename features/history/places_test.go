package history

import (
	"fmt"
	"strings"
	"testing"
)

// TestLongNames: a query has at most the 256 KiB that ClickHouse parses, also if the names of entities are as
// long as they may be, each of their characters needs an escape, and each has corrections.
func TestLongNames(t *testing.T) {
	p := newPlaces(newPlaces(nil))
	for !p.full() {
		i := len(p.entities)
		g := gapsAround([]int64{int64(i) * length[day], int64(i+1000)*length[day] + length[hour]})
		p.addEntity(fmt.Sprint(i)+strings.Repeat(`'`, 253), g)
	}
	for _, in := range append(p.facts(), p.tiles()) {
		if n := len(in) + len(literals(p.entities)); n > 250<<10 || len(p.entities) < 10 {
			t.Errorf("a query of %d entities has %d bytes", len(p.entities), n)
		}
	}
}
