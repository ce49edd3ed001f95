package lake

import (
	"fmt"
	"slices"
	"strings"

	"github.com/apache/iceberg-go"
)

// propTopic is the topic whose records a table holds, from the commit on that makes it a table of landers.
const propTopic = "millrace.topic"

// OwnedError says that a table is landed from another topic. Two of them in one would be told apart by no reader.
type OwnedError struct {
	Table string // with its namespace
	Topic string // that it belongs to
}

func (e *OwnedError) Error() string {
	return fmt.Sprintf("table %s belongs to topic %s; choose another with --table", e.Table, e.Topic)
}

// owned fails with an *OwnedError where a table is landed from another topic than t is.
func (t Table) owned(props iceberg.Properties) error {
	topics := topicsOf(props)
	if len(topics) == 0 || slices.Contains(topics, t.Topic) {
		return nil
	}
	return &OwnedError{strings.Join(t.identifier(), "."), topics[0]}
}

// topicsOf are the topics that a table says it is fed by, in order: one, unless an earlier version has let more in.
func topicsOf(props iceberg.Properties) []string {
	if topic := props[propTopic]; topic != "" {
		return []string{topic}
	}
	var topics []string
	for k := range props {
		if rest, ok := strings.CutPrefix(k, propNextPrefix); ok && strings.Contains(rest, ".") {
			topics = append(topics, rest[:strings.LastIndexByte(rest, '.')])
		}
	}
	slices.Sort(topics)
	return slices.Compact(topics)
}

// topicOf is the first of them; empty where it says none.
func topicOf(props iceberg.Properties) string {
	if topics := topicsOf(props); len(topics) > 0 {
		return topics[0]
	}
	return ""
}
