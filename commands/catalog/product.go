// Package catalog is the life of a product:
//
//	ListProduct      ReviseProduct, SetPrice
//	    │               ┌────┐
//	    ▼               │    ▼     DelistProduct
//	    └────────────► listed ───────────────► delisted
//	                     ▲                        │
//	                     └────────────────────────┘
//	                           ListProduct
//
// A product that is off sale keeps its prices, one per currency. A command that changes nothing
// stores no event: the same text, the same price, or a delisting of a delisted product.
//
// This file is the whole domain. It is pure: no I/O, no clock, no randomness. handler.go maps
// CatalogService to it.
package catalog

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
)

// Status is the state of a product's life.
type Status string

// The statuses. The zero Status means that the product does not exist.
const (
	Listed   Status = "listed"
	Delisted Status = "delisted"
)

// State is the part of a product's history that decisions need.
type State struct {
	Status      Status
	Title       string
	Description string
	Categories  []string
	Prices      map[string]string // decimal by currency
}

// Command is one of List, Revise, SetPrice and Delist.
type Command interface{ command() }

// The commands of a product's life. At is the business time.
type (
	// List puts a product on sale.
	List struct {
		SKU         string
		Title       string
		Description string
		Kind        catalogv1.ProductKind
		Categories  []string
		At          time.Time
	}
	// Revise replaces the texts and categories of a product.
	Revise struct {
		SKU         string
		Title       string
		Description string
		Categories  []string
		At          time.Time
	}
	// SetPrice sets the price in the price's currency.
	SetPrice struct {
		SKU   string
		Price *money.Money
		At    time.Time
	}
	// Delist takes a product off sale.
	Delist struct {
		SKU string
		At  time.Time
	}
)

func (List) command()     {}
func (Revise) command()   {}
func (SetPrice) command() {}
func (Delist) command()   {}

// Decider returns the domain for the runner.
func Decider() commands.Decider[State, Command, *catalogv1.ProductEvent] {
	return commands.Decider[State, Command, *catalogv1.ProductEvent]{
		Decide: Decide, Evolve: Evolve, Opens: opens, Schema: 1,
	}
}

// opens reports whether a command usually starts a new stream; see commands.Decider.
func opens(c Command) bool {
	_, ok := c.(List)
	return ok
}

// Decide returns the events of a command, or the reason to reject it.
func Decide(s State, c Command) ([]*catalogv1.ProductEvent, error) {
	switch c := c.(type) {
	case List:
		return s.list(c)
	case Revise:
		return s.revise(c)
	case SetPrice:
		return s.setPrice(c)
	case Delist:
		return s.delist(c)
	}
	return nil, fmt.Errorf("unknown command %T for a product", c)
}

// list also puts a delisted product on sale again. It keeps its prices.
func (s State) list(c List) ([]*catalogv1.ProductEvent, error) {
	if s.Status == Listed {
		return nil, &commands.RejectedError{Code: commands.AlreadyExists, Rule: "product_already_listed", Field: "sku",
			Reason: "the product is already on sale"}
	}
	return []*catalogv1.ProductEvent{{Event: &catalogv1.ProductEvent_Listed{Listed: &catalogv1.ProductListed{
		Sku: c.SKU, Title: c.Title, Description: c.Description, Kind: c.Kind, Categories: c.Categories,
		ListedAt: timestamppb.New(c.At),
	}}}}, nil
}

// revise stores nothing if all texts and categories are as they were.
func (s State) revise(c Revise) ([]*catalogv1.ProductEvent, error) {
	if err := s.mustBeListed(); err != nil {
		return nil, err
	}
	if s.Title == c.Title && s.Description == c.Description && slices.Equal(s.Categories, c.Categories) {
		return nil, nil
	}
	return []*catalogv1.ProductEvent{{Event: &catalogv1.ProductEvent_Revised{Revised: &catalogv1.ProductRevised{
		Sku: c.SKU, Title: c.Title, Description: c.Description, Categories: c.Categories,
		RevisedAt: timestamppb.New(c.At),
	}}}}, nil
}

// setPrice stores nothing if the price in that currency is the same. Other currencies keep theirs.
func (s State) setPrice(c SetPrice) ([]*catalogv1.ProductEvent, error) {
	if err := s.mustBeListed(); err != nil {
		return nil, err
	}
	if err := commands.CheckPrice(c.Price, ""); err != nil {
		return nil, err.In("price")
	}
	if s.Prices[c.Price.GetCurrencyCode()] == event.MoneyString(c.Price) {
		return nil, nil
	}
	return []*catalogv1.ProductEvent{{Event: &catalogv1.ProductEvent_PriceSet{PriceSet: &catalogv1.PriceSet{
		Sku: c.SKU, Price: c.Price, ValidFrom: timestamppb.New(c.At),
	}}}}, nil
}

// delist stores nothing if the product is off sale already, so that it can be repeated.
func (s State) delist(c Delist) ([]*catalogv1.ProductEvent, error) {
	if s.Status == Delisted {
		return nil, nil
	}
	if err := s.mustBeListed(); err != nil {
		return nil, err
	}
	return []*catalogv1.ProductEvent{{Event: &catalogv1.ProductEvent_Delisted{Delisted: &catalogv1.ProductDelisted{
		Sku: c.SKU, DelistedAt: timestamppb.New(c.At),
	}}}}, nil
}

// Evolve returns the product after an event.
func Evolve(s State, e *catalogv1.ProductEvent) State {
	switch e := e.GetEvent().(type) {
	case *catalogv1.ProductEvent_Listed:
		s.Status = Listed
		l := e.Listed
		s.Title, s.Description, s.Categories = l.GetTitle(), l.GetDescription(), l.GetCategories()
	case *catalogv1.ProductEvent_Revised:
		r := e.Revised
		s.Title, s.Description, s.Categories = r.GetTitle(), r.GetDescription(), r.GetCategories()
	case *catalogv1.ProductEvent_PriceSet:
		// Clone, because Evolve must not change a map that an earlier state shares.
		prices := maps.Clone(s.Prices)
		if prices == nil {
			prices = map[string]string{}
		}
		prices[e.PriceSet.GetPrice().GetCurrencyCode()] = event.MoneyString(e.PriceSet.GetPrice())
		s.Prices = prices
	case *catalogv1.ProductEvent_Delisted:
		s.Status = Delisted
	}
	return s
}

// mustBeListed returns the rejection of a command for a product that is not on sale.
func (s State) mustBeListed() error {
	switch s.Status {
	case Listed:
		return nil
	case Delisted:
		return &commands.RejectedError{Code: commands.Refused, Rule: "product_delisted", Field: "sku",
			Reason: "the product is off sale"}
	}
	return &commands.RejectedError{Code: commands.NotFound, Rule: "product_unknown", Field: "sku",
		Reason: "the product does not exist"}
}
