// Package customer is the life of a customer: somebody registers, and may then change the address
// and give or withdraw consent, each any number of times.
//
//	RegisterCustomer        ChangeAddress, SetConsent
//	       │                     ┌────┐
//	       ▼                     │    ▼
//	       └──────────────────► registered ┄┄┄► erased
//
// Erasure (dotted) does not exist yet. It will make the personal fields of all these events
// unreadable. The contract marks those fields (millrace.event.v1.pii). No error and no log line may
// contain one.
//
// A command that changes nothing stores no event: the same address, or a consent that was given or
// refused in the same way. The first refusal is stored, though nothing was given before: somebody who
// was not asked yet is not somebody who refuses.
//
// This file is the whole domain. It is pure: no I/O, no clock, no randomness. handler.go maps
// CustomerService to it.
package customer

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
)

// State is the part of a customer's history that decisions and GetCustomer need.
type State struct {
	Registered bool
	Reference  string
	Name       string
	Email      string
	Country    string
	Address    *customerv1.Address         // nil until the first one
	Consents   []customerv1.ConsentPurpose // consents in force, ascending
	Refused    []customerv1.ConsentPurpose // purposes that were refused or withdrawn, ascending
}

// Command is one of Register, ChangeAddress and SetConsent.
type Command interface{ command() }

// The commands of a customer's life. At is the business time.
type (
	// Register adds a customer.
	Register struct {
		CustomerID string
		Reference  string
		Name       string
		Email      string
		Country    string
		At         time.Time
	}
	// ChangeAddress replaces the delivery address.
	ChangeAddress struct {
		CustomerID string
		Address    *customerv1.Address
		At         time.Time
	}
	// SetConsent gives or withdraws consent to one purpose.
	SetConsent struct {
		CustomerID string
		Purpose    customerv1.ConsentPurpose
		Granted    bool
		At         time.Time
	}
)

func (Register) command()      {}
func (ChangeAddress) command() {}
func (SetConsent) command()    {}

// Decider returns the domain for the runner.
func Decider() commands.Decider[State, Command, *customerv1.CustomerEvent] {
	return commands.Decider[State, Command, *customerv1.CustomerEvent]{
		Decide: Decide, Evolve: Evolve, Opens: opens, Schema: 2,
	}
}

// opens reports whether a command usually starts a new stream; see commands.Decider.
func opens(c Command) bool {
	_, ok := c.(Register)
	return ok
}

// Decide returns the events of a command, or the reason to reject it.
func Decide(s State, c Command) ([]*customerv1.CustomerEvent, error) {
	switch c := c.(type) {
	case Register:
		return s.register(c)
	case ChangeAddress:
		return s.changeAddress(c)
	case SetConsent:
		return s.setConsent(c)
	}
	return nil, fmt.Errorf("unknown command %T for a customer", c)
}

func (s State) register(c Register) ([]*customerv1.CustomerEvent, error) {
	if s.Registered {
		return nil, &commands.RejectedError{
			Code: commands.AlreadyExists, Rule: "customer_already_registered", Field: "customer_id",
			Reason: "a customer with this id is already registered",
		}
	}
	registered := &customerv1.CustomerRegistered{
		CustomerId: c.CustomerID, Reference: c.Reference, Name: c.Name, Email: c.Email, Country: c.Country,
		RegisteredAt: timestamppb.New(c.At),
	}
	return []*customerv1.CustomerEvent{{Event: &customerv1.CustomerEvent_Registered{Registered: registered}}}, nil
}

// changeAddress stores nothing if the address is the same.
func (s State) changeAddress(c ChangeAddress) ([]*customerv1.CustomerEvent, error) {
	if err := s.mustBeRegistered(); err != nil {
		return nil, err
	}
	if proto.Equal(s.Address, c.Address) {
		return nil, nil
	}
	changed := &customerv1.AddressChanged{
		CustomerId: c.CustomerID, Address: c.Address, ChangedAt: timestamppb.New(c.At),
	}
	return []*customerv1.CustomerEvent{{Event: &customerv1.CustomerEvent_AddressChanged{AddressChanged: changed}}}, nil
}

// setConsent stores nothing if the customer has said the same before.
func (s State) setConsent(c SetConsent) ([]*customerv1.CustomerEvent, error) {
	if err := s.mustBeRegistered(); err != nil {
		return nil, err
	}
	said := s.Refused
	if c.Granted {
		said = s.Consents
	}
	if slices.Contains(said, c.Purpose) {
		return nil, nil
	}
	changed := &customerv1.ConsentChanged{
		CustomerId: c.CustomerID, Purpose: c.Purpose, Granted: c.Granted, ChangedAt: timestamppb.New(c.At),
	}
	return []*customerv1.CustomerEvent{{Event: &customerv1.CustomerEvent_ConsentChanged{ConsentChanged: changed}}}, nil
}

// Evolve returns the customer after an event.
func Evolve(s State, e *customerv1.CustomerEvent) State {
	switch e := e.GetEvent().(type) {
	case *customerv1.CustomerEvent_Registered:
		r := e.Registered
		s = State{
			Registered: true, Reference: r.GetReference(), Name: r.GetName(), Email: r.GetEmail(),
			Country: r.GetCountry(),
		}
	case *customerv1.CustomerEvent_AddressChanged:
		s.Address = e.AddressChanged.GetAddress()
	case *customerv1.CustomerEvent_ConsentChanged:
		purpose, granted := e.ConsentChanged.GetPurpose(), e.ConsentChanged.GetGranted()
		s.Consents = with(s.Consents, purpose, granted)
		s.Refused = with(s.Refused, purpose, !granted)
	}
	return s
}

// with returns purposes with or without one of them.
func with(purposes []customerv1.ConsentPurpose, one customerv1.ConsentPurpose, has bool) []customerv1.ConsentPurpose {
	// Clone, because DeleteFunc would change an earlier state's slice.
	purposes = slices.DeleteFunc(slices.Clone(purposes), func(p customerv1.ConsentPurpose) bool { return p == one })
	if has {
		purposes = append(purposes, one)
		slices.Sort(purposes)
	}
	return purposes
}

// mustBeRegistered returns the rejection of a command for an unknown customer.
func (s State) mustBeRegistered() error {
	if !s.Registered {
		return errUnknown()
	}
	return nil
}

func errUnknown() error {
	return &commands.RejectedError{Code: commands.NotFound, Rule: "customer_unknown", Field: "customer_id",
		Reason: "the customer does not exist"}
}
