package relay

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// announcement states that the relay seals the records of a topic under a name, from the floors on.
// It is signed with a key derived from the store's secret. The name is a hash of the public key and
// the topic's id. So no other process can announce the name or change its floors.
type announcement struct {
	name    string
	key     string  // the raw ed25519.PublicKey
	topicID string  // empty if the brokers have no ids
	floors  []int64 // offsets, by partition
}

const (
	sealInfix       = "/seal/" // in an announcement's key, between the service and the name
	publicKeyHeader = "public-key"
	sealPurpose     = "millrace seal 1" // separates these keys and signatures from others of the same secret
	nameBytes       = 16                // length of a seal's name
)

// sealKey derives the key that signs the announcements of a service from the store's secret.
func sealKey(secret []byte, service string) (ed25519.PrivateKey, error) {
	if len(secret) == 0 {
		return nil, fmt.Errorf("the store of %s has no secret", service)
	}
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(sealPurpose + " " + service))
	return ed25519.NewKeyFromSeed(h.Sum(nil)), nil
}

// publicKey returns the raw public key.
func publicKey(key ed25519.PrivateKey) string { return string(key.Public().(ed25519.PublicKey)) }

// sealName returns the name under which the holder of a public key seals the records of a topic.
func sealName(key, topicID string) string {
	sum := sha256.Sum256(signedBytes(sealPurpose, []byte(key), []byte(topicID), nil))
	return hex.EncodeToString(sum[:nameBytes])
}

// isSealName reports whether a string has the form of a seal's name.
func isSealName(name string) bool {
	b, err := hex.DecodeString(name)
	return err == nil && len(b) == nameBytes && hex.EncodeToString(b) == name
}

// record returns the announcement as a Kafka record, signed with key.
func (a announcement) record(service string, key ed25519.PrivateKey) kafka.Record {
	r := kafka.Record{
		Topic: PositionsTopic, Partition: kafka.AnyPartition,
		Key: []byte(service + sealInfix + a.name), Value: []byte(formatFloors(a.floors)),
		Headers: []event.Header{
			{Key: publicKeyHeader, Value: []byte(a.key)}, {Key: topicHeader, Value: []byte(a.topicID)},
		},
	}
	signature := ed25519.Sign(key, signedBytes(sealPurpose, r.Key, r.Value, r.Headers))
	r.Headers = append(r.Headers, event.Header{Key: signatureHeader, Value: signature})
	return r
}

// announcementKey returns the service and the name of an announcement's record. ok reports whether
// the record has the key of an announcement; its content may be anything.
func announcementKey(m kafka.Message) (service, name string, ok bool) {
	service, name, ok = strings.Cut(string(m.Key), sealInfix)
	return service, name, ok && service != "" && name != ""
}

var (
	errNotAnnounced = errors.New("not an announcement of a relay's seal: its signature is missing or invalid")
	errOtherKey     = errors.New("another system announces its seal, but only one system may publish to a topic")
)

// parseAnnouncement reads a record that record returned. An empty wanted key accepts any key. For a
// key other than the wanted one it returns errOtherKey without checking the signature, so that a
// flood of such records is cheap.
func parseAnnouncement(m kafka.Message, wanted string) (announcement, error) {
	_, name, ok := announcementKey(m)
	if h := m.Headers; !ok || len(h) != 3 ||
		h[0].Key != publicKeyHeader || h[1].Key != topicHeader || h[2].Key != signatureHeader ||
		len(h[0].Value) != ed25519.PublicKeySize {
		return announcement{}, errNotAnnounced
	}
	a := announcement{name: name, key: string(m.Headers[0].Value), topicID: string(m.Headers[1].Value)}
	switch {
	case a.name != sealName(a.key, a.topicID):
		return announcement{}, errNotAnnounced
	case wanted != "" && a.key != wanted:
		return announcement{}, errOtherKey
	}
	covered := signedBytes(sealPurpose, m.Key, m.Value, m.Headers[:2])
	if !ed25519.Verify(ed25519.PublicKey(a.key), covered, m.Headers[2].Value) {
		return announcement{}, errNotAnnounced
	}
	var err error
	if a.floors, err = parseFloors(string(m.Value)); err != nil {
		return announcement{}, fmt.Errorf("%w: %w", errNotAnnounced, err)
	}
	return a, nil
}
