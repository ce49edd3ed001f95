package tracking

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/millrace/millrace/event/behavior"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
)

// What happens to an event without the consent to a purpose.
const (
	// Drop: the event is not stored.
	Drop = "drop"
	// Reduce: the event is stored without what tells who the visitor is.
	Reduce = "reduce"
)

// Consent says which purposes events need consent for. The zero value needs none.
type Consent struct {
	// Purposes maps each purpose, a category of Segment's consent object, to Drop or Reduce.
	Purposes map[string]string
	// Denied makes a purpose that an event does not mention a denied one. Otherwise it counts as
	// granted, because most clients mention none.
	Denied bool
	// Refusals are those that events do not mention. nil: there are none.
	Refusals Refusals
}

// Refusals knows which users have refused a purpose elsewhere, as customers do with SetConsent. An
// event of such a user counts as one without consent, whatever it says.
type Refusals interface {
	// Ready returns an error as long as it is not known who refuses what. Events are not accepted then.
	Ready() error
	// Refuses reports whether a user refuses a purpose.
	Refuses(user, purpose string) bool
}

// ready returns an error if it is not known who refuses what.
func (c Consent) ready() error {
	if c.Refusals == nil {
		return nil
	}
	return c.Refusals.Ready()
}

// Check returns an error if a purpose has an unknown action.
func (c Consent) Check() error {
	for _, purpose := range slices.Sorted(maps.Keys(c.Purposes)) {
		if action := c.Purposes[purpose]; action != Drop && action != Reduce {
			return fmt.Errorf("%s: %q is neither %s nor %s", purpose, action, Drop, Reduce)
		}
	}
	return nil
}

// apply reduces an event, if a purpose demands it. It returns false if the event must not be stored.
// Of an identify, a group or an alias nothing would be left, so it is dropped instead.
func (c Consent) apply(m *behaviorv1.BehaviorEvent) (keep bool) {
	if len(c.Purposes) == 0 {
		return true
	}
	for _, purpose := range slices.Sorted(maps.Keys(c.Purposes)) {
		granted, asked := m.GetConsent()[purpose]
		if !asked {
			granted = !c.Denied
		}
		if granted && !c.refused(m, purpose) {
			continue
		}
		if c.Purposes[purpose] == Drop {
			return false
		}
		m.ReducedFor = append(m.ReducedFor, purpose)
	}
	if len(m.GetReducedFor()) == 0 {
		return true
	}
	switch m.GetType() {
	case behavior.Identify, behavior.Group, behavior.Alias:
		return false
	}
	m.UserId, m.GroupId, m.PreviousId, m.Traits, m.Context = "", "", "", "", ""
	// Each event is somebody else's, so nothing links the events of a visitor.
	m.AnonymousId = "reduced-" + m.GetMessageId()
	return true
}

// refused reports whether the user of an event refuses a purpose.
func (c Consent) refused(m *behaviorv1.BehaviorEvent, purpose string) bool {
	return c.Refusals != nil && m.GetUserId() != "" && c.Refusals.Refuses(m.GetUserId(), purpose)
}

// preferences reads context.consent.categoryPreferences from the context of an event. encoding/json
// would read the fields of a struct in any case of their names.
func preferences(context []byte) (map[string]bool, *FieldError) {
	var fields, inner map[string]json.RawMessage
	var categories map[string]any
	err := json.Unmarshal(context, &fields)
	if text, ok := fields["consent"]; ok && err == nil {
		err = json.Unmarshal(text, &inner)
	}
	if text, ok := inner["categoryPreferences"]; ok && err == nil {
		err = json.Unmarshal(text, &categories)
	}
	if err != nil {
		return nil, &FieldError{"context.consent", "want {categoryPreferences: {name: true or false}}"}
	}
	consent := make(map[string]bool, len(categories))
	for name, value := range categories {
		granted, ok := value.(bool)
		if !ok {
			return nil, &FieldError{"context.consent.categoryPreferences." + name, "want true or false"}
		}
		consent[name] = granted
	}
	return consent, nil
}
