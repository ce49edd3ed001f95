package shop

import (
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// customerActivity is what a customer orders, how often, and where.
func customerActivity() *features.Group {
	return &features.Group{
		Name: "customer_activity", Version: 1, Entity: "customer_id", Identity: features.Customers, Owner: owner,
		Description: "What a customer orders, how often, and where the goods go. Cancelled orders do not count.",
		Sources:     []features.Source{customerOrders, customerOrderLines, customerCancellations},
		Features: []features.Feature{
			{
				Name: "orders", Description: "how many orders", Source: "customer_orders", Aggregate: exact.Count,
				Windows: windows{features.Hour, features.Day, features.Week, features.Month, features.Days90, features.Lifetime},
			}, {
				Name: "lines", Description: "how many order lines", Source: "customer_order_lines", Aggregate: exact.Count,
				Windows: windows{features.Hour, features.Day, features.Week, features.Month, features.Days90, features.Lifetime},
			}, {
				Name: "items", Description: "how many pieces", Source: "customer_order_lines",
				Aggregate: exact.Sum, Column: "quantity",
				Windows: windows{features.Day, features.Week, features.Month, features.Days90, features.Lifetime},
			}, {
				Name: "skus", Description: "how many different products", Source: "customer_order_lines",
				Aggregate: exact.Distinct, Column: "sku",
				Windows: windows{features.Week, features.Month, features.Days90, features.Lifetime},
			}, {
				Name: "top_skus", Description: "the five products with the most order lines", Source: "customer_order_lines",
				Aggregate: exact.Top, Column: "sku", K: 5, Windows: windows{features.Days90, features.Lifetime},
			}, {
				Name: "lines_per_order", Description: "order lines divided by orders", Source: "customer_order_lines",
				Aggregate: exact.Count,
				Over:      &features.Feature{Name: "orders", Source: "customer_orders", Aggregate: exact.Count},
				Windows:   windows{features.Month, features.Days90, features.Lifetime},
			}, {
				Name: "items_per_line", Description: "pieces divided by order lines", Source: "customer_order_lines",
				Aggregate: exact.Sum, Column: "quantity",
				Over:    &features.Feature{Name: "lines", Source: "customer_order_lines", Aggregate: exact.Count},
				Windows: windows{features.Month, features.Days90, features.Lifetime},
			}, {
				Name: "largest_order_lines", Description: "lines of the order with the most lines", Source: "customer_orders",
				Aggregate: exact.Max, Column: "lines", Windows: windows{features.Days90, features.Lifetime},
			}, {
				Name: "countries", Description: "how many different countries the goods went to", Source: "customer_orders",
				Aggregate: exact.Distinct, Column: "country", Windows: windows{features.Days90, features.Lifetime},
			}, {
				Name: "last_country", Description: "where the goods of the latest order went", Source: "customer_orders",
				Aggregate: exact.Last, Column: "country", Windows: windows{features.Lifetime},
			}, {
				Name: "seconds_since_order", Description: "time since the latest order", Source: "customer_orders",
				Aggregate: exact.Last, Age: true, Windows: windows{features.Lifetime},
			}, {
				Name: "cancellations", Description: "how many orders were cancelled, by the time of the cancellation",
				Source: "customer_cancellations", Aggregate: exact.Count,
				Windows: windows{features.Month, features.Days90, features.Lifetime},
			},
		},
	}
}
