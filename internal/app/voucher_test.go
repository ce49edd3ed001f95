package app

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	examplev1 "github.com/millrace/millrace/gen/millrace/example/v1"
	"github.com/millrace/millrace/gen/millrace/example/v1/examplev1connect"
	"github.com/millrace/millrace/lake/declare"
)

// This file is the service that docs/adding-a-service.md builds. Only tests use it.

// voucher would be a line of event.Aggregates.
var voucher = event.Aggregate{
	Name: "voucher", Service: "example", Topic: "millrace.vouchers", Message: "millrace.example.v1.VoucherEvent",
}

// vouchersEvents would be a line of lake/tables.
var vouchersEvents = declare.Events("vouchers_events", voucher, (*examplev1.VoucherEvent)(nil))

// voucherService would be a line of Shop.
var voucherService = Service{voucher, newVoucherHandler, []declare.Table{vouchersEvents}}

type voucherState struct {
	Issued bool
	Left   int64
}

type voucherCommand interface{ voucherCommand() }

type (
	issueVoucher struct {
		Code string
		Uses int64
		At   time.Time
	}
	redeemVoucher struct {
		Code string
		At   time.Time
	}
)

func (issueVoucher) voucherCommand()  {}
func (redeemVoucher) voucherCommand() {}

func decideVoucher(s voucherState, c voucherCommand) ([]*examplev1.VoucherEvent, error) {
	switch c := c.(type) {
	case issueVoucher:
		if s.Issued {
			return nil, &commands.RejectedError{
				Code: commands.AlreadyExists, Rule: "voucher_already_issued", Field: "code",
				Reason: "the voucher exists",
			}
		}
		return []*examplev1.VoucherEvent{{Event: &examplev1.VoucherEvent_Issued{Issued: &examplev1.VoucherIssued{
			Code: c.Code, Uses: c.Uses, IssuedAt: timestamppb.New(c.At),
		}}}}, nil
	case redeemVoucher:
		if s.Left == 0 {
			return nil, &commands.RejectedError{
				Code: commands.Refused, Rule: "voucher_used_up", Field: "code", Reason: "the voucher has no uses left",
			}
		}
		return []*examplev1.VoucherEvent{{Event: &examplev1.VoucherEvent_Redeemed{Redeemed: &examplev1.VoucherRedeemed{
			Code: c.Code, RedeemedAt: timestamppb.New(c.At),
		}}}}, nil
	}
	return nil, fmt.Errorf("unknown command %T", c)
}

func evolveVoucher(s voucherState, e *examplev1.VoucherEvent) voucherState {
	switch e := e.Event.(type) {
	case *examplev1.VoucherEvent_Issued:
		return voucherState{Issued: true, Left: e.Issued.GetUses()}
	case *examplev1.VoucherEvent_Redeemed:
		s.Left--
	}
	return s
}

func newVoucherHandler(store eventstore.Store, opts ...commands.Option) (string, http.Handler) {
	decider := commands.Decider[voucherState, voucherCommand, *examplev1.VoucherEvent]{
		Decide: decideVoucher, Evolve: evolveVoucher, Schema: 1,
	}
	h := voucherHandler{commands.NewRunner(store, voucher, decider, opts...)}
	return examplev1connect.NewVoucherServiceHandler(h, commands.HandlerOptions(opts...)...)
}

type voucherHandler struct {
	vouchers *commands.Runner[voucherState, voucherCommand, *examplev1.VoucherEvent]
}

func (h voucherHandler) IssueVoucher(
	ctx context.Context, req *connect.Request[examplev1.IssueVoucherRequest],
) (*connect.Response[examplev1.IssueVoucherResponse], error) {
	issue := issueVoucher{Code: req.Msg.GetCode(), Uses: req.Msg.GetUses(), At: h.vouchers.Time(nil)}
	return commands.Do(ctx, req, h.vouchers.On(issue.Code, issue),
		func(_ voucherState, r *eventv1.Receipt) *examplev1.IssueVoucherResponse {
			return &examplev1.IssueVoucherResponse{Receipt: r}
		})
}

func (h voucherHandler) RedeemVoucher(
	ctx context.Context, req *connect.Request[examplev1.RedeemVoucherRequest],
) (*connect.Response[examplev1.RedeemVoucherResponse], error) {
	redeem := redeemVoucher{Code: req.Msg.GetCode(), At: h.vouchers.Time(nil)}
	return commands.Do(ctx, req, h.vouchers.On(redeem.Code, redeem),
		func(_ voucherState, r *eventv1.Receipt) *examplev1.RedeemVoucherResponse {
			return &examplev1.RedeemVoucherResponse{Receipt: r}
		})
}
