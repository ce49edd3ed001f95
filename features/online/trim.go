package online

import (
	"slices"
	"time"
)

// Facts of a source are kept for good if a feature over it has the window Lifetime: such a feature
// needs them, and a correction may change or retract any of them. Of other sources, facts that are
// older than the longest window and Options.Retention are in no window of a vector that can be
// asked for. They are dropped. Only whether the entity is known depends on them: it is, while one of
// them has not been retracted. So a hash of each one's stamp remains.

// Trim drops facts that are in no window any more. It locks one shard at a time.
func (s *Store) Trim(now time.Time) (dropped int) {
	s.apply.Lock()
	defer s.apply.Unlock()
	to := now.Add(-s.options.Retention).UnixMicro()
	if !slices.ContainsFunc(s.spaces, func(sp *space) bool {
		return slices.ContainsFunc(sp.sources, func(l *layout) bool { return l.keep > 0 })
	}) {
		return 0
	}
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		// From this time on, no window has a fact that is dropped. Lookups of earlier times are refused.
		s.trimmed.Store(max(s.trimmed.Load(), to))
		for j, entities := range sh.spaces {
			for _, e := range entities {
				for k, l := range s.spaces[j].sources {
					if l.keep > 0 && e[k] != nil {
						before := e[k].size()
						dropped += e[k].trim(l, to-l.keep)
						s.bytes.Add(e[k].size() - before)
					}
				}
			}
		}
		sh.mu.Unlock()
	}
	return dropped
}

// trim drops the facts up to a time.
func (s *series) trim(l *layout, to int64) (dropped int) {
	n := 0
	for n < len(s.rows) && int64(s.rows[n+wordAt]) <= to {
		row := s.rows[n : n+l.stride]
		s.remember(hashStamp(int64(row[wordAt]), string(unpackKey(nil, s.key(row)))))
		s.dead += len(s.key(row))
		n += l.stride
	}
	if n == 0 {
		return 0
	}
	s.rows = slices.Clone(s.rows[n:]) // a copy, to release the memory
	s.narrow(l)
	s.compact(l)
	return n / l.stride
}

// remember adds the hash of a dropped fact.
func (s *series) remember(hash uint64) {
	if i, found := slices.BinarySearch(s.gone, hash); !found {
		s.gone = slices.Insert(s.gone, i, hash)
	}
}

// forget removes the hash of a dropped fact that was retracted.
func (s *series) forget(at int64, key string) {
	if len(s.gone) == 0 {
		return
	}
	if i, found := slices.BinarySearch(s.gone, hashStamp(at, key)); found {
		s.gone = slices.Delete(s.gone, i, i+1)
	}
}
