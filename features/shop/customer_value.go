package shop

import (
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// customerValue is recency, frequency and monetary value (RFM) of a customer's orders in one
// currency.
func customerValue(currency string) *features.Group {
	inCurrency := is("currency", currency)
	return &features.Group{
		Name: "customer_value", Version: 1, Entity: "customer_id", Identity: features.Customers, Owner: owner,
		Description: "Recency, frequency and monetary value of a customer's orders in the shop's currency. " +
			"Cancelled orders do not count.",
		Sources: []features.Source{customerOrders, customerOrderLines},
		Features: []features.Feature{
			{
				Name: "recency_seconds", Description: "time since the latest order", Source: "customer_orders",
				Where: inCurrency, Aggregate: exact.Last, Age: true, Windows: windows{features.Lifetime},
			}, {
				Name: "tenure_seconds", Description: "time since the first order", Source: "customer_orders",
				Where: inCurrency, Aggregate: exact.First, Age: true, Windows: windows{features.Lifetime},
			}, {
				Name: "frequency", Description: "how many orders", Source: "customer_orders",
				Where: inCurrency, Aggregate: exact.Count,
				Windows: windows{features.Week, features.Month, features.Days90, features.Lifetime},
			}, {
				Name: "monetary_sum", Description: "sum of the orders' totals", Source: "customer_orders",
				Where: inCurrency, Aggregate: exact.Sum, Column: "total",
				Windows: windows{features.Day, features.Week, features.Month, features.Days90, features.Lifetime},
			}, {
				Name: "monetary_mean", Description: "mean of the orders' totals", Source: "customer_orders",
				Where: inCurrency, Aggregate: exact.Mean, Column: "total",
				Windows: windows{features.Month, features.Days90, features.Lifetime},
			}, {
				Name: "monetary_min", Description: "total of the smallest order", Source: "customer_orders",
				Where: inCurrency, Aggregate: exact.Min, Column: "total", Windows: windows{features.Days90, features.Lifetime},
			}, {
				Name: "monetary_max", Description: "total of the largest order", Source: "customer_orders",
				Where: inCurrency, Aggregate: exact.Max, Column: "total", Windows: windows{features.Days90, features.Lifetime},
			}, {
				Name: "monetary_stddev", Description: "standard deviation of the orders' totals", Source: "customer_orders",
				Where: inCurrency, Aggregate: exact.StdDev, Column: "total",
				Windows: windows{features.Days90, features.Lifetime},
			}, {
				Name: "monetary_median", Description: "median of the orders' totals", Source: "customer_orders",
				Where: inCurrency, Aggregate: exact.Quantile, Column: "total", Q: 0.5,
				Windows: windows{features.Days90, features.Lifetime},
			}, {
				Name: "monetary_p90", Description: "90th percentile of the orders' totals", Source: "customer_orders",
				Where: inCurrency, Aggregate: exact.Quantile, Column: "total", Q: 0.9,
				Windows: windows{features.Days90, features.Lifetime},
			}, {
				Name: "first_total", Description: "total of the first order", Source: "customer_orders",
				Where: inCurrency, Aggregate: exact.First, Column: "total", Windows: windows{features.Lifetime},
			}, {
				Name: "last_total", Description: "total of the latest order", Source: "customer_orders",
				Where: inCurrency, Aggregate: exact.Last, Column: "total", Windows: windows{features.Lifetime},
			}, {
				Name: "amount_per_item", Description: "amount of the order lines divided by their pieces",
				Source: "customer_order_lines", Where: inCurrency, Aggregate: exact.Sum, Column: "amount",
				Over: &features.Feature{
					Name: "items", Source: "customer_order_lines", Where: inCurrency, Aggregate: exact.Sum, Column: "quantity",
				},
				Windows: windows{features.Days90, features.Lifetime},
			},
		},
	}
}
