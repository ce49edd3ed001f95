package event

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"
	"time"

	"github.com/google/uuid"
)

// NamedID is the UUIDv7 of something that a client names itself: its time is at, in whole milliseconds, and the rest
// comes from name. The same time and name give the same id, so what is sent twice is known again. Times before 1970
// count as 1970.
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

// CanonicalID is a UUID as every store, document and token has it: in lower case. What is no UUID of 36 characters stays as it
// is, for others to refuse: no service takes braces, urn:uuid: or a UUID without its hyphens.
func CanonicalID(id string) string {
	if len(id) != 36 || uuid.Validate(id) != nil {
		return id
	}
	return strings.ToLower(id)
}
