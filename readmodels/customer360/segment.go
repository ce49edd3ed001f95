package customer360

import (
	"cmp"
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/duration"
)

// Segment is a saved condition over profiles.
type Segment struct {
	Name        string
	Expression  string // CEL, of type bool; docs/customer360.md has the variables and functions
	Description string
	// Purpose is what the segment is used for. Only people who consent to it are members.
	Purpose customerv1.ConsentPurpose
}

// segment is a compiled Segment.
type segment struct {
	Segment
	program cel.Program
	// features are those that the expression uses: the index in Features.List, by variable.
	features map[string]int
}

// Limits bound the work of segments. Zero means the default.
type Limits struct {
	Segments int // number of segments; 100 by default
	// Cost is the cost of evaluating one expression, in CEL's units; 1,000,000 by default. An
	// expression over a profile costs a few hundred.
	Cost uint64
	// Pending is the number of people who wait to be evaluated; 100,000 by default.
	Pending int
	// Recheck is how often somebody is evaluated whose segments use a value that changes all the
	// time, such as the seconds since an order; 15 minutes by default.
	Recheck time.Duration
}

// withDefaults returns the limits with the defaults of those that are not set.
func (l Limits) withDefaults() Limits {
	return Limits{cmp.Or(l.Segments, 100), cmp.Or(l.Cost, 1_000_000), cmp.Or(l.Pending, 100_000),
		cmp.Or(l.Recheck, 15*time.Minute)}
}

// segmentName is the form of a segment's name. It is a part of keys on the topic.
var segmentName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,63}$`)

// compile compiles segments, sorted by name. The error names the segment and the position.
func compile(segments []Segment, features []Feature, limits Limits) ([]*segment, error) {
	if len(segments) > limits.Segments {
		return nil, fmt.Errorf("%d segments, the limit is %d", len(segments), limits.Segments)
	}
	env, err := newEnv(features)
	if err != nil {
		return nil, fmt.Errorf("environment of segments: %w", err)
	}
	var compiled []*segment
	for _, s := range segments {
		c, err := s.compile(env, features, limits.Cost)
		if err != nil {
			return nil, fmt.Errorf("segment %q: %w", s.Name, err)
		}
		compiled = append(compiled, c)
	}
	slices.SortFunc(compiled, func(a, b *segment) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(compiled); i++ {
		if compiled[i].Name == compiled[i-1].Name {
			return nil, fmt.Errorf("segment %q is defined twice", compiled[i].Name)
		}
	}
	return compiled, nil
}

func (s Segment) compile(env *cel.Env, features []Feature, cost uint64) (*segment, error) {
	if !segmentName.MatchString(s.Name) {
		return nil, errors.New("the name must have 1 to 64 lower-case letters, digits, _ and -, and begin with a letter")
	}
	if s.Purpose == customerv1.ConsentPurpose_CONSENT_PURPOSE_UNSPECIFIED {
		return nil, errors.New("purpose: want marketing, analytics or personalisation")
	}
	checked, issues := env.Compile(s.Expression)
	if err := issues.Err(); err != nil {
		// Such as "ERROR: <input>:1:8: undeclared reference to 'order'", and the line with a caret.
		if strings.Contains(err.Error(), "undeclared reference to 'features'") {
			err = fmt.Errorf("%w\n(a feature is features.GROUP.NAME, of a group of customers; `millrace features describe GROUP` "+
				"lists the names)", err)
		}
		return nil, fmt.Errorf("expression: %w", err)
	}
	if !checked.OutputType().IsExactType(cel.BoolType) {
		return nil, fmt.Errorf("expression: it is of type %s, want bool", checked.OutputType())
	}
	program, err := env.Program(checked, cel.CostLimit(cost))
	if err != nil {
		return nil, err
	}
	compiled := &segment{s, program, map[string]int{}}
	for _, named := range checked.NativeRep().ReferenceMap() {
		i := slices.IndexFunc(features, func(f Feature) bool { return f.variable() == named.Name })
		if i >= 0 {
			compiled.features[named.Name] = i
		}
	}
	return compiled, nil
}

// Names in expressions. momentVariable is not a valid identifier in expressions, so only the macros
// below refer to it.
const (
	momentVariable = "@moment"
	withinFunction = "within"
	ordersFunction = "orders_within"
	spentFunction  = "spent"
)

// newEnv returns the environment of expressions: the parts of a profile and features as variables,
// and functions of time. An expression cannot read the clock in any other way. So the functions see every instant
// at which the result may change.
func newEnv(features []Feature) (*cel.Env, error) {
	object := func(name string) *cel.Type { return cel.ObjectType("millrace.customer360.v1." + name) }
	// A macro passes the moment to a function: within(t, "30d") becomes @moment.within(t, "30d").
	macro := func(name string, arguments int) cel.Macro {
		return cel.GlobalMacro(name, arguments,
			func(f cel.MacroExprFactory, _ ast.Expr, args []ast.Expr) (ast.Expr, *cel.Error) {
				period := args[len(args)-1]
				if name != spentFunction || len(args) == 2 {
					if period.Kind() != ast.LiteralKind {
						return nil, f.NewError(period.ID(), "want a literal period, such as \"30d\"")
					}
					if _, err := parsePeriod(fmt.Sprint(period.AsLiteral().Value())); err != nil {
						return nil, f.NewError(period.ID(), err.Error())
					}
				}
				return f.NewMemberCall(name, f.NewIdent(momentVariable), args...), nil
			})
	}
	bind := func(f func(m *moment, args []ref.Val) ref.Val) cel.OverloadOpt {
		return cel.FunctionBinding(func(args ...ref.Val) ref.Val {
			m, ok := args[0].(*moment)
			if !ok {
				return types.MaybeNoSuchOverloadErr(args[0])
			}
			return f(m, args[1:])
		})
	}
	variables := []cel.EnvOption{cel.CrossTypeNumericComparisons(true)} // features... > 500, without .0
	for _, f := range features {
		variables = append(variables, cel.Variable(f.variable(), f.celType()))
	}
	return cel.NewEnv(append(variables,
		cel.Types(&customer360v1.Profile{}),
		cel.Variable("customer_id", cel.StringType),
		cel.Variable("contact", object("Contact")),
		cel.Variable("consents", cel.ListType(object("Consent"))),
		cel.Variable("orders", object("Orders")),
		cel.Variable("behavior", object("Behavior")),
		cel.Variable("identifiers", cel.ListType(cel.ObjectType("millrace.identity.v1.Identifier"))),
		cel.Variable("registered_at", cel.TimestampType),
		cel.Variable(momentVariable, momentType),
		cel.Macros(macro(withinFunction, 2), macro(ordersFunction, 1), macro(spentFunction, 1), macro(spentFunction, 2)),
		cel.Function(withinFunction, cel.MemberOverload("moment_within",
			[]*cel.Type{momentType, cel.TimestampType, cel.StringType}, cel.BoolType, bind(within))),
		cel.Function(ordersFunction, cel.MemberOverload("moment_orders_within",
			[]*cel.Type{momentType, cel.StringType}, cel.IntType, bind(ordersWithin))),
		cel.Function(spentFunction,
			cel.MemberOverload("moment_spent", []*cel.Type{momentType, cel.StringType}, cel.DoubleType, bind(spent)),
			cel.MemberOverload("moment_spent_within",
				[]*cel.Type{momentType, cel.StringType, cel.StringType}, cel.DoubleType, bind(spent))),
	)...)
}

// parsePeriod parses a period such as "30d": a whole number of one unit.
func parsePeriod(s string) (time.Duration, error) {
	number := strings.TrimRight(s, "mhdw")
	n, err := strconv.ParseUint(number, 10, 32)
	d, tooLong := duration.Parse(s)
	if err != nil || n == 0 || len(s)-len(number) != 1 || tooLong != nil {
		return 0, fmt.Errorf(`period %q: want a number and m, h, d or w, such as "30d"`, s)
	}
	return d, nil
}

// moment is the time at which an expression is evaluated, with what functions of time need. It
// collects the next instant at which one of their results changes. An expression has the same
// result until then: it is a function of the profile and of these results, and if none of those
// that were asked for has changed, the same ones are asked for again.
type moment struct {
	now    time.Time
	orders map[string]*Fragment
	due    time.Time // zero if no result changes by time alone
	// recheck is when a value is evaluated again that changes all the time.
	recheck   time.Duration
	unsettled bool // there is such a value
}

// momentType is the type of a moment in expressions.
var momentType = cel.OpaqueType("millrace.moment")

// ends registers that something begins to be too old at a time. It reports whether it is not yet.
func (m *moment) ends(at time.Time) bool {
	if !m.now.Before(at) {
		return false
	}
	m.changes(at)
	return true
}

// changes registers that a value may change at a time: never if it is zero, and all the time if it is
// not after now.
func (m *moment) changes(at time.Time) {
	if at.IsZero() {
		return
	}
	if !at.After(m.now) {
		at, m.unsettled = m.now.Add(m.recheck), true
	}
	if m.due.IsZero() || at.Before(m.due) {
		m.due = at
	}
}

// ConvertToNative implements ref.Val.
func (m *moment) ConvertToNative(reflect.Type) (any, error) { return nil, errOpaque }

// ConvertToType implements ref.Val.
func (m *moment) ConvertToType(ref.Type) ref.Val { return types.NewErrFromString(errOpaque.Error()) }

// Equal implements ref.Val.
func (m *moment) Equal(other ref.Val) ref.Val { return types.Bool(ref.Val(m) == other) }

// Type implements ref.Val.
func (m *moment) Type() ref.Type { return momentType }

// Value implements ref.Val.
func (m *moment) Value() any { return m }

var errOpaque = errors.New("a moment has no value")

// within implements within(time, period): less than the period has passed since the time.
func within(m *moment, args []ref.Val) ref.Val {
	t, isTime := args[0].Value().(time.Time)
	period, err := parsePeriod(fmt.Sprint(args[1].Value()))
	if !isTime || err != nil {
		return types.MaybeNoSuchOverloadErr(args[0])
	}
	return types.Bool(m.ends(t.Add(period)))
}

// counted calls fn with each order that counts. Without a period, age does not matter.
func (m *moment) counted(period time.Duration, fn func(*customer360v1.OrderFragment)) {
	for _, f := range m.orders {
		o := f.GetOrder()
		if o.GetStage() == orderv1.OrderStage_ORDER_STAGE_CANCELLED {
			continue
		}
		if period == 0 || m.ends(timeOf(o.GetOrderedAt()).Add(period)) {
			fn(o)
		}
	}
}

// ordersWithin implements orders_within(period): the number of orders in it.
func ordersWithin(m *moment, args []ref.Val) ref.Val {
	period, err := parsePeriod(fmt.Sprint(args[0].Value()))
	if err != nil {
		return types.NewErrFromString(err.Error())
	}
	n := types.Int(0)
	m.counted(period, func(*customer360v1.OrderFragment) { n++ })
	return n
}

// nanosPerUnit is the scale of google.type.Money.
const nanosPerUnit = 1_000_000_000

// spent implements spent(currency) and spent(currency, period): the sum of the orders' totals. The
// sum is exact; only its result is rounded to a double.
func spent(m *moment, args []ref.Val) ref.Val {
	var period time.Duration
	if len(args) == 2 {
		var err error
		if period, err = parsePeriod(fmt.Sprint(args[1].Value())); err != nil {
			return types.NewErrFromString(err.Error())
		}
	}
	sum, perUnit := new(big.Int), big.NewInt(nanosPerUnit)
	m.counted(period, func(o *customer360v1.OrderFragment) {
		if o.GetTotal().GetCurrencyCode() == args[0].Value() {
			units := big.NewInt(o.GetTotal().GetUnits())
			sum.Add(sum, units.Add(units.Mul(units, perUnit), big.NewInt(int64(o.GetTotal().GetNanos()))))
		}
	})
	amount, _ := new(big.Rat).SetFrac(sum, perUnit).Float64()
	return types.Double(amount)
}

// outcome is the result of evaluating all segments for one person.
type outcome struct {
	members map[string]bool // by segment
	due     time.Time       // when it may change by time alone; zero if never
	err     error           // of the profile or of expressions; such a segment has no such member
	// unsettled are the segments that depend on a value that changes all the time.
	unsettled map[string]bool
}

// evaluate evaluates segments for a person at a time. It is pure. A person without a profile is in no
// segment.
func evaluate(segments []*segment, features Features, recheck time.Duration, p Parts, now time.Time) outcome {
	now = event.Time(now) // facts have microseconds
	profile, err := Compose(p)
	if err != nil {
		return outcome{err: err}
	}
	m := &moment{now: now, orders: p.Orders, recheck: recheck}
	registered := profile.GetRegisteredAt()
	if registered == nil {
		registered = &timestamppb.Timestamp{}
	}
	variables := map[string]any{
		"customer_id": profile.GetCustomerId(), "contact": profile.GetContact(), "consents": profile.GetConsents(),
		"orders": profile.GetOrders(), "behavior": profile.GetBehavior(), "identifiers": profile.GetIdentifiers(),
		"registered_at": registered, momentVariable: m,
	}
	bindFeatures(variables, segments, features, p, m)
	withheld := refuses(profile, customerv1.ConsentPurpose_CONSENT_PURPOSE_ANALYTICS)
	o := outcome{members: map[string]bool{}, unsettled: map[string]bool{}}
	for _, s := range segments {
		if !grants(profile, s.Purpose) { // not asked, or refused
			continue
		}
		if len(s.features) > 0 && withheld {
			continue
		}
		m.unsettled = false
		result, _, err := s.program.Eval(variables)
		o.unsettled[s.Name] = m.unsettled
		if err != nil {
			o.err = cmp.Or(o.err, fmt.Errorf("segment %q: %w", s.Name, err))
			continue
		}
		if result == types.True {
			o.members[s.Name] = true
		}
	}
	o.due = m.due
	return o
}

// grants reports whether a person consents to a purpose.
func grants(p *customer360v1.Profile, purpose customerv1.ConsentPurpose) bool {
	return slices.ContainsFunc(p.GetConsents(), func(c *customer360v1.Consent) bool {
		return c.GetPurpose() == purpose && c.GetGranted()
	})
}

// ParsePurpose returns the purpose with a name: marketing, analytics or personalisation.
func ParsePurpose(name string) (customerv1.ConsentPurpose, error) {
	value, ok := customerv1.ConsentPurpose_value["CONSENT_PURPOSE_"+strings.ToUpper(name)]
	if !ok || value == 0 {
		return 0, fmt.Errorf("purpose %q: want marketing, analytics or personalisation", name)
	}
	return customerv1.ConsentPurpose(value), nil
}
