package streams

// Owned returns the number of partitions that the runtime has.
func (r *Runtime) Owned() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.partitions)
}
