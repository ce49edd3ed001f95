package history

import (
	"context"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/clickhouse"
)

// A group may have several versions. One is live. The next one is filled beside it, and replaces it
// when it is equal, in these steps:
//
//  1. The tiles of the new version reach the batches that the live one has.
//  2. checking: a batch of each source is fixed, beyond which the new tiles are not filled for a while.
//  3. checked: the tiles have been compared with those that ClickHouse aggregates from the facts of
//     all batches up to these. Every tile must be equal, by digest.
//  4. live: the tiles have reached the batches of the live version again. From now on, the new
//     version is live.
//
// Steps are rows of a table, numbered per group. A row is inserted under a token that is its number,
// so of several processes the first one counts, and a process that starts again continues with the
// last step. A table of tiles is never filled twice, so a version whose tables were dropped needs
// another number to come back.

// Steps of a version.
const (
	stateChecking = "checking"
	stateChecked  = "checked"
	stateLive     = "live"
)

// versions is the table of the steps of all groups.
var versions = clickhouse.Table{
	Database: clickhouse.Features, Name: "versions", OrderBy: []string{"group_name", "number"},
	Columns: []clickhouse.Column{
		{Name: "group_name", Type: "String"},
		{Name: "number", Type: "UInt64"},
		{Name: "version", Type: "UInt32"},
		{Name: "state", Type: "LowCardinality(String)"},
		{Name: "batches", Type: "Map(String, UInt64)"},
		{Name: "attempt", Type: "String"},
		{Name: "written_at", Type: instant, Default: "DEFAULT now64(6)"},
	},
	Comment: "which version of a group is live, and what the next one has passed",
}

// step is a step of a version.
type step struct {
	number  uint64
	version int
	state   string
	batches map[string]uint64 // by source; those that were fixed or reached
	attempt string            // of the process that has written it
	age     time.Duration     // by ClickHouse's clock, when it was read
}

// steps returns the steps of a group, in order.
func (h *History) steps(ctx context.Context, group string) ([]step, error) {
	// If a token was forgotten, there may be a later row. It does not count.
	rows, err := h.cfg.Store.Query(ctx, "SELECT number, version, state, batches, attempt, "+
		"dateDiff('millisecond', written_at, now64(6)) FROM "+versions.FullName()+
		" WHERE group_name = ? ORDER BY number, written_at, attempt LIMIT 1 BY number", group)
	if err != nil {
		return nil, fmt.Errorf("read the versions of %s: %w", group, err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err has reported it
	var all []step
	for rows.Next() {
		var s step
		var version uint32
		var millis int64
		if err := rows.Scan(&s.number, &version, &s.state, &s.batches, &s.attempt, &millis); err != nil {
			return nil, fmt.Errorf("read the versions of %s: %w", group, err)
		}
		s.version, s.age = int(version), time.Duration(millis)*time.Millisecond
		all = append(all, s)
	}
	return all, rows.Err()
}

// last returns the last step of a version since the live one was replaced.
func last(all []step, version int) (s step, found bool) {
	if n := len(all); n > 0 && all[n-1].version == version {
		return all[n-1], true
	}
	return step{}, false
}

// versionsNamed returns the configured versions of a group, in order.
func (h *History) versionsNamed(name string) []*features.Group {
	var all []*features.Group
	for _, g := range h.cfg.Groups {
		if g.Name == name {
			all = append(all, g)
		}
	}
	slices.SortFunc(all, func(a, b *features.Group) int { return a.Version - b.Version })
	return all
}

// liveOf returns the version that is live after some steps: the last one that became it. Before the
// first step, that is the lowest configured one. A version that is not configured any more is
// replaced by the next one.
func liveOf(configured []*features.Group, all []step) *features.Group {
	version := 0
	for _, s := range all {
		if s.state == stateLive {
			version = s.version
		}
	}
	for _, g := range configured {
		if g.Version >= version {
			return g
		}
	}
	return configured[len(configured)-1]
}

// Live returns the version of a group that is to be served.
func (h *History) Live(ctx context.Context, name string) (*features.Group, error) {
	configured := h.versionsNamed(name)
	switch len(configured) {
	case 0:
		return nil, fmt.Errorf("history: no feature group %q", name)
	case 1:
		return configured[0], nil
	}
	all, err := h.steps(ctx, name)
	if err != nil && !clickhouse.IsSchema(err) { // the table is not created yet
		return nil, err
	}
	return liveOf(configured, all), nil
}

// limit returns the last batch that a filler may fill now.
func (t *tiles) limit(ctx context.Context, h *History) (uint64, error) {
	configured := h.versionsNamed(t.group.Name)
	if len(configured) == 1 {
		return math.MaxUint64, nil
	}
	all, err := h.steps(ctx, t.group.Name)
	if err != nil {
		return 0, err
	}
	if s, ok := last(all, t.group.Version); ok && s.state == stateChecking {
		return s.batches[t.source.Name], nil
	}
	return math.MaxUint64, nil
}

// swapper makes the next version of a group live.
type swapper struct {
	*History
	name    string
	attempt string    // identifies this process
	resume  time.Time // after a difference, when to compare again
	health  health
}

func newSwapper(h *History, name string) *swapper {
	return &swapper{History: h, name: name, attempt: uuid.NewString()}
}

// errDifferent means that the tiles of a version are not those of its facts.
var errDifferent = errors.New("the new version is not equal to its facts, so the live one stays: " +
	"give the group another version, and report the difference")

// session takes steps until something fails.
func (s *swapper) session(ctx context.Context, worked func()) error {
	if !backoff.Sleep(ctx, time.Until(s.resume)) {
		return ctx.Err()
	}
	if err := s.cfg.Store.CreateTable(ctx, versions); err != nil {
		return err
	}
	for {
		begun := time.Now()
		if err := s.advance(ctx); err != nil {
			if errors.Is(err, errDifferent) { // it hardly passes, and comparing costs
				s.resume = time.Now().Add(20 * time.Since(begun))
			}
			return err
		}
		worked()
		if !backoff.Sleep(ctx, s.cfg.swap) {
			return ctx.Err()
		}
	}
}

// advance takes the next step, if it is due.
func (s *swapper) advance(ctx context.Context) error {
	configured := s.versionsNamed(s.name)
	all, err := s.steps(ctx, s.name)
	if err != nil {
		return err
	}
	live, next := liveOf(configured, all), configured[len(configured)-1]
	if next == live {
		return nil
	}
	now, ok := last(all, next.Version)
	mine, theirs, err := s.batchesOf(ctx, live, next)
	if err != nil {
		return err
	}
	switch {
	case !ok || now.state == stateLive:
		if reaches(mine, theirs) {
			return s.take(ctx, all, step{version: next.Version, state: stateChecking, batches: mine})
		}
	case now.state == stateChecking && !reaches(mine, now.batches):
	case now.state == stateChecking && !reaches(now.batches, mine):
		// Another process has filled further before it learned of the step.
		return s.take(ctx, all, step{version: next.Version, state: stateChecking, batches: mine})
	case now.state == stateChecking:
		if now.attempt != s.attempt && now.age < 12*s.cfg.takeover {
			return nil // the process that has taken the step compares
		}
		if err := s.compare(ctx, next); err != nil {
			return err
		}
		return s.take(ctx, all, step{version: next.Version, state: stateChecked, batches: mine})
	case reaches(mine, theirs):
		if err := s.take(ctx, all, step{version: next.Version, state: stateLive, batches: mine}); err != nil {
			return err
		}
		s.cfg.Logger.Info("features: another version is live", "group", s.name, "version", next.Version,
			"before", live.Version)
	}
	return nil
}

// batchesOf returns the last batches that the tiles of the next version have, and those that they
// need to replace the live one: its own, and of a source that it does not have those of the facts.
// Both are by source.
func (s *swapper) batchesOf(ctx context.Context, live, next *features.Group) (
	mine, needed map[string]uint64, err error) {
	mine, needed = map[string]uint64{}, map[string]uint64{}
	for _, t := range s.tiles {
		if t.group != next {
			continue
		}
		positions, err := s.allPositions(ctx, t.source)
		if err != nil {
			return nil, nil, err
		}
		mine[t.source.Name], needed[t.source.Name] = positions[t.table.Name], positions[t.source.facts.Name]
		for _, other := range t.source.tiles {
			if other.group == live {
				needed[t.source.Name] = positions[other.table.Name]
			}
		}
	}
	return mine, needed, nil
}

// reaches reports whether batches are at least the others.
func reaches(have, others map[string]uint64) bool {
	for source, batch := range others {
		if have[source] < batch {
			return false
		}
	}
	return true
}

// take writes a step after the others.
func (s *swapper) take(ctx context.Context, all []step, next step) error {
	if n := len(all); n > 0 {
		next.number = all[n-1].number
	}
	next.number++
	if err := s.at(ctx, s.name, "about to be "+next.state); err != nil {
		return err
	}
	b, err := s.cfg.Store.Batch(versions, fmt.Sprintf("%s/%d", s.name, next.number),
		"group_name", "number", "version", "state", "batches", "attempt")
	if err != nil {
		return err
	}
	if err := b.Append(s.name, next.number, uint32(next.version), next.state, next.batches, s.attempt); err != nil {
		return err
	}
	if err := b.Send(ctx); err != nil {
		return fmt.Errorf("write that %s is %s: %w", s.name, next.state, err)
	}
	for _, t := range s.tiles {
		if t.group.Name == s.name { // its limit may have changed
			t.notify()
		}
	}
	return s.at(ctx, s.name, "is "+next.state)
}

// compare compares the tiles of a version with its facts. They are not being filled.
func (s *swapper) compare(ctx context.Context, g *features.Group) error {
	edge := s.edge(time.Now())
	for _, t := range s.tiles {
		if t.group != g {
			continue
		}
		// A correction that arrives between the two changes which tiles are compared.
		for attempt := 0; ; attempt++ {
			want, err := s.expectedTiles(ctx, t, edge)
			if err != nil {
				return err
			}
			have, err := s.tilesDigest(ctx, t, edge)
			if err != nil {
				return err
			}
			if have.Total() == want.Total() {
				break
			}
			if attempt == compareAttempts {
				return fmt.Errorf("%s: %w: %d tiles with the hash %s, want %d with %s", t.table.Name, errDifferent,
					have.Total().Count, have.Total().Hash(), want.Total().Count, want.Total().Hash())
			}
		}
	}
	return nil
}

// compareAttempts is how often compare tries again.
const compareAttempts = 3

// abandon forgets the steps of a version that is not live yet. Its tables are about to be dropped.
func (s *swapper) abandon(ctx context.Context) error {
	all, err := s.steps(ctx, s.name)
	if clickhouse.IsSchema(err) || err == nil && len(all) == 0 {
		return nil // no step was taken
	}
	if err != nil || all[len(all)-1].state == stateLive {
		return err
	}
	return s.take(ctx, all, step{version: liveOf(s.versionsNamed(s.name), all).Version, state: stateLive,
		batches: map[string]uint64{}})
}

// retireInterval is the interval of looking for tables of earlier versions.
const retireInterval = time.Hour

// retireEarlier drops the tables of earlier versions until something fails.
func (h *History) retireEarlier(ctx context.Context, worked func()) error {
	for {
		if err := h.retire(ctx); err != nil {
			return err
		}
		worked()
		if !backoff.Sleep(ctx, retireInterval) {
			return ctx.Err()
		}
	}
}

// retire drops the tiles of versions that are not configured any more, if a later version has
// reached the facts, and its tables are older than the grace. Until then, a process with the earlier
// definition may still serve them.
func (h *History) retire(ctx context.Context) error {
	rows, err := h.cfg.Store.Query(ctx, "SELECT name, dateDiff('second', metadata_modification_time, now()) "+
		"FROM system.tables WHERE database = ? AND startsWith(name, 'tiles_')", clickhouse.Features)
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err has reported it
	ages := map[string]time.Duration{}
	for rows.Next() {
		var name string
		var seconds int64
		if err := rows.Scan(&name, &seconds); err != nil {
			return fmt.Errorf("list tables: %w", err)
		}
		ages[name] = time.Duration(seconds) * time.Second
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	for name := range ages {
		old, err := h.earlier(ctx, name, ages)
		if err != nil {
			return err
		}
		if !old {
			continue
		}
		table := clickhouse.Table{Database: clickhouse.Features, Name: name}
		drop := "DROP TABLE IF EXISTS " + table.FullName() + h.cfg.Store.OnCluster() + " SYNC"
		if err := h.cfg.Store.Exec(ctx, drop); err != nil {
			return fmt.Errorf("drop %s: %w", name, err)
		}
		h.cfg.Logger.Info("features: dropped the table of an earlier version", "table", name)
	}
	return nil
}

// earlier reports whether a table has the tiles of an earlier version that may be dropped.
func (h *History) earlier(ctx context.Context, name string, ages map[string]time.Duration) (bool, error) {
	parts := tilesName.FindStringSubmatch(name)
	if parts == nil || slices.ContainsFunc(h.tiles, func(t *tiles) bool { return t.table.Name == name }) {
		return false, nil
	}
	configured := h.versionsNamed(parts[1])
	version, err := strconv.Atoi(parts[2])
	if err != nil { // too large: somebody else's table
		return false, nil //nolint:nilerr // it is not of an earlier version
	}
	if len(configured) == 0 || version >= configured[0].Version || h.sourceNamed(parts[3]) == nil {
		return false, nil
	}
	for _, t := range h.tiles {
		if t.group != configured[0] {
			continue
		}
		positions, err := h.allPositions(ctx, t.source)
		if err != nil {
			return false, err
		}
		if age, exists := ages[t.table.Name]; !exists || age < h.cfg.grace ||
			positions[t.table.Name] < positions[t.source.facts.Name] {
			return false, nil
		}
	}
	return true, nil
}

// tilesName matches the names of tables of tiles: group, version and source.
var tilesName = regexp.MustCompile(`^tiles_(.+?)_v([0-9]+)_(.+)$`)
