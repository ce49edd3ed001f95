package event

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"
	"time"

	"github.com/google/uuid"
)

// NamedID returns a UUIDv7 that is derived from a time and a name. Its time is at, in whole
// milliseconds; the rest is a hash of name. The same time and name result in the same id, so a
// repeated command is recognised. Times before 1970 are replaced by 1970.
func NamedID(at time.Time, name string) uuid.UUID {
	hash := sha256.Sum256([]byte(name))
	ms := uint64(max(at.UnixMilli(), 0))
	var id uuid.UUID
	binary.BigEndian.PutUint64(id[:], ms<<16|uint64(binary.BigEndian.Uint16(hash[6:8])))
	copy(id[8:], hash[8:16])
	id[6] = id[6]&0x0f | 0x70 // version 7
	id[8] = id[8]&0x3f | 0x80 // RFC 9562
	return id
}

// CanonicalID returns the form of a UUID that every store, document and token uses: lower case.
// Anything but a UUID of 36 characters is returned unchanged and rejected later: no service accepts
// braces, "urn:uuid:" or a UUID without hyphens.
func CanonicalID(id string) string {
	if len(id) != 36 || uuid.Validate(id) != nil {
		return id
	}
	return strings.ToLower(id)
}
