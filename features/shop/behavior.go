package shop

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
)

// visitorActions has a fact for each thing that a visitor did. The entity is the user's id, or the
// anonymous id of a visitor who is not known. The key is the id of the event, which all copies that
// a client sends share.
var visitorActions = features.Source{
	Name: "visitor_actions", Topic: behaviorTopic,
	Columns: []features.Column{
		{Name: "action", Kind: exact.Text, Description: "page_view, product_view, add_to_cart, remove_from_cart, " +
			"search, checkout, purchase or other"},
		{Name: "page", Kind: exact.Text, Description: "name of the page or screen, otherwise its path"},
		{Name: "sku", Kind: exact.Text, Description: "the product viewed, added or removed"},
		{Name: "site", Kind: exact.Text, Description: "the website or app"},
	},
	Project: projectBehavior,
}

// The actions that features select.
const (
	pageView    = "page_view"
	productView = "product_view"
	addToCart   = "add_to_cart"
	search      = "search"
	checkout    = "checkout"
)

// actions are the tracked events that are more than "other". Their names are those of Segment's
// specification for shops.
var actions = map[string]string{
	"Product Viewed": productView, "Product Added": addToCart, "Product Removed": "remove_from_cart",
	"Products Searched": search, "Checkout Started": checkout, "Order Completed": "purchase",
}

// purposeAnalytics is the consent without which an event gives no facts: see reduced_for.
const purposeAnalytics = "analytics"

// projectBehavior implements Source.Project for visitorActions. Types that say who a visitor is, and
// not what a visitor does, give no facts.
func projectBehavior(e event.Event) ([]features.Fact, error) {
	var m behaviorv1.BehaviorEvent
	if err := proto.Unmarshal(e.Data, &m); err != nil {
		return nil, fmt.Errorf("decode payload as %s: %w", event.Behavior.Message, err)
	}
	if slices.Contains(m.GetReducedFor(), purposeAnalytics) {
		return nil, nil
	}
	var p properties
	if raw := m.GetProperties(); raw != "" {
		if err := json.Unmarshal([]byte(raw), &p); err != nil {
			return nil, fmt.Errorf("properties: %w", err)
		}
	}
	var action, page, sku string
	var err error
	switch m.GetType() {
	case behavior.Page, behavior.Screen:
		action, page = pageView, m.GetName()
		if page == "" {
			page, err = p.text("path", p.Path)
		}
	case behavior.Track:
		switch action = actions[m.GetEvent()]; action {
		case "":
			action = "other"
		case productView, addToCart, "remove_from_cart":
			if sku, err = p.text("sku", p.SKU); sku == "" && err == nil {
				sku, err = p.text("product_id", p.ProductID)
			}
		}
	default:
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if e.Stream == "" {
		return nil, errors.New("user_id and anonymous_id: missing")
	}
	at, err := stamp("timestamp", m.GetTimestamp())
	if err != nil {
		return nil, err
	}
	return []features.Fact{{
		Entity: e.Stream, Key: e.ID.String(), At: at,
		Values: []exact.Value{text(action), text(cut(page)), text(cut(sku)), text(cut(m.GetSource()))},
	}}, nil
}

// properties are those that features use.
type properties struct {
	Path      json.RawMessage `json:"path"`
	SKU       json.RawMessage `json:"sku"`
	ProductID json.RawMessage `json:"product_id"`
}

// text returns a property that is a text or a number, and "" for null or none.
func (properties) text(name string, raw json.RawMessage) (string, error) {
	switch raw = bytes.TrimSpace(raw); {
	case len(raw) == 0, string(raw) == "null":
		return "", nil
	case raw[0] == '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return s, err
	case raw[0] == '-', raw[0] >= '0' && raw[0] <= '9':
		return string(raw), nil
	}
	return "", fmt.Errorf("properties.%s: want a text or a number", name)
}

// maxText bounds the texts that visitors send, in bytes. Features keep them in memory.
const maxText = 256

// cut returns the first maxText bytes of a text, without a part of a character.
func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
