package kill

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/test/servers/s3"
)

// row is one row of the matrix.
type row struct {
	name  string // role/step/fault, or server/fault
	fault fault
	step  step // the step at which the fault happens; empty if a server breaks
	quick bool // whether it belongs to the quick part
	year  bool // whether the real year is imported at the same time
	// An additional condition once everything has settled. It may be nil.
	check func(ctx context.Context, s *system) error
}

// steps returns the steps of the roles at which processes are killed, frozen, or made to fail.
func steps() []step {
	all := []step{
		{role: "commands", point: "commands.append.before", name: "before append", at: 10},
		{role: "commands", point: "commands.append.after", name: "after append", at: 10, after: true},
		{role: "relay", point: "relay.order.resumed", name: "resumed", at: 1, restart: "relay.order.before commit"},
		{role: "relay", point: "relay.order.before begin", name: "before begin", at: 3},
		{role: "relay", point: "relay.order.after produce", name: "after produce", at: 3},
		{role: "relay", point: "relay.order.before commit", name: "before commit", at: 3},
		{role: "relay", point: "relay.order.after commit", name: "after commit", at: 3, after: true},
	}
	for _, view := range []string{"orderstatus/v2", "catalog/v2"} {
		name, _, _ := strings.Cut(view, "/")
		all = append(all,
			step{role: "views", point: "view." + view + ".apply.before", name: name + " before apply", at: 3},
			step{role: "views", point: "view." + view + ".save.before", name: name + " before save", at: 3},
			step{role: "views", point: "view." + view + ".apply.after", name: name + " after apply", at: 3,
				after: true},
			step{role: "views", point: "view." + view + ".positions.before", name: name + " before positions", at: 2},
			step{role: "views", point: "view." + view + ".positions.after", name: name + " after positions",
				at: 2, after: true},
		)
	}
	for _, table := range []string{"orders_events", "order_lines", "orders_current"} {
		all = append(all,
			step{role: "lake", point: "lake." + table + ".records fetched", name: table + " records fetched", at: 2},
			step{role: "lake", point: "lake." + table + ".data file closed", name: table + " data file closed", at: 1},
			step{role: "lake", point: "lake." + table + ".about to commit", name: table + " about to commit", at: 1},
			step{role: "lake", point: "lake." + table + ".committed, answer not used yet", name: table +
				" committed", at: 1, after: true},
		)
	}
	all = append(all,
		step{role: "lake", point: "lake.orders_current.rows before looked up",
			name: "orders_current rows looked up", at: 1})
	for _, st := range []struct {
		point string
		after bool
	}{
		{"compact.written", false}, {"compact.commit", false}, {"compact.committed", true},
		{"expire.commit", false}, {"expire.committed", true},
	} {
		all = append(all,
			step{role: "lake", point: "maintenance." + st.point, name: "maintenance " + st.point, at: 1,
				after: st.after})
	}
	return all
}

// featureSteps returns the steps of filling the tables of features: facts, and tiles made from them.
func featureSteps() []step {
	const facts, tiles = "product_order_lines", "tiles_product_popularity_v1_product_order_lines"
	var all []step
	for _, st := range []struct {
		table, point string
		after        bool
	}{
		{"facts_" + facts, "about to claim", false}, {"facts_" + facts, "claimed", true},
		{"facts_" + facts, "facts inserted", true}, {"facts_" + facts, "corrections inserted", true},
		{"facts_" + facts, "position saved", true},
		{tiles, "about to insert tiles", false}, {tiles, "tiles inserted", true}, {tiles, "position of tiles saved", true},
	} {
		all = append(all, step{role: "features", point: "features." + st.table + "." + st.point, name: st.point, at: 2,
			after: st.after})
	}
	return all
}

// customerSteps returns the steps of the view of customers, and of who is in which segment.
func customerSteps() []step {
	const view = "view.customer360/v2."
	return []step{
		{role: "views", point: view + "apply.before", name: "customer360 before apply", at: 3},
		{role: "views", point: view + "save.before", name: "customer360 before save", at: 3},
		{role: "views", point: view + "apply.after", name: "customer360 after apply", at: 3, after: true},
		{role: "views", point: view + "positions.before", name: "customer360 before positions", at: 2},
		{role: "views", point: view + "positions.after", name: "customer360 after positions", at: 2, after: true},
		{role: "views", point: "segments.publish.before", name: "segments before publish", at: 2},
		{role: "views", point: "segments.publish.after", name: "segments after publish", at: 2, after: true},
	}
}

// realRows returns the rows on real servers, with a process for each role.
func realRows() []row {
	quick := map[string]bool{
		"relay/before commit/zombie": true, "kafka/node 1 killed": true, "redis/flushed": true,
	}
	var rows []row
	for _, st := range slices.Concat(steps(), featureSteps(), onlineSteps(), trackingSteps()) {
		at := st.role + "/" + st.name + "/"
		rows = append(rows,
			row{name: at + "kill", step: st, fault: st.kill, year: st.role == "relay" || st.role == "lake", check: st.check})
		rows = append(rows, row{name: at + st.failure(), step: st, fault: st.fail, check: st.check})
		rows = append(rows, row{name: at + "zombie", step: st, fault: st.zombie, check: st.check})
	}
	rows = append(rows, garbageRows("")...)
	rows = append(rows, poisonRows("")...)
	rows = append(rows, replayRows("")...)
	rows = append(rows, flagRows("")...)
	rows = append(rows, row{name: "iceberg/purge file/kill", step: purgeStep, fault: killPurge})
	rows = append(rows, serverRows()...)
	for i := range rows {
		rows[i].quick = quick[rows[i].name]
	}
	return rows
}

// serverRows returns the rows in which a server or the network to it breaks, and not a role.
func serverRows() []row {
	var rows []row
	// Each node leads a third of the partitions and coordinates a third of the transactions.
	for node := range kafkaNodes {
		kill := func(ctx context.Context, s *system) error { return killKafkaNode(ctx, s, node) }
		rows = append(rows, row{name: fmt.Sprintf("kafka/node %d killed", node+1), year: true, fault: kill})
	}
	rows = append(rows,
		row{name: "postgres/crash and restart", fault: crashPostgres, year: true},
		row{name: "redis/flushed", fault: flushRedis},
		row{name: "redis/crash and restart", fault: crashRedis},
		row{name: "elasticsearch/index deleted", fault: deleteIndex},
		row{name: "elasticsearch/crash and restart", fault: crashSearch},
		row{name: "s3/errors", fault: breakS3(s3.Fault{Status: 503}), year: true},
		row{name: "s3/slow answers", fault: breakS3(s3.Fault{Delay: 2 * time.Second})},
		row{name: "s3/lost answers", fault: breakS3(s3.Fault{Lost: true})},
		row{name: "s3/crash and restart", fault: crashS3},
	)
	for _, server := range []string{"postgres", "kafka", "redis", "elasticsearch", "s3"} {
		rows = append(rows,
			networkRow(server, "200 ms latency", "latency", "downstream", "latency", 200),
			networkRow(server, "connections reset", "reset_peer", "downstream", "timeout", 100),
			networkRow(server, "requests lost", "timeout", "upstream", "timeout", 0),
			networkRow(server, "answers lost", "timeout", "downstream", "timeout", 0),
		)
	}
	return rows
}

// networkRow returns a row with a toxic on the links to a server. Times are in milliseconds. A
// timeout of 0 drops the data of one direction and keeps the connection open.
func networkRow(server, name, kind, stream, attribute string, value int64) row {
	t := toxic{Type: kind, Stream: stream, Attributes: map[string]int64{attribute: value}}
	return row{name: "network/" + server + " " + name, fault: withToxic(server, t)}
}

// diskRows returns the rows on the embedded default with a disk that fills up.
func diskRows() []row {
	return []row{
		{name: "embedded/disk/full", fault: fillDisk, quick: true},
		{name: "embedded/disk/full and killed", fault: fillDiskAndKill},
	}
}

// embeddedRows returns the rows on the embedded default, in which one process has all roles and
// breaks as a whole.
func embeddedRows() []row {
	quick := map[string]bool{
		"after append": true, "after commit": true, "catalog before positions": true, "orders_events committed": true,
	}
	var rows []row
	all := append(slices.Concat(steps(), featureSteps(), onlineSteps(), customerSteps(), trackingSteps()),
		step{role: "views", point: "embedded.redis.write.before", name: "redis before write", at: 8},
		step{role: "views", point: "embedded.redis.write.after", name: "redis after write", at: 8, after: true},
	)
	for _, st := range all {
		at, year := "embedded/"+st.role+"/"+st.name+"/", st.role == "relay" || st.role == "lake"
		rows = append(rows, row{name: at + "kill", step: st, fault: st.kill, quick: quick[st.name], year: year,
			check: st.check})
		rows = append(rows, row{name: at + st.failure(), step: st, fault: st.fail, check: st.check})
	}
	rows = append(rows, garbageRows("embedded/")...)
	rows = append(rows, poisonRows("embedded/")...)
	rows = append(rows, replayRows("embedded/")...)
	rows = append(rows, flagRows("embedded/")...)
	rows = append(rows, row{name: "embedded/iceberg/purge file/kill", step: purgeStep, fault: killPurge, quick: true})
	// Freezing the only process is the same at every step, except for what is open at that moment:
	// an append, a Kafka transaction, or a commit of the lake.
	for _, st := range steps() {
		switch st.name {
		case "before append", "before commit", "orders_events about to commit":
			rows = append(rows,
				row{name: "embedded/" + st.role + "/" + st.name + "/freeze", step: st, fault: st.freeze})
		}
	}
	return rows
}
