// Package serving is the API of flags for operators: millrace.flags.v1.FlagService.
//
// Service reads flags from a flags.Reader and changes them by a flags.Writer. Each change is recorded
// with the caller's name, as auth.tokens has it. Who may call it is decided in front of it.
package serving

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/flags"
	flagsv1 "github.com/millrace/millrace/gen/millrace/flags/v1"
	"github.com/millrace/millrace/gen/millrace/flags/v1/flagsv1connect"
	"github.com/millrace/millrace/internal/auth"
)

// timeout bounds a call that needs the brokers.
const timeout = 30 * time.Second

// Service implements FlagService.
type Service struct {
	reader   *flags.Reader
	writer   *flags.Writer
	declared []flags.Declaration
}

var _ flagsv1connect.FlagServiceHandler = (*Service)(nil)

// New returns a service. declared are the flags that the program reads.
func New(reader *flags.Reader, writer *flags.Writer, declared []flags.Declaration) *Service {
	return &Service{reader, writer, declared}
}

// ListFlags implements FlagService.
func (s *Service) ListFlags(
	context.Context, *connect.Request[flagsv1.ListFlagsRequest],
) (*connect.Response[flagsv1.ListFlagsResponse], error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	res := &flagsv1.ListFlagsResponse{Stale: s.reader.State() == flags.Stale}
	for _, f := range s.reader.All() {
		res.Flags = append(res.Flags, s.message(f))
	}
	for _, d := range s.declared {
		if _, set := s.reader.Get(d.Name); !set {
			res.Flags = append(res.Flags, unset(d))
		}
	}
	slices.SortFunc(res.Flags, func(a, b *flagsv1.Flag) int { return strings.Compare(a.GetName(), b.GetName()) })
	return connect.NewResponse(res), nil
}

// ready returns an error until the flags are read.
func (s *Service) ready() error {
	if s.reader.State() == flags.Starting {
		return connect.NewError(connect.CodeUnavailable, errors.New("the flags are being read; try again"))
	}
	return nil
}

// GetFlag implements FlagService.
func (s *Service) GetFlag(
	_ context.Context, req *connect.Request[flagsv1.GetFlagRequest],
) (*connect.Response[flagsv1.GetFlagResponse], error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	name := req.Msg.GetName()
	if f, ok := s.reader.Get(name); ok {
		return connect.NewResponse(&flagsv1.GetFlagResponse{Flag: s.message(f)}), nil
	}
	for _, d := range s.declared {
		if d.Name == name {
			return connect.NewResponse(&flagsv1.GetFlagResponse{Flag: unset(d)}), nil
		}
	}
	return nil, failure(fmt.Errorf("%w: %.100q", flags.ErrNotFound, name))
}

// SetFlag implements FlagService.
func (s *Service) SetFlag(
	ctx context.Context, req *connect.Request[flagsv1.SetFlagRequest],
) (*connect.Response[flagsv1.SetFlagResponse], error) {
	m := req.Msg
	e := flags.Edit{Name: m.GetName(), Type: flags.Type(m.GetType()), Description: m.Description,
		Revision: m.Revision, By: auth.CallerOf(ctx), Reason: m.GetReason()}
	if m.Value != nil {
		e.Value = json.RawMessage(m.GetValue())
	}
	for _, v := range m.GetVariants() {
		e.Rollout = append(e.Rollout, flags.Share{Variant: v.GetName(), Value: json.RawMessage(v.GetValue()),
			Share: int(v.GetShare())})
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errSlow)
	defer cancel()
	f, err := s.writer.Set(ctx, e)
	if err != nil {
		return nil, failure(err)
	}
	return connect.NewResponse(&flagsv1.SetFlagResponse{Flag: s.message(f)}), nil
}

// DeleteFlag implements FlagService.
func (s *Service) DeleteFlag(
	ctx context.Context, req *connect.Request[flagsv1.DeleteFlagRequest],
) (*connect.Response[flagsv1.DeleteFlagResponse], error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errSlow)
	defer cancel()
	err := s.writer.Delete(ctx, req.Msg.GetName(), req.Msg.Revision, auth.CallerOf(ctx), req.Msg.GetReason())
	if err != nil {
		return nil, failure(err)
	}
	return connect.NewResponse(&flagsv1.DeleteFlagResponse{}), nil
}

// ListFlagHistory implements FlagService.
func (s *Service) ListFlagHistory(
	ctx context.Context, req *connect.Request[flagsv1.ListFlagHistoryRequest],
) (*connect.Response[flagsv1.ListFlagHistoryResponse], error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errSlow)
	defer cancel()
	entries, err := s.writer.History(ctx, req.Msg.GetName(), int(req.Msg.GetLimit()))
	if err != nil {
		return nil, failure(err)
	}
	res := &flagsv1.ListFlagHistoryResponse{}
	for _, e := range entries {
		c := &flagsv1.FlagChange{Change: changeMessage(e.Change), RevisionBefore: e.Before}
		if e.After != nil {
			c.After = s.message(*e.After)
		}
		res.Changes = append(res.Changes, c)
	}
	return connect.NewResponse(res), nil
}

var errSlow = fmt.Errorf("the brokers did not answer within %v; `millrace flags history` shows whether the flag was changed", timeout)

// failure gives an error of package flags its code. Others mean that Kafka did not answer.
func failure(err error) error {
	for _, c := range []struct {
		is   error
		code connect.Code
	}{
		{flags.ErrInvalid, connect.CodeInvalidArgument},
		{flags.ErrNotFound, connect.CodeNotFound},
		{flags.ErrConflict, connect.CodeFailedPrecondition},
	} {
		if errors.Is(err, c.is) {
			return connect.NewError(c.code, err)
		}
	}
	return err
}

// message returns a flag as the API has it.
func (s *Service) message(f flags.Flag) *flagsv1.Flag {
	m := &flagsv1.Flag{Name: f.Name, Type: string(f.Type), Description: f.Description, Value: string(f.Value),
		Revision: f.Revision, LastChange: changeMessage(f.Change)}
	for _, d := range s.declared {
		if d.Name == f.Name {
			m.Declared, m.Description = true, cmp.Or(f.Description, d.Description)
		}
	}
	for _, v := range f.Rollout {
		m.Variants = append(m.Variants, &flagsv1.Variant{Name: v.Name, Value: string(v.Value), Share: uint32(v.Share())})
	}
	return m
}

// unset returns a flag that the program reads and nobody has set.
func unset(d flags.Declaration) *flagsv1.Flag {
	return &flagsv1.Flag{Name: d.Name, Type: string(d.Type), Description: d.Description, Value: string(d.Default),
		Revision: flags.Absent, Declared: true}
}

func changeMessage(c flags.Change) *flagsv1.Change {
	return &flagsv1.Change{Id: c.ID, By: c.By, At: timestamppb.New(c.At), Reason: c.Reason}
}
