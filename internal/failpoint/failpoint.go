// Package failpoint injects faults for the kill matrix (test/kill). At a failpoint, the process is
// killed or frozen, the step returns an error, or its answer is lost.
//
// Hit marks a step, and On reads a switch. Both exist only with the build tag failpoints. Without
// it, calls are inlined to nothing. Points are armed by the environment variable
// MILLRACE_FAILPOINTS at the start, or by HTTP later.
package failpoint

// The steps of the roles, as their packages name them. A step with an external effect has a point
// on each side. An error before it means that the step was not done. An error after it means that
// it was done, but its answer was lost.
//
//	commands.append.before     commands.append.after       the event store's transaction
//	relay.SERVICE.…                                        the steps of ingest/relay
//	view.NAME.apply.before     view.NAME.apply.after       documents: to be read, folded and written
//	view.NAME.save.before                                  the same, folded and to be written
//	view.NAME.positions.before view.NAME.positions.after   positions
//	view.NAME.versions.before  view.NAME.versions.after    the record of the view's versions: start, swap, drop
//	view.NAME.release.before   view.NAME.release.after     parked events that were applied: their dead letters are deleted
//	embedded.redis.write.before embedded.redis.write.after one write of the embedded Redis
//	lake.TABLE.…                                           the steps of lake
//	clickhouse.TABLE.insert.before clickhouse.TABLE.insert.after   one insert into a table of features
//	features.shared.apply.before features.shared.apply.after   one batch of facts in Redis
//	flags.read flags.value flags.committed                 a change of a flag: read, its value produced, committed
//	restcatalog.purge.file                                 each file of a table that is purged
//	maintenance.…                                          the steps of lake/maintenance, of the first table to reach them
//
// Switches disable a guard, to show that the matrix fails without it:
//
//	lake.nofence, view.noguard
//
// Or they make a rare case frequent:
//
//	view.poison     the projections of views panic at a sixteenth of the streams
//	lake.unnamed    errors of records do not name the record, so landers search for it by bisection
