package sqlite

import "time"

// Deafen keeps Wait from looking for what other processes append, so that only this one's commits
// wake it.
func (s *Store) Deafen() { s.elsewhere = time.Hour }
