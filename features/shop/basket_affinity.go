package shop

import (
	"slices"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

// basketAffinity is what is ordered together with a product.
func basketAffinity() *features.Group {
	return &features.Group{
		Name: "basket_affinity", Version: 1, Entity: "sku", Owner: owner,
		Description: "What is ordered together with a product. Of each order, the first 16 different products count. " +
			"Lines that were added to it later and cancelled orders do not.",
		Sources: []features.Source{basketPairs},
		Features: []features.Feature{
			{
				Name: "bought_with", Description: "the ten products that most orders of this one also contain",
				Source: "basket_pairs", Aggregate: exact.Top, Column: "with_sku", K: 10,
				Windows: windows{features.Week, features.Month, features.Days90},
			}, {
				Name: "companions", Description: "how many different products were ordered with it", Source: "basket_pairs",
				Aggregate: exact.Distinct, Column: "with_sku", Windows: windows{features.Week, features.Month, features.Days90},
			}, {
				Name: "pairs", Description: "how many pairs of this product and another one were ordered",
				Source: "basket_pairs", Aggregate: exact.Count,
				Windows: windows{features.Day, features.Week, features.Month, features.Days90},
			},
		},
	}
}

// basketPairs has two facts for each pair of products in an order, one about either. The key is the
// id of the order and the other product.
//
// An order of n products has n × (n−1) facts, so only its first products are paired. LinesAdded does
// not repeat the earlier lines, so the lines that it adds are not paired.
var basketPairs = features.Source{
	Name: "basket_pairs", Topic: orderTopic,
	Columns: []features.Column{{Name: "with_sku", Kind: exact.Text, Description: "what was ordered together with it"}},
	Project: func(e event.Event) ([]features.Fact, error) {
		o, err := readOrder(e)
		if err != nil || !o.placed && !o.cancelled {
			return nil, err
		}
		return o.pairs(), nil
	},
}

// The limits of a basket. Both look at the first lines only, so a cancellation, which has all lines
// of its order, retracts at least the pairs that the order had when it was placed.
const (
	basketSKUs  = 16
	basketLines = 1000 // less than what a cancellation has: see linesPerCancel in commands/order
)

// pairs returns the facts of basketPairs.
func (o order) pairs() []features.Fact {
	skus := basket(o.lines)
	if len(skus) < 2 {
		return nil
	}
	facts := make([]features.Fact, 0, len(skus)*(len(skus)-1))
	values := make([]exact.Value, cap(facts))
	for _, with := range skus {
		key := o.id + "/" + with
		for _, sku := range skus {
			if sku == with {
				continue
			}
			i := len(facts)
			if !o.cancelled {
				values[i] = text(with)
			}
			facts = append(facts, features.Fact{
				Entity: sku, Key: key, At: o.at, Retracted: o.cancelled, Values: values[i : i+1 : i+1],
			})
		}
	}
	return facts
}

// basket returns the first products of an order.
func basket(lines []*orderv1.OrderLine) []string {
	var skus []string
	for _, l := range lines {
		if l.GetNumber() > basketLines || len(skus) == basketSKUs {
			break
		}
		if !slices.Contains(skus, l.GetSku()) {
			skus = append(skus, l.GetSku())
		}
	}
	return skus
}
