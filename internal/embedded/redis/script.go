package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	lua "github.com/yuin/gopher-lua"
	"github.com/yuin/gopher-lua/parse"
)

// scriptTimeout bounds the run time of a script. Scripts run one at a time, and a running script
// blocks all other commands.
const scriptTimeout = 5 * time.Second

// maxScripts bounds the cache of compiled scripts.
const maxScripts = 64

// eval runs "script numkeys key… arg…" as one atomic transaction.
func (s *store) eval(args []string) (answer any, err error) {
	if len(args) < 2 {
		return nil, &replyError{"ERR wrong number of arguments for 'eval' command"}
	}
	// numkeys separates the keys from the arguments.
	keys, err := strconv.Atoi(args[1])
	if err != nil || keys < 0 || keys > len(args)-2 {
		return nil, &replyError{"ERR Number of keys can't be greater than number of args"}
	}
	compiled, err := s.compile(args[0])
	if err != nil {
		return nil, &replyError{fmt.Sprintf("ERR Error compiling script: %v", err)}
	}
	err = s.update(func(t *tx) error {
		answer, err = t.run(compiled, args[2:2+keys], args[2+keys:])
		return err
	})
	return answer, err
}

// compile returns a compiled script, from the cache if possible.
func (s *store) compile(script string) (*lua.FunctionProto, error) {
	// Views use few scripts, so nearly every call finds its script compiled.
	if known, ok := s.scripts.Get(script); ok {
		return known, nil
	}
	parsed, err := parse.Parse(strings.NewReader(script), "script")
	if err != nil {
		return nil, err
	}
	compiled, err := lua.Compile(parsed, "script")
	if err == nil {
		s.scripts.Add(script, compiled)
	}
	return compiled, err
}

// run runs a script. It returns errors of the store unchanged, and any other error as a replyError.
func (t *tx) run(script *lua.FunctionProto, keys, args []string) (any, error) {
	l := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), scriptTimeout)
	defer cancel()
	l.SetContext(ctx)
	// Open only the libraries that scripts need. Functions of the base library that read files are
	// removed below.
	for name, open := range map[string]lua.LGFunction{
		lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
		lua.StringLibName: lua.OpenString, lua.MathLibName: lua.OpenMath,
	} {
		l.Push(l.NewFunction(open))
		l.Push(lua.LString(name))
		l.Call(1, 0)
	}
	for _, name := range []string{"dofile", "loadfile", "require", "module"} {
		l.SetGlobal(name, lua.LNil)
	}
	list := func(values []string) *lua.LTable {
		table := l.CreateTable(len(values), 0)
		for i, v := range values {
			table.RawSetInt(i+1, lua.LString(v))
		}
		return table
	}
	// The names that scripts expect in Redis.
	l.SetGlobal("KEYS", list(keys))
	l.SetGlobal("ARGV", list(args))
	// An error of the store must not become an error of the script: the store reacts to it, for
	// example to damage.
	var failed error // the store's
	redis := l.NewTable()
	redis.RawSetString("call", l.NewFunction(func(l *lua.LState) int {
		// Redis converts numbers to strings. Other types are an error.
		words := make([]string, l.GetTop())
		for i := range words {
			switch v := l.Get(i + 1).(type) {
			case lua.LString:
				words[i] = string(v)
			case lua.LNumber:
				words[i] = v.String()
			default:
				l.RaiseError("arguments of redis.call must be strings or numbers")
			}
		}
		if len(words) == 0 {
			l.RaiseError("redis.call needs a command")
		}
		answer, err := t.call(strings.ToUpper(words[0]), words[1:])
		if err != nil {
			if !errors.As(err, new(*replyError)) {
				failed = err
			}
			l.RaiseError("%s", err.Error())
		}
		l.Push(toLua(l, answer))
		return 1
	}))
	l.SetGlobal("redis", redis)
	l.Push(l.NewFunctionFromProto(script))
	if err := l.PCall(0, 1, nil); err != nil {
		// The script has failed, so the transaction is discarded.
		if failed != nil {
			return nil, failed
		}
		// An error that was raised has its text in Object. Its Error method adds a stack trace.
		text := err.Error()
		if raised := (*lua.ApiError)(nil); errors.As(err, &raised) {
			text = raised.Object.String()
		}
		return nil, &replyError{"ERR " + text}
	}
	return fromLua(l.Get(-1)), nil
}

// toLua converts a reply to a Lua value, as Redis does: nil becomes false, and a status becomes a
// table with the field ok.
func toLua(l *lua.LState, answer any) lua.LValue {
	switch a := answer.(type) {
	case string:
		return lua.LString(a)
	case int64:
		return lua.LNumber(a)
	case status:
		ok := l.NewTable()
		ok.RawSetString("ok", lua.LString(a))
		return ok
	case []any:
		list := l.CreateTable(len(a), 0)
		for i, each := range a {
			list.RawSetInt(i+1, toLua(l, each))
		}
		return list
	}
	return lua.LFalse
}

// fromLua converts the result of a script to a reply, as Redis does: numbers are truncated, and a
// table ends at its first nil.
func fromLua(v lua.LValue) any {
	switch v := v.(type) {
	case lua.LString:
		return string(v)
	case lua.LNumber:
		return int64(v)
	case lua.LBool: // false becomes nil
		if v {
			return int64(1)
		}
	case *lua.LTable:
		if ok, is := v.RawGetString("ok").(lua.LString); is {
			return status(ok)
		}
		list := []any{}
		for i := 1; ; i++ {
			each := v.RawGetInt(i)
			if each == lua.LNil {
				return list
			}
			list = append(list, fromLua(each))
		}
	}
	return nil
}
