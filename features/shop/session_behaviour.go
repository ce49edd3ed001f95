package shop

import (
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// sessionBehaviour is what a visitor does on the shop's websites and apps.
func sessionBehaviour() *features.Group {
	all := windows{features.Hour, features.Day, features.Week, features.Month, features.Days90}
	actions := func(name string) *features.Feature {
		return &features.Feature{
			Name: name, Source: "visitor_actions", Where: is("action", name), Aggregate: exact.Count,
		}
	}
	return &features.Group{
		Name: "session_behaviour", Version: 1, Entity: "visitor_id", Identity: features.Visitors, Owner: owner,
		Description: "What a visitor does on the shop's websites and apps. The key is the user's id, or the anonymous id " +
			"of a visitor who is not known; both are one person once they are linked. Without consent to analytics, " +
			"nothing counts.",
		Sources: []features.Source{visitorActions},
		Features: []features.Feature{
			{
				Name: "actions", Description: "how many actions of any kind", Source: "visitor_actions",
				Aggregate: exact.Count, Windows: all,
			}, {
				Name: "page_views", Description: "how many pages and screens were viewed", Source: "visitor_actions",
				Where: is("action", pageView), Aggregate: exact.Count, Windows: all,
			}, {
				Name: "product_views", Description: "how often products were viewed", Source: "visitor_actions",
				Where: is("action", productView), Aggregate: exact.Count, Windows: all,
			}, {
				Name: "add_to_carts", Description: "how often a product was put into the cart", Source: "visitor_actions",
				Where: is("action", addToCart), Aggregate: exact.Count, Windows: all,
			}, {
				Name: "searches", Description: "how many searches", Source: "visitor_actions",
				Where: is("action", search), Aggregate: exact.Count, Windows: windows{features.Hour, features.Day, features.Week},
			}, {
				Name: "checkouts", Description: "how many checkouts were started", Source: "visitor_actions",
				Where: is("action", checkout), Aggregate: exact.Count,
				Windows: windows{features.Hour, features.Day, features.Week, features.Month},
			}, {
				Name: "cart_rate", Description: "add-to-carts divided by product views", Source: "visitor_actions",
				Where: is("action", addToCart), Aggregate: exact.Count, Over: actions(productView), Windows: all,
			}, {
				Name: "pages", Description: "how many different pages and screens were viewed", Source: "visitor_actions",
				Where: is("action", pageView), Aggregate: exact.Distinct, Column: "page",
				Windows: windows{features.Hour, features.Day, features.Week, features.Month},
			}, {
				Name: "viewed_skus", Description: "how many different products were viewed", Source: "visitor_actions",
				Where: is("action", productView), Aggregate: exact.Distinct, Column: "sku",
				Windows: windows{features.Hour, features.Day, features.Week, features.Month},
			}, {
				Name: "top_viewed_skus", Description: "the five products that were viewed most often",
				Source: "visitor_actions", Where: is("action", productView), Aggregate: exact.Top, Column: "sku", K: 5,
				Windows: windows{features.Day, features.Month},
			}, {
				Name: "last_page", Description: "the page or screen that was viewed last", Source: "visitor_actions",
				Where: is("action", pageView), Aggregate: exact.Last, Column: "page",
				Windows: windows{features.Hour, features.Days90},
			}, {
				Name: "last_sku", Description: "the product that was viewed last", Source: "visitor_actions",
				Where: is("action", productView), Aggregate: exact.Last, Column: "sku", Windows: windows{features.Days90},
			}, {
				Name: "seconds_since_action", Description: "time since the latest action", Source: "visitor_actions",
				Aggregate: exact.Last, Age: true, Windows: windows{features.Days90},
			},
		},
	}
}
