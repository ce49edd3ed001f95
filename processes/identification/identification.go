// Package identification turns what visitors say of themselves into links of the identity graph.
//
// An identify event of tracking names a user and the anonymous id under which that person was known
// before. If the user is a customer, Process sends a LinkIdentifiers command for the anonymous id,
// and one for each trait that Config.Traits lists as an identifier. The service identity decides
// each of them; its limits apply.
//
// Process is a streams.Sink without documents: what it writes are commands, and its position is in
// Redis. Invariants:
//
//   - A link is requested once for each event, also after a crash or a replay. The key of the
//     command is derived from the event's id, and the service answers a known key with its first
//     answer. So an old event that is delivered again does not restore a link that was taken back.
//   - The position moves only after the commands of an event were answered. While the service does
//     not answer, the process waits and tries again.
//   - An event from which no link follows, and a link that is refused, are counted and passed.
package identification

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	"github.com/millrace/millrace/internal/client"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/streams"
)

// Name is the name and version of the process. Another version reads all events again.
const Name = "identification/v1"

// Sender sends a command and returns its receipt: *client.Client.
type Sender interface {
	Send(context.Context, proto.Message) (*eventv1.Receipt, error)
}

// Config configures a Process.
type Config struct {
	Redis    *redis.Client
	Commands Sender
	// Traits are the traits of identify events that are identifiers, with their kinds.
	Traits map[string]identityv1.IdentifierKind
	Logger *slog.Logger
}

// Stats counts identify events and links since the start of the process. An event that is delivered
// again counts again.
type Stats struct {
	Linked      int64 // links that were accepted
	Refused     int64 // links that the service refused
	NotCustomer int64 // events whose user id is not the id of a customer, or that have none
	Unusable    int64 // traits that are not an identifier of their kind
}

// Process links identifiers. It is a streams.Sink.
type Process struct {
	config     Config
	positions  *redis.Documents
	watermarks *streams.Watermarks
	stats      struct{ linked, refused, notCustomer, unusable atomic.Int64 }
}

// New returns a process. Runtime returns what feeds it.
func New(c Config) *Process {
	return &Process{config: c, positions: c.Redis.Documents(Name), watermarks: streams.NewWatermarks()}
}

// Runtime returns what feeds the process.
func (p *Process) Runtime(cfg kafka.Config, decoder *registry.Decoder) *streams.Runtime {
	return streams.New(streams.Config{
		Name: Name, Topics: []string{event.Behavior.Topic}, Sink: p, Watermarks: p.watermarks, Kafka: cfg,
		Decoder: decoder, Logger: p.config.Logger,
	})
}

// Stats returns what became of the events so far.
func (p *Process) Stats() Stats {
	s := &p.stats
	return Stats{Linked: s.linked.Load(), Refused: s.refused.Load(), NotCustomer: s.notCustomer.Load(),
		Unusable: s.unusable.Load()}
}

// Progress returns how many links were accepted since the start, and how many events of behaviour
// are to be read.
func (p *Process) Progress() (links, lag uint64) {
	lag, _ = p.watermarks.Lag(event.Behavior.Topic)
	return uint64(p.stats.linked.Load()), lag
}

// Apply implements streams.Sink: it sends the commands that follow from identify events.
func (p *Process) Apply(ctx context.Context, records []streams.Record) error {
	var unreadable streams.UnreadableError
	for _, r := range records {
		m, err := behavior.Decode(r.Event)
		if err != nil {
			unreadable.Records = append(unreadable.Records, r)
			unreadable.Reasons = append(unreadable.Reasons, err)
			continue
		}
		if m.GetType() != behavior.Identify {
			continue
		}
		links, unusable := Links(r.Event, m, p.config.Traits)
		if links == nil {
			p.stats.notCustomer.Add(1)
		}
		p.stats.unusable.Add(int64(unusable))
		for _, link := range links {
			if err := p.link(ctx, r.Event.ID, link); err != nil {
				return err
			}
		}
	}
	if len(unreadable.Records) > 0 {
		return &unreadable
	}
	return nil
}

// link sends a command. A refusal is final: it is an answer, not a failure.
func (p *Process) link(ctx context.Context, id uuid.UUID, command *identityv1.LinkIdentifiersRequest) error {
	_, err := p.config.Commands.Send(ctx, command)
	if refusal, refused := client.Refusal(err); refused {
		p.stats.refused.Add(1)
		// Neither the customer nor the identifier: they are personal.
		p.config.Logger.Info("identification: a link was refused", "event", id,
			"kind", command.GetIdentifiers()[0].GetKind(), "rule", cmp.Or(refusal.GetRule(), "invalid"))
		return nil
	}
	if err != nil {
		return fmt.Errorf("link an identifier of event %s: %w", id, err)
	}
	p.stats.linked.Add(1)
	return nil
}

// Links returns the commands that follow from an identify event: one for each identifier, so that a
// refusal of one does not concern the others. It is nil if the user is not a customer. unusable is
// the number of traits that are not identifiers of their kind. Links is pure.
func Links(
	e event.Event, m *behaviorv1.BehaviorEvent, traits map[string]identityv1.IdentifierKind,
) (links []*identityv1.LinkIdentifiersRequest, unusable int) {
	customer := strings.TrimSpace(m.GetUserId())
	if len(customer) != 36 || uuid.Validate(customer) != nil {
		return nil, 0
	}
	links = []*identityv1.LinkIdentifiersRequest{}
	// A client's clock may be ahead, and a command may not be of the future.
	at := e.OccurredAt
	if e.RecordedAt.Before(at) || at.Unix() <= 0 {
		at = e.RecordedAt
	}
	add := func(source string, kind identityv1.IdentifierKind, value string) {
		links = append(links, &identityv1.LinkIdentifiersRequest{
			CustomerId:  customer,
			Identifiers: []*identityv1.IdentifierKey{{Kind: kind, Value: value}},
			LinkedAt:    timestamppb.New(at), IdempotencyKey: key(e.ID, source),
		})
	}
	if anonymous := m.GetAnonymousId(); anonymous != "" && anonymous != customer {
		add("", identityv1.IdentifierKind_IDENTIFIER_KIND_ANONYMOUS_ID, anonymous)
	}
	if len(traits) == 0 || m.GetTraits() == "" {
		return links, 0
	}
	var given map[string]json.RawMessage
	if json.Unmarshal([]byte(m.GetTraits()), &given) != nil {
		return links, 1 // the check of events allows objects only
	}
	for _, name := range slices.Sorted(maps.Keys(traits)) {
		text, there := given[name]
		if !there || string(text) == "null" {
			continue
		}
		value, ok := identifier(traits[name], text)
		if !ok {
			unusable++
			continue
		}
		add(name, traits[name], value)
	}
	return links, unusable
}

// key returns the idempotency key of a link: the same for all copies of an event. The name of a trait
// may be of any length, so it is hashed.
func key(id uuid.UUID, trait string) string {
	if trait == "" {
		return "identify/" + id.String()
	}
	sum := sha256.Sum256([]byte(trait))
	return "identify/" + id.String() + "/" + hex.EncodeToString(sum[:8])
}

var (
	hash  = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)
	phone = regexp.MustCompile(`^\+[1-9][0-9]{6,14}$`) // E.164
)

// identifier returns the value of an identifier, from the JSON of a trait. An address or a phone
// number becomes its hash, unless it is one already.
func identifier(kind identityv1.IdentifierKind, text json.RawMessage) (string, bool) {
	var value string
	if json.Unmarshal(text, &value) != nil {
		return "", false
	}
	value = strings.TrimSpace(value)
	switch kind {
	case identityv1.IdentifierKind_IDENTIFIER_KIND_EMAIL_HASH:
		value = strings.ToLower(value)
		if hash.MatchString(value) {
			return value, true
		}
		if at := strings.IndexByte(value, '@'); at < 1 || at == len(value)-1 {
			return "", false
		}
		return hashed(value), true
	case identityv1.IdentifierKind_IDENTIFIER_KIND_PHONE_HASH:
		if hash.MatchString(value) {
			return strings.ToLower(value), true
		}
		value = strings.NewReplacer(" ", "", "-", "", "(", "", ")", "", ".", "").Replace(value)
		return hashed(value), phone.MatchString(value)
	default:
		return value, value != ""
	}
}

// hashed returns the SHA-256 of a text in hexadecimal digits.
func hashed(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// Positions implements streams.Sink. Without positions, or with damaged ones, the runtime reads the
// topic from its beginning, which requests no link again.
func (p *Process) Positions(ctx context.Context, _ string) (map[int32]streams.Applied, error) {
	stored, err := p.positions.Positions(ctx)
	if err != nil {
		return nil, err
	}
	positions := map[int32]streams.Applied{}
	for field, value := range stored {
		partition, err := strconv.ParseInt(field, 10, 32)
		if err == nil {
			positions[int32(partition)], err = streams.ParseApplied(value)
		}
		if err != nil {
			p.watermarks.Faults().Report(p.config.Logger, Name, "positions",
				fmt.Sprintf("position %q of partition %q: %v", value, field, err))
			return map[int32]streams.Applied{}, p.positions.ForgetPositions(ctx)
		}
	}
	return positions, nil
}

// SavePositions implements streams.Sink.
func (p *Process) SavePositions(ctx context.Context, _ string, moves []streams.Move) error {
	all := make([]redis.Move, len(moves))
	begin := false
	for i, m := range moves {
		all[i] = redis.Move{Field: strconv.Itoa(int(m.Partition)), To: m.To.String()}
		if m.First {
			begin = true
		} else {
			all[i].From = m.From.String()
		}
	}
	if begin {
		if err := p.positions.Begin(ctx); err != nil {
			return lost(err)
		}
	}
	return lost(p.positions.MovePositions(ctx, all))
}

// lost translates redis.ErrLost into streams.ErrLost.
func lost(err error) error {
	if errors.Is(err, redis.ErrLost) {
		return fmt.Errorf("process %s: %w: %w", Name, streams.ErrLost, err)
	}
	return err
}
