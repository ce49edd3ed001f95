// Package history checks, from the outside and in Jepsen's manner, what the write side promises to
// concurrent clients whose calls are cut, whose connections break and whose processes are killed.
// Clients record every call and every answer with the machine's monotonic clock. Afterwards, a
// checker that knows nothing of the implementation decides whether one order of the calls explains
// all answers.
//
// Checked for every recorded history of an event store (SQLite and PostgreSQL; several processes on
// one store, kill -9, cancelled contexts, and PostgreSQL's connections cut just before an answer):
//
//   - Linearizability: all appends, loads and lookups of idempotency keys on one shelf (two streams
//     that batches may share) have an order that respects real time, in which every answer is one
//     that the contract in commands/eventstore allows. This covers expected versions, whole
//     batches, and the same first answer for a repeated key.
//   - Every acknowledged event is exactly once in Read of the whole store, where its answer said. A
//     rejected batch is nowhere.
//   - Positions rise with real time across all streams: a call after an answer has a later
//     position.
//   - A follower that uses Read and Wait from a position on has seen everything that the store has
//     after it in the end. Nothing ever appears before what was read.
//
// Checked for every recorded history of the inventory (the binary, by Connect, killed and
// restarted):
//
//   - Linearizability: the commands on one SKU, and GetStock, as one shelf of goods with
//     reservations. Every acceptance, rejection (with its rule and its numbers) and replay is the
//     one that the stock of that moment allows.
//   - No overselling: at every version of every stream 0 ≤ reserved ≤ on hand, folded from the
//     stored events by the test itself.
//   - Each idempotency key has at most one event, all answers under a key are equal, and tokens
//     have the position of the event.
//
// A call without an answer may have taken effect at any time after its start, even after its client
// gave up, or never. Each sending is an operation of its own, and only the key connects them. A
// rejection after a lost sending is legal even if the lost one takes effect later. The contents of
// the store at the end show which lost sendings left a trace. One without a trace is removed from
// the history: "takes effect after everything" is the same as "never", and allowed. One with a
// trace must have taken effect, at some time after its call. Neither changes a verdict, because the
// final contents are part of the history as well. Both keep the search short.
//
// What is legal is determined, not left open. An append is answered with "already answered" if its
// key has an answer. Otherwise it conflicts if a stream is not at its expected version (any such
// stream may be named, with its version at that moment). Otherwise it is stored. A conflict is
// never legal if the batch could have been stored or its key was answered.
//
// Not checked: power cuts (kill -9 leaves the page cache; see the stores' own tests), several
// machines, failovers and restores of PostgreSQL, snapshots, reservations that expire (their time
// to live is a month here), and the read side (see verify and the kill matrix). A run finds errors
// only in histories that happened, so only many runs give confidence.
//
// The checker itself is tested: it must reject wrong histories made by hand, and detect stores that
// are broken on purpose within a run.
//
// `go test ./test/history` takes seconds. MILLRACE_HISTORY_SECONDS=600 makes each run that long. A
// rejected history is drawn as a web page in the temporary folder, and the test prints its path. In
// a browser, it marks the first call that nothing explains.
package history
