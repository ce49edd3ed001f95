package flags

import (
	"encoding/json"
	"time"

	"github.com/google/uuid"
)

// recordVersion is the version of the JSON in both topics. A reader skips records of a later one.
const recordVersion = 1

// record is the value of a record of Topic.
type record struct {
	Version     int             `json:"version"`
	Type        Type            `json:"type"`
	Description string          `json:"description,omitempty"`
	Value       json.RawMessage `json:"value,omitempty"`
	Rollout     []Variant       `json:"rollout,omitempty"`
	Change      Change          `json:"change"`
}

// encode returns the record of a flag that is valid.
func encode(f Flag) ([]byte, error) {
	b, err := json.Marshal(record{recordVersion, f.Type, f.Description, f.Value, f.Rollout, f.Change})
	if err == nil && len(b) > maxRecord {
		return nil, invalid("%s has %d bytes with its variants; at most %d are allowed", f.Name, len(b), maxRecord)
	}
	return b, err
}

// decode returns the flag of a record. Other producers can write to the topic, so it checks everything.
func decode(name string, value []byte) (Flag, error) {
	if len(value) > maxRecord {
		return Flag{}, invalid("the record has %d bytes; at most %d are allowed", len(value), maxRecord)
	}
	var r record
	if err := json.Unmarshal(value, &r); err != nil {
		return Flag{}, invalid("the record is not JSON of a flag: %w", err)
	}
	if r.Version != recordVersion {
		return Flag{}, invalid("the record has version %d, and this program knows version %d", r.Version, recordVersion)
	}
	f := Flag{Name: name, Type: r.Type, Description: r.Description, Value: r.Value, Rollout: r.Rollout, Change: r.Change}
	for i, v := range f.Rollout {
		f.Rollout[i].Value = compact(v.Value)
	}
	if f.Value != nil {
		f.Value = compact(f.Value)
	}
	if err := r.Change.check(); err != nil {
		return Flag{}, err
	}
	return f, f.Validate()
}

// check checks what Validate of a flag does not.
func (c Change) check() error {
	if _, err := uuid.Parse(c.ID); err != nil {
		return invalid("id of the change: %w", err)
	}
	if c.At.Before(time.Unix(0, 0)) || c.At.Year() > 9999 {
		return invalid("time of the change: %v is not between 1970 and 9999", c.At)
	}
	return nil
}

// Entry is a change of a flag, as HistoryTopic has it.
type Entry struct {
	Name   string
	Change Change
	// Before is the revision of the flag that was changed. It is -1 if there was none.
	Before int64
	// After is the flag after the change, without a revision. It is nil if the flag was deleted.
	After *Flag
}

// entry is the value of a record of HistoryTopic.
type entry struct {
	Version int             `json:"version"`
	Before  int64           `json:"before"`
	Change  Change          `json:"change"`
	After   json.RawMessage `json:"after,omitempty"` // the record of Topic; none: deleted
}

// encodeEntry returns the record of a change, with the flag's record after it.
func encodeEntry(e Entry, after []byte) ([]byte, error) {
	return json.Marshal(entry{recordVersion, e.Before, e.Change, after})
}

// decodeEntry returns the change of a record.
func decodeEntry(name string, value []byte) (Entry, error) {
	if len(value) > 2*maxRecord {
		return Entry{}, invalid("the record has %d bytes; at most %d are allowed", len(value), 2*maxRecord)
	}
	var r entry
	if err := json.Unmarshal(value, &r); err != nil {
		return Entry{}, invalid("the record is not JSON of a change: %w", err)
	}
	if r.Version != recordVersion {
		return Entry{}, invalid("the record has version %d, and this program knows version %d", r.Version, recordVersion)
	}
	e := Entry{Name: name, Change: r.Change, Before: r.Before}
	if r.After != nil {
		f, err := decode(name, r.After)
		if err != nil {
			return Entry{}, err
		}
		e.After = &f
		return e, nil
	}
	if err := checkName("name", name); err != nil {
		return Entry{}, err
	}
	for what, text := range map[string]string{"caller": e.Change.By, "reason": e.Change.Reason} {
		if err := checkText(what, text); err != nil {
			return Entry{}, err
		}
	}
	return e, e.Change.check()
}
