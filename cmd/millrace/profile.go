package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/identity"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	"github.com/millrace/millrace/gen/millrace/customer360/v1/customer360v1connect"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
)

// newProfile returns the command profile. It asks a running system for one profile.
func newProfile(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "profile ID",
		Short: "Show everything that is known of a customer",
		Long: `Show the profile of a person: contact, consents, orders, behaviour and identifiers, of all customers who were
merged into one. ID is the id of any of these customers, or an identifier as KIND:VALUE. The kinds are
` + strings.Join(identity.Kinds(), ", ") + `.

The answer contains personal data. With auth.tokens, the caller needs the right queries.customer360. The examples
are of the demo shop.`,
		Example: `  millrace profile 019b8d73-dfa0-77b3-b48c-0c15d9771524
  millrace profile anonymous_id:019b8d62-7a80-748f-8ecf-4a02507a5886
  millrace profile --output json email_hash:07036a4bf49a804dabbd8eda59da8a7b8158645bce68f100a0708ce63dd4ca16`,
		Args: cobra.ExactArgs(1),
	}
	output := outputFlag(cmd, "table", "json")
	var token string
	cmd.Flags().StringVar(&token, "token", "", "token of a command's receipt: the profile has seen that command")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		node, err := identity.ParseNode(args[0])
		if err != nil {
			return fmt.Errorf("ID: %w", err)
		}
		caller, err := a.caller(apiListener)
		if err != nil {
			return err
		}
		r, err := caller.profile(cmd.Context(), node, token)
		if err != nil {
			return explain(err)
		}
		if *output == "json" {
			return printMessage(cmd.OutOrStdout(), r)
		}
		printProfile(cmd.OutOrStdout(), r)
		return nil
	}
	return cmd
}

// customers returns a client of the queries for customers.
func (c caller) customers() customer360v1connect.CustomerQueryServiceClient {
	return customer360v1connect.NewCustomerQueryServiceClient(c.http(), c.api())
}

// profile asks for the profile of the person that a node belongs to.
func (c caller) profile(
	ctx context.Context, node identity.Node, token string,
) (*customer360v1.GetProfileResponse, error) {
	req := &customer360v1.GetProfileRequest{Token: token}
	if id, ok := node.CustomerID(); ok {
		req.Key = &customer360v1.GetProfileRequest_CustomerId{CustomerId: id}
	} else {
		i := node.Identifier()
		req.Key = &customer360v1.GetProfileRequest_Identifier{
			Identifier: &identityv1.IdentifierKey{Kind: i.GetKind(), Value: i.GetValue()},
		}
	}
	r, err := c.customers().GetProfile(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return r.Msg, nil
}

// printProfile prints a profile as a table of its parts.
func printProfile(w io.Writer, r *customer360v1.GetProfileResponse) {
	p := r.GetProfile()
	var rows [][]any
	add := func(what string, value ...string) {
		if strings.Join(value, "") != "" {
			rows = append(rows, []any{what, lines(value)})
		}
	}
	contact, orders, behavior := p.GetContact(), p.GetOrders(), p.GetBehavior()
	add("customer", p.GetCustomerIds()...)
	add("name", contact.GetName())
	add("reference", contact.GetReference())
	add("e-mail", contact.GetEmail())
	address := contact.GetAddress()
	add("address", strings.Join(slices.DeleteFunc(append(slices.Clone(address.GetLines()),
		address.GetPostalCode()+" "+address.GetCity(), contact.GetCountry()),
		func(s string) bool { return strings.TrimSpace(s) == "" }), ", "))
	add("registered", date(p.GetRegisteredAt()))
	for _, c := range p.GetConsents() {
		granted := "no"
		if c.GetGranted() {
			granted = "yes"
		}
		purpose := strings.TrimPrefix(c.GetPurpose().String(), "CONSENT_PURPOSE_")
		add("consents to "+strings.ToLower(purpose), granted+", since "+date(c.GetChangedAt()))
	}
	add("orders", fmt.Sprintf("%d, of which %d are open; %d were cancelled", orders.GetCount(), orders.GetOpen(),
		orders.GetCancelled()))
	for _, total := range orders.GetTotals() {
		add("spent", event.MoneyString(total)+" "+total.GetCurrencyCode())
	}
	add("ordered first, last", span(orders.GetFirstAt(), orders.GetLastAt()))
	if behavior.GetEvents() > 0 {
		var counts []string
		for _, name := range slices.Sorted(maps.Keys(behavior.GetCounts())) {
			counts = append(counts, name+": "+strconv.FormatUint(behavior.GetCounts()[name], 10))
		}
		add("events", counts...)
		add("seen first, last", span(behavior.GetFirstSeen(), behavior.GetLastSeen()))
		add("last page", behavior.GetLastPage())
	}
	var identifiers []string
	for _, i := range p.GetIdentifiers() {
		kind := strings.TrimPrefix(i.GetKind().String(), "IDENTIFIER_KIND_")
		identifiers = append(identifiers, strings.ToLower(kind)+":"+i.GetValue())
	}
	add("identifiers", identifiers...)
	for _, g := range p.GetFeatures() {
		var values []string
		for _, f := range g.GetFeatures() {
			// The others say nothing: no fact is behind them.
			if f.GetValue().GetStatus() == featuresv1.ValueStatus_VALUE_STATUS_PRESENT {
				values = append(values, f.GetName()+": "+valueText(f.GetValue()))
			}
		}
		add(g.GetGroup(), values...)
	}
	add("segments", r.GetSegments()...)
	printTable(w, []string{"profile", ""}, rows)
}

// date formats a time, which may be absent.
func date(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Format(time.DateTime)
}

// span formats two times, which may be absent.
func span(first, last *timestamppb.Timestamp) string {
	if first == nil {
		return ""
	}
	return date(first) + ", " + date(last)
}
