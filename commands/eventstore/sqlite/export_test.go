package sqlite

import "time"

// DisablePolling stops Wait from polling for appends of other processes, so that only this
// process's commits wake it.
func (s *Store) DisablePolling() { s.pollInterval = time.Hour }
