package progress

import (
	"slices"
	"strings"

	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
)

// CheckOwner returns an *OwnedError if the table is landed from a topic other than t's.
func CheckOwner(t declare.Table, props iceberg.Properties) error {
	topics := topicsOf(props)
	// A table that no topic feeds yet may be landed from any.
	if len(topics) == 0 || slices.Contains(topics, t.Topic) {
		return nil
	}
	return &faults.OwnedError{Table: strings.Join(t.Identifier(), "."), Topic: topics[0]}
}

// topicsOf returns the topics that feed a table by its properties, sorted. There is one, unless an
// earlier version has allowed more.
func topicsOf(props iceberg.Properties) []string {
	if topic := props[KeyTopic]; topic != "" {
		return []string{topic}
	}
	var topics []string
	// Without KeyTopic, the topics follow from the keys of the offsets. A topic may contain dots,
	// so the last dot separates it from the partition.
	for k := range props {
		if rest, ok := strings.CutPrefix(k, KeyNextPrefix); ok && strings.Contains(rest, ".") {
			topics = append(topics, rest[:strings.LastIndexByte(rest, '.')])
		}
	}
	slices.Sort(topics)
	return slices.Compact(topics)
}

// TopicOf returns the first topic that feeds a table, or "" if its properties name none.
func TopicOf(props iceberg.Properties) string {
	if topics := topicsOf(props); len(topics) > 0 {
		return topics[0]
	}
	return ""
}
