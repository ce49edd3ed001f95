package kill

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/millrace/millrace/event"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
)

// ledger records the commands that were sent to a system, and the system's answers. It is in the
// test's memory, so it survives every fault.
type ledger struct {
	mu       sync.Mutex
	commands map[string]*entry // by idempotency key
	acks     int
	latest   []entry // acknowledged commands to orders, the last maxLatest of them
	row      int     // number of rows that have used the system
}

// entry is one command, however often it was sent.
type entry struct {
	key, name string
	row       int

	acknowledged bool
	token        event.Token // of the receipt
	opaque       string      // the same, as the client received it
	// A rule of the domain or the contract rejected it, so nothing may be stored under the key.
	rejected bool
}

func newLedger() *ledger { return &ledger{commands: map[string]*entry{}} }

// begin counts a row, to which the commands that follow belong.
func (l *ledger) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.row++
}

// acknowledged returns the number of acknowledgements so far.
func (l *ledger) acknowledged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acks
}

// maxLatest bounds the commands among which recent chooses.
const maxLatest = 64

// recent returns one of the last acknowledged commands to orders. ok is false if there is none.
func (l *ledger) recent() (e entry, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.latest) == 0 {
		return entry{}, false
	}
	return l.latest[rand.IntN(len(l.latest))], true
}

// entries returns all commands, in no particular order.
func (l *ledger) entries() []entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]entry, 0, len(l.commands))
	for _, e := range l.commands {
		all = append(all, *e)
	}
	return all
}

// sent records a command before it is forwarded. Its outcome is unknown until it is answered.
func (l *ledger) sent(procedure string, body []byte) (key string, err error) {
	request, err := message(procedure, body, protoreflect.MethodDescriptor.Input)
	if err != nil {
		return "", err
	}
	keyed, ok := request.(interface{ GetIdempotencyKey() string })
	if !ok || keyed.GetIdempotencyKey() == "" {
		return "", fmt.Errorf("%s has no idempotency key: the audit cannot trace it", procedure)
	}
	key = keyed.GetIdempotencyKey()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.commands[key] == nil {
		l.commands[key] = &entry{key: key, name: procedure[strings.LastIndex(procedure, "/")+1:], row: l.row}
	}
	return key, nil
}

// answered records the answer to a command.
func (l *ledger) answered(key, procedure string, ok bool, body []byte) error {
	if !ok {
		l.mu.Lock()
		defer l.mu.Unlock()
		if isRejection(body) {
			l.commands[key].rejected = true
		}
		return nil
	}
	response, err := message(procedure, body, protoreflect.MethodDescriptor.Output)
	if err != nil {
		return err
	}
	receipt := response.(interface{ GetReceipt() *eventv1.Receipt }).GetReceipt()
	token, err := event.ParseToken(receipt.GetToken())
	if err != nil {
		return fmt.Errorf("%s was acknowledged with an invalid token: %w", key, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.commands[key]
	if e.acknowledged {
		if e.token != token {
			return fmt.Errorf("%s was acknowledged twice, with %+v and with %+v", key, e.token, token)
		}
		return nil
	}
	e.acknowledged, e.token, e.opaque = true, token, receipt.GetToken()
	l.acks++
	if token.Service == event.Order.Service {
		l.latest = append(l.latest, *e)
		if len(l.latest) > maxLatest {
			l.latest = slices.Delete(l.latest, 0, len(l.latest)-maxLatest)
		}
	}
	return nil
}

// message decodes one side of a call by its contract.
func message(
	procedure string, body []byte, side func(protoreflect.MethodDescriptor) protoreflect.MessageDescriptor,
) (proto.Message, error) {
	service, method, _ := strings.Cut(strings.TrimPrefix(procedure, "/"), "/")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", procedure, err)
	}
	m := d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
	if m == nil {
		return nil, fmt.Errorf("%s: no such method", procedure)
	}
	kind, err := protoregistry.GlobalTypes.FindMessageByName(side(m).FullName())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", procedure, err)
	}
	decoded := kind.New().Interface()
	return decoded, proto.Unmarshal(body, decoded)
}

// isRejection reports whether an error, in Connect's JSON, is a definite rejection.
func isRejection(body []byte) bool {
	var e struct{ Code string }
	if json.Unmarshal(body, &e) != nil {
		return false
	}
	rejections := []string{"invalid_argument", "not_found", "already_exists", "failed_precondition", "out_of_range"}
	return slices.Contains(rejections, e.Code)
}
