package onlineretail

import (
	"math"
	"slices"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

// command is a request to a service, and the lines of the file that it represents. The lines are
// accepted if the request is. Requests that only prepare others, such as the registration of a
// customer, represent no line.
type command struct {
	stream  string // commands of one stream are sent in order
	request proto.Message
	lines   []line
}

// line identifies a row of the file.
type line struct {
	row           int64
	invoice, code string
}

// reject is a line that is not part of an accepted command.
type reject struct {
	line
	reason string
}

// window is the plan for a range of rows. orders refer to customers and products in prerequisites,
// so prerequisites are sent first.
type window struct {
	prerequisites []command
	orders        []command
	rejects       []reject
}

// planner turns rows into commands. It depends on the rows so far only, so a higher limit does not
// change the plan for the first rows. The only exception is an invoice that the limit cuts off: it
// has only the lines up to there.
type planner struct {
	completeAfter int64 // see the constant; tests use other values

	customers map[int64]string // ids, by customer number
	products  map[string]*product
	invoices  map[string]*invoice
	// Invoices with lines that are not planned yet, in the order of their first such line.
	open   []*invoice
	window window // the window that is being planned
}

// product is the planner's state of a product. It is the state after the rows so far, and not what
// the server has.
type product struct {
	service bool
	titled  bool    // the title is from a sale; otherwise it is the code
	price   float64 // last price that was set; 0 before the first
	// A price other than the product's, and the number of consecutive sales at it. See priceAfter.
	otherPrice float64
	otherSales int
	// The stock if each sale took its goods at once.
	onHand int64
}

// invoice is an order that is being planned. It is kept after its order is planned, because a late
// line may follow.
type invoice struct {
	number   string
	orderID  string
	customer string // id; empty for a guest
	country  string
	ordered  time.Time

	planned int // number of lines that are in commands

	// Lines that are not planned yet. added is the time of the first of them.
	added   time.Time
	pending []*orderv1.NewLine
	lines   []line
}

// newPlanner returns a planner that has seen no rows.
func newPlanner() *planner {
	return &planner{
		completeAfter: completeAfter,
		customers:     map[int64]string{}, products: map[string]*product{}, invoices: map[string]*invoice{},
	}
}

const (
	// An invoice is complete after this many rows without one of its lines. In the published file,
	// invoices interleave by two rows at most. Lines that come even later are added to the order.
	completeAfter = 1000
	// A product's price changes after this many consecutive sales at the new one, because a single
	// discount is not a price change.
	priceAfter = 3
	// A delivery brings lotFactor times the missing quantity, and at least minLot.
	minLot    = 96
	lotFactor = 8
	// Maximum number of lines in a command. With it, an event always fits its size limit.
	maxLines = 2500
)

// add plans one row. A valid row registers its customer even if it is neither a sale nor a
// correction.
func (p *planner) add(r row) {
	// An invalid row must not register its customer either.
	if reason := invalid(r); reason != "" {
		p.reject(r, reason)
		return
	}
	customer := p.customer(r)
	switch what, reason := classify(r); what {
	case sale:
		p.sell(r, customer)
	case correction:
		p.adjustStock(r)
	case neither:
		p.reject(r, reason)
	}
}

// end closes the window and returns it. It plans the orders whose invoice is complete, or all at
// the end of the file. last is the number of the last row. Invoices that may still get lines remain
// open for a later window.
func (p *planner) end(last int64, eof bool) window {
	p.open = slices.DeleteFunc(p.open, func(i *invoice) bool {
		if !eof && last-i.lines[len(i.lines)-1].row < p.completeAfter {
			return false
		}
		p.order(i)
		return true
	})
	w := p.window
	p.window = window{}
	return w
}

// reject adds a row to the window's rejects.
func (p *planner) reject(r row, reason string) {
	p.window.rejects = append(p.window.rejects, reject{r.line(), reason})
}

// addPrerequisite adds a command to the window's prerequisites.
func (p *planner) addPrerequisite(stream string, request proto.Message, lines ...line) {
	p.window.prerequisites = append(p.window.prerequisites, command{stream, request, lines})
}

// customer returns the id of the row's customer, or "" for a guest. It plans the registration of a
// new customer. The first row of a customer determines when and in which country it is registered.
func (p *planner) customer(r row) string {
	if math.IsNaN(r.customer) {
		return ""
	}
	number := int64(r.customer)
	if id, ok := p.customers[number]; ok {
		return id
	}
	reference := strconv.FormatInt(number, 10)
	id := event.NamedID(r.at, "online-retail/customer/"+reference).String()
	p.customers[number] = id
	p.addPrerequisite("customer/"+id, &customerv1.RegisterCustomerRequest{
		CustomerId:     id,
		Reference:      reference,
		Country:        r.country,
		RegisteredAt:   timestamppb.New(r.at),
		IdempotencyKey: "online-retail:customer:" + reference,
	})
	return id
}

// product returns the row's product and plans its listing if it is new. Only sales have a title: on
// a correction the description is a reason. So a product that is first seen in a correction has its
// code as title until the first sale.
func (p *planner) product(r row, title string) *product {
	item, ok := p.products[r.code]
	switch {
	case !ok:
		item = &product{service: isService(r.code), titled: title != ""}
		p.products[r.code] = item
		kind := catalogv1.ProductKind_PRODUCT_KIND_GOODS
		if item.service {
			kind = catalogv1.ProductKind_PRODUCT_KIND_SERVICE
		}
		if title == "" {
			title = r.code
		}
		p.addPrerequisite("product/"+r.code, &catalogv1.ListProductRequest{
			Sku:            r.code,
			Title:          title,
			Kind:           kind,
			ListedAt:       timestamppb.New(r.at),
			IdempotencyKey: "online-retail:product:" + r.code,
		})
	case !item.titled && title != "":
		item.titled = true
		p.addPrerequisite("product/"+r.code, &catalogv1.ReviseProductRequest{
			Sku:            r.code,
			Title:          title,
			RevisedAt:      timestamppb.New(r.at),
			IdempotencyKey: "online-retail:title:" + r.code,
		})
	}
	return item
}

// sell adds a sale to its invoice, and plans the product, its price and its stock. The order itself
// is planned later, when its invoice is complete. Everything that can reject the line is checked
// first, so a rejected line plans nothing here.
func (p *planner) sell(r row, customer string) {
	// The shortest decimal that parses to this float is the price that the shop wrote.
	price, err := event.ParseMoney(currency, strconv.FormatFloat(r.price, 'f', -1, 64))
	if err != nil {
		p.reject(r, reasonPrice)
		return
	}
	i, ok := p.invoices[r.invoice]
	// An order has one customer, so a line of another customer cannot be added.
	if ok && i.customer != customer {
		p.reject(r, reasonCustomer)
		return
	}
	if !ok {
		i = &invoice{
			number:   r.invoice,
			orderID:  event.NamedID(r.at, "online-retail/order/"+r.invoice).String(),
			customer: customer,
			country:  r.country,
			ordered:  r.at,
		}
		p.invoices[r.invoice] = i
	}
	if len(i.lines) == 0 {
		i.added = r.at
		p.open = append(p.open, i)
	}
	i.lines = append(i.lines, r.line())
	i.pending = append(i.pending, &orderv1.NewLine{
		Sku: r.code, Description: r.description, Quantity: r.quantity, UnitPrice: price,
	})

	item := p.product(r, r.description)
	p.updatePrice(r, item, price)
	if !item.service {
		p.ensureStock(r, item, r.quantity)
		item.onHand -= r.quantity
	}
}

// updatePrice plans a new price at the first sale of a product, and when priceAfter consecutive
// sales had the same other price.
func (p *planner) updatePrice(r row, item *product, price *money.Money) {
	switch {
	case item.price == r.price:
		item.otherSales = 0
		return
	case item.otherSales > 0 && item.otherPrice == r.price:
		item.otherSales++
	default:
		item.otherPrice, item.otherSales = r.price, 1
	}
	// The first price of a product is set at once.
	if item.price != 0 && item.otherSales < priceAfter {
		return
	}
	item.price, item.otherSales = r.price, 0
	p.addPrerequisite("product/"+r.code, &catalogv1.SetPriceRequest{
		Sku:            r.code,
		Price:          price,
		ValidFrom:      timestamppb.New(r.at),
		IdempotencyKey: "online-retail:price:" + r.code + ":" + r.key(),
	})
}

// ensureStock plans a delivery if the stock is lower than need. The file has no deliveries, so they
// are invented: one arrives a minute before it is needed.
func (p *planner) ensureStock(r row, item *product, need int64) {
	missing := need - item.onHand
	if missing <= 0 {
		return
	}
	// A lot larger than needed keeps the number of deliveries realistic.
	lot := min(max(minLot, lotFactor*missing), maxQuantity)
	item.onHand += lot
	p.addPrerequisite("stock/"+r.code, &inventoryv1.ReceiveStockRequest{
		Sku:            r.code,
		Quantity:       lot,
		ReceivedAt:     timestamppb.New(r.at.Add(-time.Minute)),
		IdempotencyKey: "online-retail:receipt:" + r.key(),
	})
}

// adjustStock plans an adjustment of the stock: goods found, counted, broken or thrown away. A
// correction is a command that represents its line, although it is among the prerequisites.
func (p *planner) adjustStock(r row) {
	item := p.product(r, "")
	p.ensureStock(r, item, -r.quantity)
	item.onHand += r.quantity
	// The description of a correction is its reason, such as "damaged".
	reason := r.description
	if reason == "" {
		reason = "no reason given"
	}
	p.addPrerequisite("stock/"+r.code, &inventoryv1.AdjustStockRequest{
		Sku:            r.code,
		Delta:          r.quantity,
		Reason:         reason,
		AdjustedAt:     timestamppb.New(r.at),
		IdempotencyKey: "online-retail:adjustment:" + r.key(),
	}, r.line())
}

// order plans commands for the pending lines of an invoice. The first command places the order, and
// later ones add lines to it.
func (p *planner) order(i *invoice) {
	// A late line reopens its invoice, which then has planned lines already.
	for len(i.pending) > 0 {
		// A large invoice is split into several commands.
		n := min(len(i.pending), maxLines)
		part := command{"order/" + i.orderID, i.request(i.pending[:n]), i.lines[:n]}
		p.window.orders = append(p.window.orders, part)
		i.planned += n
		i.pending, i.lines = i.pending[n:], i.lines[n:]
	}
	i.pending, i.lines = nil, nil
}

// request returns the command for lines of the invoice.
func (i *invoice) request(lines []*orderv1.NewLine) proto.Message {
	if i.planned > 0 {
		return addLines(i.orderID, i.number, i.planned, lines, timestamppb.New(i.added))
	}
	place := &orderv1.PlaceOrderRequest{
		OrderId:        i.orderID,
		Reference:      i.number,
		Currency:       currency,
		Country:        i.country,
		Lines:          lines,
		OrderedAt:      timestamppb.New(i.ordered),
		IdempotencyKey: "online-retail:order:" + i.number,
	}
	if i.customer != "" {
		place.CustomerId = &i.customer
	}
	return place
}

// addLines returns the command that adds lines to an order that has have lines.
func addLines(
	orderID, number string, have int, lines []*orderv1.NewLine, at *timestamppb.Timestamp,
) *orderv1.AddLinesRequest {
	return &orderv1.AddLinesRequest{
		OrderId:        orderID,
		AfterLine:      uint32(have),
		Lines:          lines,
		AddedAt:        at,
		IdempotencyKey: "online-retail:order:" + number + ":from:" + strconv.Itoa(have+1),
	}
}
