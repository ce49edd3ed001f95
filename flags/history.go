package flags

import (
	"context"
	"errors"
	"fmt"

	"github.com/millrace/millrace/internal/kafka"
)

// maxHistory is the maximum number of changes that History returns.
const maxHistory = 1000

// History returns the last changes of a flag, the oldest first, at most limit of them; 0 means as many
// as there are, up to 1000. It reads the whole topic of changes.
func (w *Writer) History(ctx context.Context, name string, limit int) ([]Entry, error) {
	if err := checkName("name", name); err != nil {
		return nil, err
	}
	if limit <= 0 || limit > maxHistory {
		limit = maxHistory
	}
	var last []Entry
	err := readHistory(ctx, w.admin, w.cfg.Kafka, name, func(e Entry) {
		if last = append(last, e); len(last) == 2*limit {
			last = append([]Entry(nil), last[limit:]...)
		}
	})
	if err == nil && len(last) == 0 {
		err = fmt.Errorf("%w: %s has never been set", ErrNotFound, name)
	}
	return last[max(0, len(last)-limit):], err
}

// readHistory calls fn with each change of a flag. It skips records that are not valid changes.
func readHistory(ctx context.Context, admin *kafka.Admin, cfg kafka.Config, name string, fn func(Entry)) error {
	ends, err := admin.EndOffsets(ctx, HistoryTopic)
	if errors.Is(err, kafka.ErrUnknownTopic) {
		return nil // nobody has set a flag
	}
	if err != nil {
		return err
	}
	return kafka.ReadAll(ctx, cfg, HistoryTopic, nil, ends, func(m kafka.Message) error {
		if string(m.Key) != name {
			return nil
		}
		if e, err := decodeEntry(name, m.Value); err == nil {
			fn(e)
		}
		return nil
	})
}
