package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event/identity"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
	"github.com/millrace/millrace/internal/app"
)

// newFeaturesGet returns the command features get. The table has a row per feature and a column per
// entity, because a vector has more features than a terminal has room for columns.
func newFeaturesGet(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get GROUP ENTITY...",
		Short: "Show the feature vectors of entities, now or at another time",
		Long: `Show the feature vectors of entities, from the memory of a running process with the role features. An
entity is a customer's id or a product's sku, as millrace features list says. A value in parentheses
is that of an empty window; null means that the feature has none then. A customer who refuses analytics is not
found, or refused if the caller may read profiles (queries.customer360). The examples are of the demo shop.`,
		Example: `  millrace features get product_popularity TOY-0504
  millrace features get customer_value 019b8d73-dfa0-77b3-b48c-0c15d9771524 --features frequency_90d,monetary_sum_90d`,
		Args: cobra.MinimumNArgs(2),
	}
	output := outputFlag(cmd, "table", "json")
	at := cmd.Flags().String("at", "", "time of the vectors in RFC 3339 (default: now)")
	token := cmd.Flags().String("token", "", "token of a command's receipt: wait until the vectors reflect that command")
	only := cmd.Flags().StringSlice("features", nil, "names of features, separated by commas (default: all)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r := &featuresv1.GetVectorsRequest{Group: args[0], Entities: args[1:], Features: *only, Token: *token}
		var err error
		if r.At, err = timeFlag("at", *at); err != nil {
			return err
		}
		caller, err := a.caller(apiListener)
		if err != nil {
			return err
		}
		c := featuresv1connect.NewFeatureServiceClient(caller.http(), caller.api())
		res, err := c.GetVectors(cmd.Context(), connect.NewRequest(r))
		if connect.CodeOf(err) == connect.CodeUnimplemented {
			return fmt.Errorf("%w: the process at --addr does not have the role features", err)
		}
		if err != nil {
			return explain(err)
		}
		if *output == "json" {
			return printMessage(cmd.OutOrStdout(), res.Msg)
		}
		header := []string{"feature"}
		for _, v := range res.Msg.GetVectors() {
			header = append(header, v.GetEntity())
		}
		refused := a.refused(cmd.Context(), caller, args[0], res.Msg.GetVectors())
		rows := make([][]any, len(res.Msg.GetFeatures()))
		for i, name := range res.Msg.GetFeatures() {
			rows[i] = []any{name}
			for _, v := range res.Msg.GetVectors() {
				text := valueText(v.GetValues()[i])
				if refused[v.GetEntity()] {
					text = "refused"
				}
				rows[i] = append(rows[i], text)
			}
		}
		printTable(cmd.OutOrStdout(), header, rows)
		return nil
	}
	return cmd
}

// refused returns which of the customers that were not found refuse analytics, by their profiles. The API
// of features answers as if it did not know them. Their consents are not for all who may read features, so
// nobody is refused if the caller may not read profiles.
func (a *cli) refused(ctx context.Context, c caller, group string, vectors []*featuresv1.Vector) map[string]bool {
	refused := map[string]bool{}
	groups, err := a.groups()
	if err != nil {
		return refused
	}
	if versions := versionsOf(groups, group); len(versions) == 0 || versions[0].Entity != app.CustomerEntity {
		return refused
	}
	for _, v := range vectors {
		found := slices.ContainsFunc(v.GetValues(), func(v *featuresv1.Value) bool {
			return v.GetStatus() != featuresv1.ValueStatus_VALUE_STATUS_NOT_FOUND
		})
		if found {
			continue
		}
		r, err := c.profile(ctx, identity.Customer(v.GetEntity()), "")
		switch connect.CodeOf(err) {
		case connect.CodeNotFound, connect.CodeInvalidArgument: // nobody of this id
			continue
		}
		if err != nil {
			return refused
		}
		refused[v.GetEntity()] = slices.ContainsFunc(r.GetProfile().GetConsents(), func(c *customer360v1.Consent) bool {
			return c.GetPurpose() == customerv1.ConsentPurpose_CONSENT_PURPOSE_ANALYTICS && !c.GetGranted()
		})
	}
	return refused
}

// timeFlag returns the time of a flag, or nil if the flag is empty.
func timeFlag(name, value string) (*timestamppb.Timestamp, error) {
	if value == "" {
		return nil, nil //nolint:nilnil // an empty flag means now
	}
	t, err := time.Parse(time.RFC3339, value)
	if err != nil {
		return nil, fmt.Errorf("--%s %q: want a time in RFC 3339, such as 2026-01-31T00:00:00Z", name, value)
	}
	return timestamppb.New(t), nil
}

// valueText returns a value for a person.
func valueText(v *featuresv1.Value) string {
	text := ""
	switch k := v.GetKind().(type) {
	case *featuresv1.Value_Integer:
		text = strconv.FormatInt(k.Integer, 10)
	case *featuresv1.Value_Number:
		text = strconv.FormatFloat(k.Number, 'f', -1, 64)
	case *featuresv1.Value_Text:
		text = k.Text
	case *featuresv1.Value_Texts:
		text = strings.Join(k.Texts.GetItems(), ", ")
	}
	switch v.GetStatus() {
	case featuresv1.ValueStatus_VALUE_STATUS_NOT_FOUND:
		return "not found"
	case featuresv1.ValueStatus_VALUE_STATUS_NULL:
		return "null"
	case featuresv1.ValueStatus_VALUE_STATUS_DEFAULT:
		return "(" + text + ")"
	}
	return text
}
