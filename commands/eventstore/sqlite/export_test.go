package sqlite

import "time"

// Deafen stops Wait from polling for appends of other processes, so that only this process's
// commits wake it.
func (s *Store) Deafen() { s.elsewhere = time.Hour }
