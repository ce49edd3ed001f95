package progress

import (
	"slices"
	"strings"

	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
)

// CheckOwner fails with an *OwnedError where a table is landed from another topic than t is.
func CheckOwner(t declare.Table, props iceberg.Properties) error {
	topics := topicsOf(props)
	if len(topics) == 0 || slices.Contains(topics, t.Topic) {
		return nil
	}
	return &faults.OwnedError{Table: strings.Join(t.Identifier(), "."), Topic: topics[0]}
}

// topicsOf are the topics that a table says it is fed by, in order: one, unless an earlier version has let more in.
func topicsOf(props iceberg.Properties) []string {
	if topic := props[KeyTopic]; topic != "" {
		return []string{topic}
	}
	var topics []string
	for k := range props {
		if rest, ok := strings.CutPrefix(k, KeyNextPrefix); ok && strings.Contains(rest, ".") {
			topics = append(topics, rest[:strings.LastIndexByte(rest, '.')])
		}
	}
	slices.Sort(topics)
	return slices.Compact(topics)
}

// TopicOf is the first of them; empty where it says none.
func TopicOf(props iceberg.Properties) string {
	if topics := topicsOf(props); len(topics) > 0 {
		return topics[0]
	}
	return ""
}
