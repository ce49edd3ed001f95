// Package history proves, from the outside and in Jepsen's manner, what the write side promises to
// concurrent clients whose calls are cut, whose connections break and whose processes are killed.
// Clients record every call and every answer with the machine's monotonic clock; afterwards a
// checker that knows nothing of the implementation decides whether one order of the calls explains
// all answers.
//
// Proved of every recorded history of an event store (SQLite, PostgreSQL; several processes on one store, killed with
// kill -9, contexts cut, PostgreSQL's connections cut just before an answer):
//   - Linearizable: all appends, loads and lookups of idempotency keys on one shelf (two streams that batches may share) have
//     an order that respects real time, in which every answer is the one the contract in commands/eventstore allows there. That
//     holds expected versions, whole batches, and the same first answer for a key sent again.
//   - Every acknowledged event stands exactly once in Read of the whole store, where its answer said; a refused batch nowhere.
//   - Positions rise with real time across all streams: what was called after an answer is behind it.
//   - Who follows the store with Read and Wait from a position on saw what is there in the end: nothing ever came in front.
//
// Proved of every recorded history of the inventory (the binary, by Connect, killed and restarted under its clients):
//   - Linearizable: the commands on one SKU and GetStock, as one shelf of goods with reservations. Every acceptance, refusal
//     (with its rule and its numbers) and replay is the one that the stock of that moment allows.
//   - No oversell: at every version of every stream 0 ≤ reserved ≤ on hand, folded from the stored events by the test itself.
//   - Each idempotency key has at most one event; all answers under a key are equal; tokens name the place of the event.
//
// What a call without an answer means: it may have taken effect at any time from its call on, even
// after its client gave up, or never. Each sending is an operation of its own; the key alone joins
// them. A refusal after a lost sending is legal even if the lost one takes effect later. At the end
// the store says which lost sendings left a trace. One that left none is taken out of the history:
// "takes effect after everything" is the same as "never", and allowed. One that left a trace must
// have taken effect, at some time after its call. Both change no verdict, since what the store says
// last is itself part of the history; they keep the search short.
//
// What is legal is decided, not left open. An append is answered "already answered" where its key
// has an answer, else it conflicts where a stream is not at its expected version (any such stream
// may be named, with its version of that moment), else it is stored. A conflict is never legal
// where the batch could have been stored or its key was answered.
//
// Not proved: power cuts (kill -9 leaves the page cache; see the stores' own tests), several
// machines, failovers and restores of PostgreSQL, snapshots, reservations that lapse by time (time
// to live is a month here), the read side (verify and the kill matrix look at that), and any
// history that did not happen: a run finds errors, only many runs give confidence.
//
// The checker is checked too: hand-made wrong histories are refused, and stores broken on purpose
// are caught within a run.
//
// `go test ./test/history` takes seconds; MILLRACE_HISTORY_SECONDS=600 lets each run continue for
// that long. A history that is refused is drawn as a web page in the temporary folder, and the test
// prints its path: open it in a browser, the first call that nothing explains is marked.
package history
