package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/decode"
)

// engineAccess is how commands of the same user reach the embedded engine of a running system: with a
// file in its data folder, which only that user can read. Commands connect as clickhouse.Reader.
type engineAccess struct {
	URL      string `json:"url"`
	Password string `json:"password"`
}

// engineAccessFile is the name of the file in the data folder.
const engineAccessFile = "clickhouse.access"

// announceEngine writes the file. It is removed when the system stops.
func (p *App) announceEngine() error {
	server := p.child.Server(clickhouse.Reader)
	text, err := json.Marshal(engineAccess{server.URL, server.Password}) //nolint:gosec // the file is for the password
	if err != nil {
		return err
	}
	path := p.cfg.Path(engineAccessFile)
	// An older file may be readable by others.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the engine's old access file: %w", err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return fmt.Errorf("write the engine's access file: %w", err)
	}
	p.onStop(func() error {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the engine's access file: %w", err)
		}
		return nil
	})
	return nil
}

// runningEngine returns how to connect to the embedded engine of the system that runs in the data
// folder, as clickhouse.Reader.
func runningEngine(c config.Config) (clickhouse.Server, error) {
	path := c.Path(engineAccessFile)
	text, err := os.ReadFile(path) //nolint:gosec // in the data folder that the user names
	if errors.Is(err, fs.ErrNotExist) {
		return clickhouse.Server{}, fmt.Errorf("clickhouse.url is empty, and no system with an embedded engine runs in %s: "+
			"start `millrace up` there, name its folder with --data, or set clickhouse.url "+
			"(MILLRACE_CLICKHOUSE_URL) to a server", c.Path())
	}
	if err != nil {
		return clickhouse.Server{}, fmt.Errorf("read the engine's access file: %w", err)
	}
	var a engineAccess
	if err := decode.JSON(text, &a); err != nil {
		return clickhouse.Server{}, fmt.Errorf("%s is damaged; restart the system: %w", path, err)
	}
	return clickhouse.Server{URL: a.URL, User: clickhouse.Reader, Password: a.Password}, nil
}
