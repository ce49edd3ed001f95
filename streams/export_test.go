package streams

// Owned returns how many partitions the runtime has now.
func (r *Runtime) Owned() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.parts)
}
