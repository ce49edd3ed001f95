package redis

import (
	"context"
	"fmt"
	"time"
)

// leaseScript takes or renews a lease if it is free, has expired, or is the caller's.
//
//	ARGV  owner, now and end in milliseconds
const leaseScript = `
local owner = redis.call('HGET', KEYS[1], 'owner')
local until_ = tonumber(redis.call('HGET', KEYS[1], 'until') or '0')
if owner and owner ~= ARGV[1] and until_ > tonumber(ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'until', ARGV[3])
return 1`

// Lease takes or renews the lease of a view, and reports whether the owner has it. It ends by itself
// after the given time. Times are those of the callers' clocks, and Redis can lose it. So it only
// keeps processes from doing the same work; something else must make that harmless.
func (d *Documents) Lease(ctx context.Context, owner string, now time.Time, lasts time.Duration) (bool, error) {
	got, err := d.rdb.Eval(ctx, leaseScript, []string{d.key("lease", 0)}, owner,
		now.UnixMilli(), now.Add(lasts).UnixMilli()).Int()
	if err != nil {
		return false, fmt.Errorf("redis: lease of %s: %w", d.name, err)
	}
	return got == 1, nil
}
