// Package failpoint injects faults for the kill matrix (test/kill). At a failpoint the process dies
// or freezes, the step fails, or its answer is lost.
//
// Without the build tag failpoints, a call is inlined to nothing.
package failpoint

// The steps of the roles, as their packages name them. A step that has an effect outside the
// process has a point on each side: an error before it means that it was not done, an error after
// it that it was done and the answer lost.
//
//	commands.append.before     commands.append.after       the event store's transaction
//	relay.SERVICE.…                                        the steps of ingest/relay
//	view.NAME.apply.before     view.NAME.apply.after       documents: to be read, folded and written
//	view.NAME.save.before                                  the same, folded and to be written
//	view.NAME.positions.before view.NAME.positions.after   positions
//	embedded.redis.write.before embedded.redis.write.after one write of the embedded Redis
//	lake.TABLE.…                                           the steps of lake
//	restcatalog.purge.file                                 each file of a table that is purged
//	maintenance.…                                          the steps of lake/maintenance, of whichever table comes first
//
// and switches that take a guard away, so that the matrix can be seen to go red without it:
//
//	lake.nofence, view.noguard
//
// or that make what is rare the rule:
//
//	lake.unnamed    an error of a record does not name it, so that landers look for it by halves
