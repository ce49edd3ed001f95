package shop

import (
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// productPopularity is how often and by whom a product is ordered, and how its stock moves.
func productPopularity(currency string) *features.Group {
	inCurrency := is("currency", currency)
	return &features.Group{
		Name: "product_popularity", Version: 1, Entity: "sku", Owner: owner,
		Description: "How often and by whom a product is ordered, its revenue in the shop's currency, and how its " +
			"stock moves. Cancelled orders do not count.",
		Sources: []features.Source{productOrderLines, stockMovements},
		Features: []features.Feature{
			{
				Name: "lines", Description: "how many order lines", Source: "product_order_lines", Aggregate: exact.Count,
				Windows: windows{features.Hour, features.Day, features.Week, features.Month, features.Days90, features.Lifetime},
			}, {
				Name: "orders", Description: "how many different orders", Source: "product_order_lines",
				Aggregate: exact.Distinct, Column: "order_id",
				Windows: windows{features.Day, features.Week, features.Month, features.Days90, features.Lifetime},
			}, {
				Name: "customers", Description: "how many different customers, without guests", Source: "product_order_lines",
				Aggregate: exact.Distinct, Column: "customer_id",
				Windows: windows{features.Week, features.Month, features.Days90, features.Lifetime},
			}, {
				Name: "quantity", Description: "how many pieces were ordered", Source: "product_order_lines",
				Aggregate: exact.Sum, Column: "quantity",
				Windows: windows{features.Hour, features.Day, features.Week, features.Month, features.Days90, features.Lifetime},
			}, {
				Name: "quantity_p90", Description: "90th percentile of the pieces per order line", Source: "product_order_lines",
				Aggregate: exact.Quantile, Column: "quantity", Q: 0.9, Windows: windows{features.Days90},
			}, {
				Name: "revenue", Description: "sum of the order lines' amounts", Source: "product_order_lines",
				Where: inCurrency, Aggregate: exact.Sum, Column: "amount",
				Windows: windows{features.Day, features.Week, features.Month, features.Days90, features.Lifetime},
			}, {
				Name: "price", Description: "revenue divided by pieces", Source: "product_order_lines",
				Where: inCurrency, Aggregate: exact.Sum, Column: "amount",
				Over: &features.Feature{
					Name: "pieces", Source: "product_order_lines", Where: inCurrency, Aggregate: exact.Sum, Column: "quantity",
				},
				Windows: windows{features.Month, features.Days90, features.Lifetime},
			}, {
				Name: "last_price", Description: "price in the latest order", Source: "product_order_lines",
				Where: inCurrency, Aggregate: exact.Last, Column: "unit_price", Windows: windows{features.Lifetime},
			}, {
				Name: "seconds_since_order", Description: "time since it was last ordered", Source: "product_order_lines",
				Aggregate: exact.Last, Age: true, Windows: windows{features.Lifetime},
			}, {
				Name: "stock_on_hand", Description: "pieces on hand, by business time", Source: "stock_movements",
				Aggregate: exact.Sum, Column: "on_hand_change", Windows: windows{features.Lifetime},
			}, {
				Name: "stock_reserved", Description: "pieces set aside, by business time", Source: "stock_movements",
				Aggregate: exact.Sum, Column: "reserved_change", Windows: windows{features.Lifetime},
			}, {
				Name: "stock_received", Description: "pieces that were delivered", Source: "stock_movements",
				Where: is("movement", "received"), Aggregate: exact.Sum, Column: "on_hand_change",
				Windows: windows{features.Month, features.Days90},
			}, {
				Name: "stock_adjusted", Description: "pieces found, negative if lost or broken", Source: "stock_movements",
				Where: is("movement", "adjusted"), Aggregate: exact.Sum, Column: "on_hand_change",
				Windows: windows{features.Month, features.Days90},
			}, {
				Name: "stock_movements", Description: "how many changes of the stock", Source: "stock_movements",
				Aggregate: exact.Count, Windows: windows{features.Week, features.Month},
			},
		},
	}
}
