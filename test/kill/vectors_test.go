package kill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/event"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
)

// onlineEnv keeps the facts of the online features in Redis, and logs all vectors that are served.
var onlineEnv = []string{"MILLRACE_FEATURES_ONLINE_STORE=redis", "MILLRACE_FEATURES_ONLINE_LOG_SAMPLE=1"}

// onlineSteps returns the steps of filling Redis with the facts of the online features.
func onlineSteps() []step {
	const point = "features.shared.apply."
	return []step{
		{role: "features", point: point + "before", name: "online before apply", at: 3, check: checkVectors},
		{role: "features", point: point + "after", name: "online after apply", at: 3, after: true, check: checkVectors},
	}
}

// askedTokens is how many tokens of a row's last commands are asked for.
const askedTokens = 50

// checkVectors asks for the vectors of all products, with the tokens of the row's last orders, and
// recomputes all vectors that were served so far from the lake.
func checkVectors(ctx context.Context, s *system) error {
	i, _, err := s.role("features").now()
	if err != nil {
		return err
	}
	ready := func() (bool, error) { return i.get(ctx, "/readyz") == nil, nil }
	if err := await(ctx, "the role features is ready", settleTimeout, ready); err != nil {
		return err
	}
	orders := slices.DeleteFunc(s.ledger.entries(), func(e entry) bool {
		return !e.acknowledged || e.row != s.ledger.row || e.token.Service != event.Order.Service
	})
	slices.SortFunc(orders, func(a, b entry) int { return b.token.Position.Compare(a.token.Position) })
	if len(orders) == 0 {
		return errors.New("no order was acknowledged")
	}
	products := make([]string, productCount)
	for n := range products {
		products[n] = sku(n)
	}
	vectors := featuresv1connect.NewFeatureServiceClient(http.DefaultClient, "http://"+i.addr)
	for _, e := range orders[:min(len(orders), askedTokens)] {
		res, err := vectors.GetVectors(ctx, connect.NewRequest(&featuresv1.GetVectorsRequest{
			Group: "product_popularity", Entities: products, Token: e.opaque}))
		if err != nil {
			return fmt.Errorf("vectors with the token of %s: %w", e.key, err)
		}
		for n, v := range res.Msg.GetVectors() {
			if v.GetValues()[0].GetStatus() == featuresv1.ValueStatus_VALUE_STATUS_NOT_FOUND {
				return fmt.Errorf("the online features do not know the product %s", products[n])
			}
		}
	}
	args := []string{"features", "verify", "--limit", "100000", "--output", "json", "--wait", settleTimeout.String()}
	if s.servers == nil {
		args = append(args, "--data", filepath.Join(s.dir, "data"))
	}
	out, err := s.run(ctx, args...)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, tail(out))
	}
	var result struct{ Groups []struct{ Equal int } }
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return fmt.Errorf("decode the output of features verify: %q: %w", out, err)
	}
	if want := askedTokens; len(result.Groups) != 1 || result.Groups[0].Equal < min(len(orders), want) {
		return fmt.Errorf("features verify has compared too few vectors: %s", tail(out))
	}
	return nil
}
