package onlineretail

import (
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/millrace/millrace/event"
)

// row is one line of the file. If a value is missing, a string is empty, a time is zero, a price or
// customer is NaN, and a quantity is 0.
type row struct {
	number      int64 // row number in the file, starting at 1
	invoice     string
	code        string
	description string
	quantity    int64
	at          time.Time
	price       float64 // unit price, in GBP
	customer    float64
	country     string
}

// line and key identify the row, in errors and in idempotency keys.
func (r row) line() line  { return line{r.number, r.invoice, r.code} }
func (r row) key() string { return strconv.FormatInt(r.number, 10) }

// currency of all prices in the file.
const currency = "GBP"

// services are the codes that are not goods. They are sold like goods, but have no stock.
var services = map[string]bool{
	"POST":         true, // postage
	"DOT":          true, // postage of orders from the other site
	"C2":           true, // carriage
	"M":            true, // typed in by hand
	"m":            true,
	"D":            true, // discount
	"S":            true, // samples
	"B":            true, // bad debt
	"CRUK":         true, // commission for a charity
	"AMAZONFEE":    true,
	"BANK CHARGES": true,
}

// isService reports whether a code is not goods. Gift vouchers have a code per value.
func isService(code string) bool { return services[code] || strings.HasPrefix(code, "gift_") }

// Reasons why a valid line does not become a command. They appear in the summary and in the rejects
// file.
const (
	reasonCancelled = "cancellation: returns are not imported"
	reasonNegative  = "price is negative: an accounting entry, not a sale"
	reasonGift      = "price is 0: a gift, not a sale"
	reasonCustomer  = "the invoice belongs to another customer"
	reasonQuantity  = "quantity is not positive, but the line is neither a cancellation nor a stock correction"
	reasonService   = "stock correction of a service, which has no stock"
	reasonPrice     = "price is missing or not an amount of money"
)

// kind is the kind of a row.
type kind int

const (
	neither kind = iota
	sale
	correction // of the stock, for example goods that were found or broken
)

// classify returns the kind of a valid row. If it is neither a sale nor a correction, classify
// returns the reason.
//
// The file has no column for the kind of a row, so it follows from the sign of the quantity, the
// price, and whether there is a customer. The figures in the tests are those that are published for
// this file.
func classify(r row) (kind, string) {
	guest := math.IsNaN(r.customer)
	switch {
	// The shop marks cancellations by their invoice number.
	case strings.HasPrefix(r.invoice, "C"):
		return neither, reasonCancelled
	case r.price < 0:
		return neither, reasonNegative
	case r.quantity > 0 && r.price > 0:
		return sale, ""
	case r.quantity > 0 && !guest: // without a price
		return neither, reasonGift
	case r.quantity == 0 || r.price > 0 || !guest: // corrections have neither price nor customer
		return neither, reasonQuantity
	case isService(r.code):
		return neither, reasonService
	}
	return correction, ""
}

// Limits of the services. A service refuses an order with one invalid line as a whole, so invalid
// lines are rejected before they are sent.
var sku = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$`)

const (
	maxTitle    = 200 // bytes
	maxName     = 64  // bytes
	maxQuantity = 1_000_000_000
)

// The range of times that the services accept.
var earliest, latest = time.Date(1970, 1, 2, 0, 0, 0, 0, time.UTC), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// invalid returns the reason why a row cannot be part of any command, or "" if it can. If several
// apply, the first one counts, so that the same file always has the same counts.
func invalid(r row) string {
	switch {
	case !fits(r.invoice, 1, maxName):
		return "invoice number is missing, too long or not UTF-8"
	case !sku.MatchString(r.code):
		return "stock code is missing or not a SKU"
	case event.CheckName(r.invoice) != nil || event.CheckName(r.code) != nil:
		return "invoice number or stock code contains superfluous spaces or invisible characters"
	case !fits(r.description, 0, maxTitle):
		return "description is too long or not UTF-8"
	case !fits(r.country, 2, maxName):
		return "country is missing, too short, too long or not UTF-8"
	case r.at.Before(earliest) || r.at.After(latest):
		return "invoice date is missing or out of range"
	case r.quantity > maxQuantity || r.quantity < -maxQuantity:
		return "quantity is out of range"
	case math.IsNaN(r.price) || math.IsInf(r.price, 0):
		return reasonPrice
	case !math.IsNaN(r.customer) && (r.customer < 1 || r.customer > 1<<53 || r.customer != math.Trunc(r.customer)):
		return "customer number is not a positive integer"
	}
	return ""
}

// fits reports whether s is UTF-8 and has at least minRunes characters and at most maxBytes bytes.
func fits(s string, minRunes, maxBytes int) bool {
	return len(s) <= maxBytes && utf8.RuneCountInString(s) >= minRunes && utf8.ValidString(s)
}
