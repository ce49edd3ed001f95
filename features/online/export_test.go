package online

import "io"

// Read reads a snapshot of size bytes.
func (s *Store) Read(r io.Reader, size int64) error { return s.read(r, size) }

// Write writes a snapshot.
func (s *Store) Write(w io.Writer) error { return s.write(w) }

// WriteFrame writes a frame of a snapshot.
func WriteFrame(w io.Writer, kind byte, content []byte) error { return writeFrame(w, kind, content) }
