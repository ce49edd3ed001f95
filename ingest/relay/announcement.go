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

// announcement says that the relay seals the records of a topic under this name, from the floors
// on. It is signed with a key that is derived from the store's secret, and the name is a hash of
// that key's public half and the topic's id. So nobody else can announce the name, or change its
// floors.
type announcement struct {
	name    string
	key     string // the raw ed25519.PublicKey
	topicID string // empty if the brokers have no ids
	floors  []int64
}

const (
	sealInfix       = "/seal/" // in an announcement's key, between the service and the name
	publicKeyHeader = "public-key"
	sealPurpose     = "millrace seal 1"
	nameBytes       = 16 // of a seal's name
)

// sealKey returns the key that signs the announcements of a service.
func sealKey(secret []byte, service string) (ed25519.PrivateKey, error) {
	if len(secret) == 0 {
		return nil, fmt.Errorf("the store of %s has no secret", service)
	}
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(sealPurpose + " " + service))
	return ed25519.NewKeyFromSeed(h.Sum(nil)), nil
}

func publicHalf(key ed25519.PrivateKey) string { return string(key.Public().(ed25519.PublicKey)) }

// sealName returns the name under which the holder of a public key seals the records of a topic.
func sealName(key, topicID string) string {
	sum := sha256.Sum256(signedBytes(sealPurpose, []byte(key), []byte(topicID), nil))
	return hex.EncodeToString(sum[:nameBytes])
}

// isSealName reports whether a text has the form of a name.
func isSealName(name string) bool {
	b, err := hex.DecodeString(name)
	return err == nil && len(b) == nameBytes && hex.EncodeToString(b) == name
}

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

// announcementKey reports whether a record is stored where announcements are, and of which service
// and name.
func announcementKey(m kafka.Message) (service, name string, ok bool) {
	service, name, ok = strings.Cut(string(m.Key), sealInfix)
	return service, name, ok && service != "" && name != ""
}

var (
	errNotAnnounced = errors.New("not an announcement of a relay's seal: it is not signed, or was changed")
	errOtherKey     = errors.New("another system announces its seal; only one may publish to a topic")
)

// parseAnnouncement reads what record wrote. It returns errOtherKey for an announcement under
// another key than the wanted one, without checking its signature, so that a flood of them is
// cheap. An empty key means any.
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
