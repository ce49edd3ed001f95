package history

import (
	"fmt"
	"os"
	"time"

	"github.com/anishathalye/porcupine"
)

// searchTimeout bounds the search for an order. Histories of the runs here take milliseconds to a
// few seconds.
const searchTimeout = 2 * time.Minute

// judge searches for an order of the operations that the model allows. It returns findings that
// show there is none, or nothing if it found one. If draw is set, it draws a rejected history.
func judge(model porcupine.Model, history []porcupine.Operation, draw bool) []string {
	var findings []string
	deadline := time.Now().Add(searchTimeout)
	for _, part := range model.Partition(history) {
		alone := model
		alone.Partition = nil
		switch porcupine.CheckOperationsTimeout(alone, part, max(time.Until(deadline), time.Millisecond)) {
		case porcupine.Ok:
			continue
		case porcupine.Illegal:
			findings = append(findings, fmt.Sprintf("no order of the %d operations on %s explains their answers%s",
				len(part), part[0].Input.(named).name(), drawing(alone, part, draw)))
		case porcupine.Unknown:
			findings = append(findings,
				fmt.Sprintf("no verdict on the %d operations on %s within %v, which counts as a failure: "+
					"run it again with fewer seconds, or look whether many sendings were lost at once%s",
					len(part), part[0].Input.(named).name(), searchTimeout, drawing(alone, part, draw)))
		}
	}
	return findings
}

// named is the input of an operation that knows its subject.
type named interface{ name() string }

// drawTimeout bounds the second search, which records how far it came.
const drawTimeout = 30 * time.Second

// drawing draws a rejected history and returns the path of the file.
func drawing(model porcupine.Model, history []porcupine.Operation, draw bool) string {
	if !draw {
		return ""
	}
	file, err := os.CreateTemp("", "millrace-history-*.html")
	if err != nil {
		return fmt.Sprintf(" (it could not be drawn: %v)", err)
	}
	_, info := porcupine.CheckOperationsVerbose(model, history, drawTimeout)
	err = porcupine.Visualize(model, info, file)
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Sprintf(" (it could not be drawn: %v)", err)
	}
	return "; drawn in " + file.Name()
}

// partition groups operations by subject.
func partition(history []porcupine.Operation) [][]porcupine.Operation {
	var parts [][]porcupine.Operation
	place := map[string]int{}
	for _, op := range history {
		name := op.Input.(named).name()
		i, known := place[name]
		if !known {
			i = len(parts)
			place[name] = i
			parts = append(parts, nil)
		}
		parts[i] = append(parts[i], op)
	}
	return parts
}
