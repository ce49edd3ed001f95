package demo

import (
	"google.golang.org/genproto/googleapis/type/money"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

// product is an article or a service of the shop, with its price in pence.
type product struct {
	sku, category, title, description string
	pence                             int64
}

// kind returns the kind of a product: only deliveries are services.
func (p product) kind() catalogv1.ProductKind {
	if p.category == deliveries {
		return catalogv1.ProductKind_PRODUCT_KIND_SERVICE
	}
	return catalogv1.ProductKind_PRODUCT_KIND_GOODS
}

// price returns the unit price.
func (p product) price() *money.Money {
	return &money.Money{CurrencyCode: currency, Units: p.pence / 100, Nanos: int32(p.pence%100) * 10_000_000}
}

// line returns an order line for the product.
func (p product) line(quantity int64) *orderv1.NewLine {
	return &orderv1.NewLine{Sku: p.sku, Description: p.title, Quantity: quantity, UnitPrice: p.price()}
}

// deliveries is the category of services.
const deliveries = "Delivery"

// delivery is added to small orders.
var delivery = product{"DEL-STD", deliveries, "Standard delivery", "Two to four working days.", 395}

// products of the shop. delivery, which is a service, must be first, because orders draw from the
// others only. The commands derive from this list. If it changes, systems that have the demo
// already refuse the changed commands, because their idempotency keys are in use.
var products = []product{
	delivery,
	{"KIT-0101", "Kitchen", "Enamel mug, midnight blue", "Holds 350 ml; dishwasher safe; chips with dignity.", 950},
	{"KIT-0102", "Kitchen", "Enamel mug, cream", "Holds 350 ml; dishwasher safe.", 950},
	{"KIT-0110", "Kitchen", "Olive wood spoon", "Oiled by hand, 30 cm.", 1250},
	{"KIT-0115", "Kitchen", "Cast iron skillet, 26 cm", "Seasoned with linseed oil; works on induction.", 4400},
	{"KIT-0121", "Kitchen", "Linen tea towel, striped", "Washed linen, 50 × 70 cm.", 1400},
	{"KIT-0127", "Kitchen", "Coffee dripper, porcelain", "For one to two cups; takes No. 2 filters.", 2650},
	{"KIT-0130", "Kitchen", "Paper filters No. 2, 100 pieces", "Unbleached.", 420},
	{"KIT-0144", "Kitchen", "Chopping board, beech", "End grain, 40 × 25 cm.", 5200},
	{"GAR-0201", "Garden", "Hand trowel, stainless", "Ash handle, leather loop.", 1875},
	{"GAR-0204", "Garden", "Garden twine, 100 m", "Three-ply jute, green.", 550},
	{"GAR-0209", "Garden", "Watering can, 5 litres", "Galvanised, brass rose.", 3650},
	{"GAR-0212", "Garden", "Seed tin, alphabetical", "For those who know where everything is.", 1995},
	{"GAR-0218", "Garden", "Bird feeder, copper roof", "Holds 1 kg of mixed seed.", 2900},
	{"GAR-0223", "Garden", "Pruning shears", "Drop forged; spare blades available.", 4150},
	{"GAR-0230", "Garden", "Plant labels, slate, 10 pieces", "With a white pencil.", 875},
	{"STA-0301", "Stationery", "Notebook A5, dotted", "192 numbered pages that lie flat.", 1350},
	{"STA-0302", "Stationery", "Notebook A6, plain", "96 pages; fits a back pocket.", 725},
	{"STA-0307", "Stationery", "Fountain pen, fine", "Steel nib; takes standard cartridges.", 3200},
	{"STA-0311", "Stationery", "Ink, bottle-green, 30 ml", "Dries fast, washes out if you are quick.", 1150},
	{"STA-0316", "Stationery", "Pencils HB, box of 12", "Cedar, no eraser, no regrets.", 990},
	{"STA-0320", "Stationery", "Letter paper, 50 sheets", "Cotton rag, 120 g.", 1600},
	{"STA-0325", "Stationery", "Brass paper clips, 40 pieces", "In a tin.", 640},
	{"HOM-0401", "Home", "Wool blanket, herringbone", "130 × 180 cm, woven in Wales.", 8900},
	{"HOM-0405", "Home", "Beeswax candle, 20 cm", "Burns about nine hours.", 480},
	{"HOM-0408", "Home", "Doorstop, oak wedge", "Holds most doors.", 1100},
	{"HOM-0413", "Home", "Wall hook, forged", "With two screws.", 1450},
	{"HOM-0417", "Home", "Soap, oatmeal", "Cold process, 110 g.", 595},
	{"HOM-0422", "Home", "Cushion cover, linen, rust", "45 × 45 cm; concealed zip.", 2450},
	{"HOM-0430", "Home", "Table lamp, ceramic", "E27, fabric cord, 38 cm.", 6750},
	{"TOY-0501", "Toys", "Wooden blocks, 48 pieces", "Maple; water based colours.", 3900},
	{"TOY-0504", "Toys", "Marble run, starter set", "Beech, with twelve marbles.", 4600},
	{"TOY-0509", "Toys", "Skipping rope", "Cotton, turned handles.", 1200},
	{"TOY-0512", "Toys", "Jigsaw, map of the stars, 500 pieces", "Glows a little in the dark.", 1850},
	{"TOY-0518", "Toys", "Tin whistle in D", "With a fingering chart.", 890},
	{"TOY-0521", "Toys", "Kite, red diamond", "60 m of line; best on a beach.", 2200},
}

// The parts of which invented customers are made.
var (
	firstNames = []string{
		"Amara", "Bruno", "Clara", "Dilip", "Edith", "Farid", "Greta", "Hamish", "Imani", "Jonas", "Keiko", "Lewis",
		"Mairi", "Nadia", "Owen", "Priya", "Quentin", "Rosa", "Sanjay", "Tilda", "Umar", "Vera", "Wanda", "Yusuf",
	}
	lastNames = []string{
		"Adeyemi", "Baker", "Campbell", "Dubois", "Eriksen", "Fletcher", "Goldberg", "Hughes", "Ito", "Jansen", "Kaur",
		"Lindqvist", "Murphy", "Novak", "Okafor", "Patel", "Rossi", "Schmidt", "Taylor", "Walsh",
	}
	towns = []struct{ street, postalCode, city, country string }{
		{"Harbour Street", "BS1 0AA", "Bristol", "GB"},
		{"Canal Walk", "M1 0AA", "Manchester", "GB"},
		{"Castle Terrace", "EH1 0AA", "Edinburgh", "GB"},
		{"Mill Lane", "CB1 0AA", "Cambridge", "GB"},
		{"Bridge Road", "NE1 0AA", "Newcastle", "GB"},
		{"Liffey Quay", "D01 0000", "Dublin", "IE"},
		{"Lindenstraße", "50670", "Köln", "DE"},
		{"Rue du Marché", "69001", "Lyon", "FR"},
		{"Prinsengracht", "1015 AA", "Amsterdam", "NL"},
	}
	// cancelReasons are the reasons of cancelled orders.
	cancelReasons = []string{
		"ordered twice by mistake", "delivery takes too long", "found it in the attic", "customer changed their mind",
	}
)
