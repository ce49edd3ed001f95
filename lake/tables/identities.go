package tables

import (
	"github.com/millrace/millrace/event"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	"github.com/millrace/millrace/lake/declare"
)

// identitiesEvents has every event of the identity graph, two for each change of an edge: one in
// the stream of each end. Identifiers are personal data.
var identitiesEvents = declare.Events("identities_events", event.Identity, (*identityv1.IdentityEvent)(nil))
