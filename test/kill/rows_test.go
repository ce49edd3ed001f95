package kill

import "strings"

// row is one line of the matrix.
type row struct {
	name  string // role/step/fault, or server/fault
	fault fault
	quick bool // belongs to the quick part
	year  bool // the real year is imported meanwhile
}

// steps of the roles at which processes are killed, frozen, and made to fail.
func steps() []step {
	all := []step{
		{role: "commands", point: "commands.append.before", name: "before append", at: 10},
		{role: "commands", point: "commands.append.after", name: "after append", at: 10, after: true},
		{role: "relay", point: "relay.order.before begin", name: "before begin", at: 3},
		{role: "relay", point: "relay.order.after produce", name: "after produce", at: 3},
		{role: "relay", point: "relay.order.before commit", name: "before commit", at: 3},
		{role: "relay", point: "relay.order.after commit", name: "after commit", at: 3, after: true},
	}
	for _, view := range []string{"orderstatus/v1", "catalog/v1"} {
		name, _, _ := strings.Cut(view, "/")
		all = append(all,
			step{role: "views", point: "view." + view + ".apply.before", name: name + " before apply", at: 3},
			step{role: "views", point: "view." + view + ".save.before", name: name + " before save", at: 3},
			step{role: "views", point: "view." + view + ".apply.after", name: name + " after apply", at: 3, after: true},
			step{role: "views", point: "view." + view + ".positions.before", name: name + " before positions", at: 2},
			step{role: "views", point: "view." + view + ".positions.after", name: name + " after positions", at: 2, after: true},
		)
	}
	for _, table := range []string{"orders_events", "order_lines"} {
		all = append(all,
			step{role: "lake", point: "lake." + table + ".records fetched", name: table + " records fetched", at: 2},
			step{role: "lake", point: "lake." + table + ".data file closed", name: table + " data file closed", at: 1},
			step{role: "lake", point: "lake." + table + ".about to commit", name: table + " about to commit", at: 1},
			step{role: "lake", point: "lake." + table + ".committed, answer not used yet", name: table + " committed", at: 1, after: true},
		)
	}
	return all
}

// embeddedRows are those on the embedded default: all roles in one process, which dies, sleeps and fails as one.
func embeddedRows() []row {
	quick := map[string]bool{
		"after append": true, "before commit": true, "after commit": true, "orderstatus after apply": true,
		"catalog before positions": true, "orders_events about to commit": true, "orders_events committed": true,
	}
	var rows []row
	for _, st := range steps() {
		at := "embedded/" + st.role + "/" + st.name + "/"
		rows = append(rows, row{name: at + "kill", fault: st.kill, quick: quick[st.name], year: st.role == "relay" || st.role == "lake"})
		if st.after {
			rows = append(rows, row{name: at + "lost answer", fault: st.fail})
		} else {
			rows = append(rows, row{name: at + "error", fault: st.fail})
		}
	}
	// Freezing the one process is the same at any step, but for what is open at that moment: an append, a Kafka transaction,
	// a commit of the lake.
	for _, st := range steps() {
		switch st.name {
		case "before append", "before commit", "orders_events about to commit":
			rows = append(rows, row{name: "embedded/" + st.role + "/" + st.name + "/freeze", fault: st.freeze})
		}
	}
	return rows
}
