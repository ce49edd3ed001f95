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

// Reasons why a readable line does not become a command.
const (
	reasonCancelled = "cancellation: returns come later"
	reasonNegative  = "price is below 0: an entry of the books, not a sale"
	reasonGift      = "price is 0: given away, not a sale"
	reasonCustomer  = "the invoice belongs to another customer"
	reasonQuantity  = "quantity is not above 0, and it is neither a cancellation nor a correction of the stock"
	reasonService   = "no stock is kept of this code: nothing to correct"
	reasonPrice     = "price is missing or no amount of money"
)

// meaning is what a row stands for.
type meaning int

const (
	neither meaning = iota
	sale
	correction // of the stock
)

// classify returns what a usable row stands for. If it is neither a sale nor a correction, classify
// returns the reason.
func classify(r row) (meaning, string) {
	guest := math.IsNaN(r.customer)
	switch {
	// The shop marks cancellations by their invoice number.
	case strings.HasPrefix(r.invoice, "C"):
		return neither, reasonCancelled
	case r.price < 0:
		return neither, reasonNegative
	case r.quantity > 0 && r.price > 0:
		return sale, ""
	case r.quantity > 0 && !guest:
		return neither, reasonGift
	case r.quantity == 0 || r.price > 0 || !guest:
		return neither, reasonQuantity
	case isService(r.code):
		return neither, reasonService
	}
	return correction, ""
}

// Limits of the services. An order with one bad line is refused as a whole, so bad lines are
// rejected before.
var sku = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$`)

const (
	longestTitle = 200 // bytes
	longestName  = 64  // bytes
	mostQuantity = 1_000_000_000
)

// The range of times that the services accept.
var earliest, latest = time.Date(1970, 1, 2, 0, 0, 0, 0, time.UTC), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// unusable returns why a row cannot be part of any command, or "" if it can.
func unusable(r row) string {
	switch {
	case !fits(r.invoice, 1, longestName):
		return "invoice number is missing, too long or not UTF-8"
	case !sku.MatchString(r.code):
		return "stock code is missing or not a SKU"
	case event.CheckName(r.invoice) != nil || event.CheckName(r.code) != nil:
		return "invoice number or stock code holds a space too many or what nobody sees"
	case !fits(r.description, 0, longestTitle):
		return "description is too long or not UTF-8"
	case !fits(r.country, 2, longestName):
		return "country is missing, too short, too long or not UTF-8"
	case r.at.Before(earliest) || r.at.After(latest):
		return "invoice date is missing or out of range"
	case r.quantity > mostQuantity || r.quantity < -mostQuantity:
		return "quantity is out of range"
	case math.IsNaN(r.price) || math.IsInf(r.price, 0):
		return reasonPrice
	case !math.IsNaN(r.customer) && (r.customer < 1 || r.customer > 1<<53 || r.customer != math.Trunc(r.customer)):
		return "customer number is no whole number above 0"
	}
	return ""
}

// fits reports whether s is UTF-8 and has at least least characters and at most most bytes.
func fits(s string, least, most int) bool {
	return len(s) <= most && utf8.RuneCountInString(s) >= least && utf8.ValidString(s)
}
