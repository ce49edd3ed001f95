package shop

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
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
	p, err := readProperties(m.GetProperties())
	if err != nil {
		return nil, err
	}
	var action, page, sku string
	switch m.GetType() {
	case behavior.Page, behavior.Screen:
		action, page = pageView, m.GetName()
		if page == "" {
			page, err = propertyText("path", p.path)
		}
	case behavior.Track:
		switch action = actions[m.GetEvent()]; action {
		case "":
			action = "other"
		case productView, addToCart, "remove_from_cart":
			if sku, err = propertyText("sku", p.sku); sku == "" && err == nil {
				sku, err = propertyText("product_id", p.productID)
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
type properties struct{ path, sku, productID json.RawMessage }

// readProperties reads the properties of an event. Their names count exactly, as in the tracking plan
// and in SQL; encoding/json would read the fields of a struct in any case. The intake accepts no event
// with a property twice. If another producer wrote one, its facts would not be those that SQL sees.
func readProperties(text string) (p properties, err error) {
	if text == "" {
		return p, nil
	}
	d := json.NewDecoder(strings.NewReader(text))
	if begin, err := d.Token(); err != nil || begin != json.Delim('{') {
		return p, errors.New("properties: want a JSON object")
	}
	for d.More() {
		name, err := d.Token()
		var value json.RawMessage
		if err == nil {
			err = d.Decode(&value)
		}
		if err != nil {
			return p, fmt.Errorf("properties: %w", err)
		}
		var field *json.RawMessage
		switch name {
		case "path":
			field = &p.path
		case "sku":
			field = &p.sku
		case "product_id":
			field = &p.productID
		default:
			continue
		}
		if *field != nil {
			return p, fmt.Errorf("properties.%s: occurs twice", name)
		}
		*field = value
	}
	if _, err := d.Token(); err != nil {
		return p, fmt.Errorf("properties: %w", err)
	}
	return p, nil
}

// propertyText returns a property that is a text or a number, and "" for null or none.
func propertyText(name string, raw json.RawMessage) (string, error) {
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
