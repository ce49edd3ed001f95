package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/internal/settings"
	"github.com/millrace/millrace/readmodels/catalog"
)

const settingsTimeout = 20 * time.Second // for all servers together

// checker is a client that can check the settings of its server. A fault is fatal if the setting
// would lose or falsify data. Other faults are reported only.
//
// The client knows which settings of its server matter, so the checks are beside the clients, and
// this package only runs them.
type checker interface {
	Settings(ctx context.Context) ([]settings.Fault, error)
}

// checkers returns the checks of the real servers that this process uses, by name. Embedded servers
// have the settings that Millrace gives them.
func (p *App) checkers() map[string]func(context.Context) ([]settings.Fault, error) {
	all := map[string]func(context.Context) ([]settings.Fault, error){}
	// Not every client implements checker. The store in SQLite does not need to.
	add := func(name string, client any) {
		if j, ok := client.(checker); ok {
			all[name] = j.Settings
		}
	}
	// These roles write to the topics, read them, or report on them.
	if p.admin != nil && (p.has(Relay) || p.has(Views) || p.has(Lake) || p.has(Admin)) {
		all["kafka"] = func(ctx context.Context) ([]settings.Fault, error) {
			return p.admin.Settings(ctx, p.modules.logs(p.cfg.Kafka)...)
		}
	}
	if p.seals != nil {
		add("seals", p.seals)
	}
	for name, store := range p.stores {
		add("store "+name, store)
	}
	if p.viewSinks.redis != nil && p.cfg.Redis.Addr != "" {
		add("redis", p.viewSinks.redis)
	}
	for sink, index := range p.viewSinks.openIndexes() {
		add(strings.TrimSpace("search "+strings.TrimPrefix(sink, catalog.Name)), index)
	}
	if p.lake != nil {
		add("lake", p.lake)
	}
	return all
}

// startSettings fails if a setting would lose or falsify data, and then checks again periodically.
// A fatal fault that appears later is reported by log, status and metric, but does not end the
// process.
func (p *App) startSettings(ctx context.Context) error {
	faults := p.checkSettings(ctx)
	if err := settings.Refuse(faults); err != nil {
		return err
	}
	p.metrics.Labelled("millrace_setting_fault", "1 for each wrong setting of a server.",
		[]string{"resource", "setting", "fatal"},
		func(is func(labels ...string)) {
			for _, f := range p.settingFaults() {
				is(f.Resource, f.Setting, fmt.Sprint(f.Fatal))
			}
		})
	p.background("settings", func(ctx context.Context) error {
		// An operator can change a setting at any time, so the check repeats.
		tick := time.NewTicker(p.cfg.SettingsEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				p.checkSettings(ctx)
			}
		}
	})
	return nil
}

// checkSettings checks the settings of all servers. If a server does not answer, that is logged,
// and its previous faults remain.
func (p *App) checkSettings(ctx context.Context) []settings.Fault {
	ctx, cancel := context.WithTimeout(ctx, settingsTimeout)
	defer cancel()
	// Ask without the lock, because a server may take long to answer.
	now := map[string][]settings.Fault{}
	for name, ask := range p.checkers() {
		faults, err := ask(ctx)
		if err != nil {
			if !errors.Is(ctx.Err(), context.Canceled) {
				p.log.Warn("cannot read the settings of a server; skipping their check", "server", name, "error", err)
			}
			continue
		}
		now[name] = faults
	}
	p.settingsMu.Lock()
	defer p.settingsMu.Unlock()
	for name, faults := range now {
		// Log each fault once, when it appears.
		for _, f := range faults {
			if !slices.Contains(p.settings[name], f) {
				p.log.Warn("wrong setting of a server", "server", name, "fault", f.String(), "fatal", f.Fatal)
			}
		}
		p.settings[name] = faults
	}
	return p.sortedFaults()
}

// settingFaults returns the known faults, as of the last check.
func (p *App) settingFaults() []settings.Fault {
	p.settingsMu.Lock()
	defer p.settingsMu.Unlock()
	return p.sortedFaults()
}

// sortedFaults returns all known faults. The caller holds settingsMu.
func (p *App) sortedFaults() []settings.Fault {
	var all []settings.Fault
	for _, faults := range p.settings {
		all = append(all, faults...)
	}
	slices.SortFunc(all, func(a, b settings.Fault) int { return strings.Compare(a.String(), b.String()) })
	return all
}
