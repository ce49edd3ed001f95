package kafka

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/twmb/franz-go/pkg/kfake"
)

// logger forwards kfake's messages to slog, one level lower. kfake warns of transactions that take
// five milliseconds, and logs every request as information.
type logger struct{ to *slog.Logger }

// Logf implements kfake.Logger.
func (l *logger) Logf(level kfake.LogLevel, format string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case kfake.LogLevelError:
		to = slog.LevelError
	case kfake.LogLevelWarn:
		to = slog.LevelInfo
	}
	// Format only what is logged: kfake logs every request.
	if ctx := context.Background(); l.to.Enabled(ctx, to) {
		l.to.Log(ctx, to, fmt.Sprintf(format, args...))
	}
}
