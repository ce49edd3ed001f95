package redis

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/alicebob/miniredis/v2/server"
)

// command implements a Redis command. It returns nil, a string (a bulk reply), an int64, a status,
// or a []any of these.
type command struct {
	writes bool // it runs in a write transaction
	least  int  // minimum number of arguments; -n means exactly n
	// run executes the command. The number of arguments has been checked.
	run func(t *tx, args []string) (any, error)
}

// status is a simple string reply such as OK.
type status string

// replyError is an error of the client, in Redis' format: a code, such as WRONGTYPE, and a text.
// All other errors are the store's, and may make it reopen its files.
type replyError struct{ text string }

func (e *replyError) Error() string { return e.text }

var (
	errWrongType     = &replyError{"WRONGTYPE Operation against a key holding the wrong kind of value"}
	errSyntax        = &replyError{"ERR syntax error"}
	errNotInteger    = &replyError{"ERR value is not an integer or out of range"}
	errInvalidCursor = &replyError{"ERR invalid cursor: it was evicted: restart the scan"}
)

// commands are the commands that views need, and those for inspecting the data. EVAL is in
// script.go.
var commands = map[string]command{
	"PING": {least: 0, run: func(_ *tx, args []string) (any, error) {
		if len(args) > 0 {
			return args[0], nil
		}
		return status("PONG"), nil
	}},
	"SELECT":   {least: -1, run: selectDB},
	"INFO":     {run: func(*tx, []string) (any, error) { return info, nil }},
	"DBSIZE":   {run: dbSize},
	"HGET":     {least: -2, run: hget},
	"HMGET":    {least: 2, run: hmget},
	"HGETALL":  {least: -1, run: hgetall},
	"HLEN":     {least: -1, run: hlen},
	"HEXISTS":  {least: -2, run: hexists},
	"HSCAN":    {least: 2, run: hscan},
	"SMEMBERS": {least: -1, run: smembers},
	"SISMEMBER": {least: -2, run: func(t *tx, args []string) (any, error) {
		_, found, err := t.get(entry(t.sets, setKey(args[0])+args[1]))
		return toInt(found), err
	}},
	"EXISTS":   {least: 1, run: exists},
	"TYPE":     {least: -1, run: typeOf},
	"SCAN":     {least: 1, run: scan},
	"HSET":     {writes: true, least: 3, run: hset},
	"HDEL":     {writes: true, least: 2, run: hdel},
	"SADD":     {writes: true, least: 2, run: sadd},
	"DEL":      {writes: true, least: 1, run: del},
	"UNLINK":   {writes: true, least: 1, run: del},
	"FLUSHALL": {writes: true, run: flushAll},
	"FLUSHDB":  {writes: true, run: flushAll},
}

// info is the reply to INFO. Clients read from it whether keys can be evicted.
const info = "# Server\r\nredis_version:7.2.0\r\nredis_mode:standalone\r\nexecutable:millrace\r\n" +
	"# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n" +
	"# Persistence\r\nloading:0\r\n# Cluster\r\ncluster_enabled:0\r\n"

// call runs a command for a client or a script.
func (t *tx) call(name string, args []string) (any, error) {
	c, ok := commands[name]
	switch {
	case !ok:
		return nil, &replyError{fmt.Sprintf(
			"ERR unknown command '%.40s': the embedded server implements only what views need", name)}
	case len(args) < c.least || c.least < 0 && len(args) != -c.least:
		return nil, &replyError{fmt.Sprintf("ERR wrong number of arguments for '%s' command", strings.ToLower(name))}
	}
	return c.run(t, args)
}

// toInt returns a boolean as Redis does: 1 or 0.
func toInt(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// selectDB implements SELECT. There is one database, as in a cluster.
func selectDB(_ *tx, args []string) (any, error) {
	if args[0] != "0" {
		return nil, &replyError{"ERR DB index is out of range"}
	}
	return status("OK"), nil
}

// dbSize counts the sets by iterating over their members.
func dbSize(t *tx, _ []string) (any, error) {
	// Hashes are known in memory. Sets have to be counted.
	n := int64(0)
	t.eachHash(func(string) { n++ })
	err := t.setKeys("", func(string, string) bool {
		n++
		return true
	})
	return n, err
}

// isSet reports whether key is a set, which is so if it has a member.
func (t *tx) isSet(key string) (is bool, err error) {
	err = t.each(t.sets, setKey(key), "", func(string, string) bool {
		is = true
		return false
	})
	return is, err
}

// hget implements HGET. A missing field is nil.
func hget(t *tx, args []string) (any, error) {
	value, found, err := t.hget(args[0], args[1])
	if err != nil || !found {
		return nil, err
	}
	return value, nil
}

// hmget implements HMGET, with nil for each missing field.
func hmget(t *tx, args []string) (any, error) {
	values := make([]any, 0, len(args)-1) // in the order of the arguments
	for _, field := range args[1:] {
		value, err := hget(t, []string{args[0], field})
		if err != nil {
			return nil, err
		}
		values = append(values, value)
	}
	return values, nil
}

// hgetall implements HGETALL.
func hgetall(t *tx, args []string) (any, error) {
	all := []any{}
	h, ok := t.hash(args[0])
	if !ok {
		return all, nil
	}
	err := t.each(h.number, "", "", func(field, value string) bool {
		all = append(all, field, value)
		return true
	})
	return all, err
}

// hlen implements HLEN. The length is part of the hash's metadata, so this reads nothing.
func hlen(t *tx, args []string) (any, error) {
	h, _ := t.hash(args[0])
	return h.count, nil
}

// hexists implements HEXISTS.
func hexists(t *tx, args []string) (any, error) {
	_, found, err := t.hget(args[0], args[1])
	return toInt(found), err
}

// hset sets fields and returns the number of new ones.
func hset(t *tx, args []string) (any, error) {
	if len(args)%2 == 0 {
		return nil, &replyError{"ERR wrong number of arguments for 'hset' command"}
	}
	// A key has one type. Only a new hash needs the check, because an existing one cannot be a set.
	if _, ok := t.hash(args[0]); !ok {
		is, err := t.isSet(args[0])
		if err != nil {
			return nil, err
		}
		if is {
			return nil, errWrongType
		}
	}
	// The rest of the arguments are pairs of field and value.
	n := int64(0)
	for i := 1; i < len(args); i += 2 {
		fresh, err := t.hset(args[0], args[i], args[i+1])
		if err != nil {
			return nil, err
		}
		n += toInt(fresh)
	}
	return n, nil
}

// hdel implements HDEL and returns the number of fields that existed.
func hdel(t *tx, args []string) (any, error) {
	n := int64(0)
	for _, field := range args[1:] {
		gone, err := t.hdel(args[0], field)
		if err != nil {
			return nil, err
		}
		n += toInt(gone)
	}
	return n, nil
}

// sadd adds members and returns the number of new ones.
func sadd(t *tx, args []string) (any, error) {
	// A member is a LevelDB key with an empty value.
	if _, ok := t.hash(args[0]); ok {
		return nil, errWrongType
	}
	// A member that is given twice counts once, because pending writes are visible.
	n := int64(0)
	for _, member := range args[1:] {
		at := entry(t.sets, setKey(args[0])+member)
		_, found, err := t.get(at)
		if err != nil {
			return nil, err
		}
		if !found {
			t.writes[at] = write{}
			n++
		}
	}
	return n, nil
}

// smembers implements SMEMBERS.
func smembers(t *tx, args []string) (any, error) {
	// An empty list, not nil, which would be written as null.
	members := []any{}
	err := t.each(t.sets, setKey(args[0]), "", func(member, _ string) bool {
		members = append(members, member)
		return true
	})
	return members, err
}

// exists implements EXISTS and counts the keys that exist.
func exists(t *tx, args []string) (any, error) {
	// A key that is given twice counts twice, as in Redis.
	n := int64(0)
	for _, key := range args {
		kind, err := typeOf(t, []string{key})
		if err != nil {
			return nil, err
		}
		n += toInt(kind != status("none"))
	}
	return n, nil
}

// typeOf implements TYPE.
func typeOf(t *tx, args []string) (any, error) {
	if _, ok := t.hash(args[0]); ok {
		return status("hash"), nil
	}
	is, err := t.isSet(args[0])
	if is {
		return status("set"), err
	}
	return status("none"), err
}

// del implements DEL and UNLINK, which are the same here.
func del(t *tx, args []string) (any, error) {
	n := int64(0)
	for _, key := range args {
		gone, err := t.drop(key)
		if err != nil {
			return nil, err
		}
		n += toInt(gone)
	}
	return n, nil
}

// flushAll implements FLUSHALL and FLUSHDB.
func flushAll(t *tx, _ []string) (any, error) {
	t.flushAll()
	return status("OK"), nil
}

// scanOptions holds the arguments of SCAN and HSCAN.
type scanOptions struct {
	from  scanPosition
	match *regexp.Regexp // nil matches everything
	count int            // number of entries to visit
}

// Default and maximum of COUNT.
const (
	defaultScanCount = 10
	maxScanCount     = 10_000
)

// scanArgs parses "cursor [MATCH pattern] [COUNT count]". key is the hash that HSCAN iterates over,
// or empty for SCAN.
func (t *tx) scanArgs(key string, args []string) (s scanOptions, err error) {
	cursor, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		return s, errNotInteger
	}
	s.count = defaultScanCount
	for rest := args[1:]; len(rest) > 0; rest = rest[2:] {
		if len(rest) < 2 {
			return s, errSyntax
		}
		switch strings.ToUpper(rest[0]) {
		case "MATCH":
			if s.match, err = regexp.Compile(pattern(rest[1])); err != nil {
				return s, errSyntax
			}
		case "COUNT":
			if s.count, err = strconv.Atoi(rest[1]); err != nil || s.count < 1 {
				return s, errNotInteger
			}
			s.count = min(s.count, maxScanCount)
		default:
			return s, errSyntax
		}
	}
	// 0 starts a new scan. Other cursors must be of the same key.
	if cursor == 0 {
		return s, nil
	}
	from, ok := t.cursors.get(cursor)
	if !ok || from.key != key {
		return s, errInvalidCursor
	}
	s.from = from
	return s, nil
}

// pattern converts a Redis glob to a regular expression.
func pattern(glob string) string {
	var b strings.Builder
	// The pattern must match the whole key, and a key may contain line breaks.
	b.WriteString(`(?s)\A`)
	for i := 0; i < len(glob); i++ {
		switch c := glob[i]; c {
		case '*':
			b.WriteString(`.*`)
		case '?':
			b.WriteString(`.`)
		// A character class has the same syntax in both. Without its end, the bracket is literal.
		case '[':
			end := strings.IndexByte(glob[i:], ']')
			if end < 0 {
				b.WriteString(`\[`)
				continue
			}
			b.WriteString(glob[i : i+end+1])
			i += end
		case '\\':
			if i++; i < len(glob) {
				b.WriteString(regexp.QuoteMeta(glob[i : i+1]))
			}
		default:
			b.WriteString(regexp.QuoteMeta(glob[i : i+1]))
		}
	}
	return b.String() + `\z`
}

// matches reports whether a name matches.
func (s scanOptions) matches(name string) bool { return s.match == nil || s.match.MatchString(name) }

// hscan implements HSCAN. It returns fields from a cursor on. Like Redis, it counts fields before
// MATCH filters them.
func hscan(t *tx, args []string) (any, error) {
	s, err := t.scanArgs(args[0], args[1:])
	if err != nil {
		return nil, err
	}
	found, next, seen := []any{}, "0", 0
	h, ok := t.hash(args[0])
	if !ok {
		return []any{next, found}, nil
	}
	err = t.each(h.number, "", s.from.field, func(field, value string) bool {
		// The page is full. The next one starts with this field.
		if seen == s.count {
			next = t.cursors.add(scanPosition{args[0], field})
			return false
		}
		seen++
		if s.matches(field) {
			found = append(found, field, value)
		}
		return true
	})
	return []any{next, found}, err
}

// scan implements SCAN. It returns all hashes with the first page, and then the sets in order.
func scan(t *tx, args []string) (any, error) {
	s, err := t.scanArgs("", args)
	if err != nil {
		return nil, err
	}
	found, next, seen := []any{}, "0", 0
	if s.from.field == "" {
		t.eachHash(func(key string) { // hashes are few, so all are in the first page
			if s.matches(key) {
				found = append(found, key)
			}
		})
	}
	err = t.setKeys(s.from.field, func(field, key string) bool {
		if seen == s.count {
			next = t.cursors.add(scanPosition{"", field})
			return false
		}
		seen++
		if s.matches(key) {
			found = append(found, key)
		}
		return true
	})
	return []any{next, found}, err
}

// setKeys calls fn once for each set at or after from, with the field of its first member, until fn
// returns false.
func (t *tx) setKeys(from string, fn func(field, key string) bool) error {
	// Members of a set are adjacent, because their keys share a prefix. So one remembered key
	// suffices.
	before, begun := "", false
	return t.each(t.sets, "", from, func(field, _ string) bool {
		key, ok := readSetKey(field)
		if !ok || begun && key == before {
			return true
		}
		before, begun = key, true
		return fn(field, key)
	})
}

// reply writes a command's result.
func reply(p *server.Peer, answer any, err error) {
	if err != nil {
		var refused *replyError
		text := "ERR " + err.Error() // of the store
		if errors.As(err, &refused) {
			text = refused.text
		}
		p.WriteError(text)
		return
	}
	p.Block(func(w *server.Writer) { writeReply(w, answer) })
}

// writeReply writes a reply in Redis' protocol. See command for the possible types.
func writeReply(w *server.Writer, answer any) {
	switch a := answer.(type) {
	case nil: // a missing value
		w.WriteNull()
	case status:
		w.WriteInline(string(a))
	case string:
		w.WriteBulk(a)
	case int64:
		w.WriteInt(int(a))
	case []any:
		w.WriteLen(len(a))
		for _, each := range a {
			writeReply(w, each)
		}
	}
}
