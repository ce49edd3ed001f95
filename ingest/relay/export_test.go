package relay

import (
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// Steps are those at which OnStep can make a relay fail.
var Steps = map[string]step{
	string(beforeBegin): beforeBegin, string(afterProduce): afterProduce, string(beforeCommit): beforeCommit, string(afterCommit): afterCommit,
}

// OnStep calls f at each step of each transaction; its error is the step's. Before Run.
func (r *Relay) OnStep(f func(at string) error) { r.hook = func(s step) error { return f(string(s)) } }

// MarkRecord is the position record of a transaction with the events after from, up to to.
func MarkRecord(from, to event.Position, service string) kafka.Record {
	return mark{from: from, to: to}.record(service, nil)
}
