package flags

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"slices"
)

// A key's bucket is a hash of the flag's name and the key, and each variant has ranges of buckets. They
// are stored with the flag, and a change of shares moves as few buckets as possible: from variants whose
// share is lowered to those whose share is raised. Ranges that are computed from the shares alone cannot
// do this for three variants or more: some key would leave a variant whose share has not changed.

// Buckets is the number of buckets. A bucket is a hundredth of a percent of the keys.
const Buckets = 10_000

// maxRanges bounds the ranges of a rollout. A change adds at most one range for each variant, and ranges
// that touch are joined.
const maxRanges = 500

// Bucket returns the bucket of a key: the first 8 bytes of SHA-256(name, a zero byte, key), read as a
// big-endian number, modulo Buckets. Flags have different hashes, so the same keys are not the first of
// every rollout.
func Bucket(flag, key string) int {
	sum := sha256.Sum256([]byte(flag + "\x00" + key))
	return int(binary.BigEndian.Uint64(sum[:8]) % Buckets)
}

// VariantOf returns the variant of a key. The flag must have a rollout.
func (f Flag) VariantOf(key string) Variant {
	at := Bucket(f.Name, key)
	for _, v := range f.Rollout {
		for _, r := range v.Ranges {
			if r.From <= at && at < r.To {
				return v
			}
		}
	}
	return f.Rollout[0] // unreachable: Validate has checked that the ranges have every bucket
}

// Share is a variant with the share that it is to have.
type Share struct {
	Variant string
	Value   json.RawMessage
	Share   int // in hundredths of a percent
}

// allocate returns variants with the given shares. Variants of the present rollout keep their buckets,
// except those that have more than their share.
func allocate(present []Variant, shares []Share) ([]Variant, error) {
	if len(shares) > maxVariants {
		return nil, invalid("there are %d variants; at most %d are allowed", len(shares), maxVariants)
	}
	total, names := 0, map[string]bool{}
	for _, s := range shares {
		if s.Share < 0 || s.Share > Buckets {
			return nil, invalid("share of variant %s: want a percentage from 0 to 100", s.Variant)
		}
		if names[s.Variant] {
			return nil, invalid("variant %s is there twice", s.Variant)
		}
		names[s.Variant] = true
		total += s.Share
	}
	if total != Buckets {
		return nil, invalid("the percentages sum to %g: want 100", float64(total)/(Buckets/100))
	}
	before := map[string][]Range{}
	var free []Range
	for _, v := range present {
		if names[v.Name] {
			before[v.Name] = v.Ranges
		} else {
			free = append(free, v.Ranges...)
		}
	}
	if len(present) == 0 {
		free = []Range{{0, Buckets}}
	}
	out := make([]Variant, len(shares))
	for i, s := range shares {
		var over []Range
		out[i] = Variant{Name: s.Variant, Value: compact(s.Value)}
		out[i].Ranges, over = split(before[s.Variant], s.Share)
		free = append(free, over...)
	}
	free = join(free)
	for i, s := range shares {
		var more []Range
		more, free = split(free, s.Share-out[i].Share())
		out[i].Ranges = join(append(slices.Clone(out[i].Ranges), more...))
	}
	return out, nil
}

// split returns the first n buckets of ranges, or all if there are fewer, and the rest.
func split(ranges []Range, n int) (first, rest []Range) {
	for _, r := range ranges {
		at := min(r.From+n, r.To)
		if r.From < at {
			first = append(first, Range{r.From, at})
		}
		if at < r.To {
			rest = append(rest, Range{at, r.To})
		}
		n -= at - r.From
	}
	return first, rest
}

// join sorts ranges and joins those that touch.
func join(ranges []Range) []Range {
	slices.SortFunc(ranges, func(a, b Range) int { return cmp.Compare(a.From, b.From) })
	var out []Range
	for _, r := range ranges {
		if n := len(out); n > 0 && out[n-1].To == r.From {
			out[n-1].To = r.To
		} else {
			out = append(out, r)
		}
	}
	return out
}

// checkRollout checks the variants, and that each bucket is in exactly one.
func (f Flag) checkRollout() error {
	if len(f.Rollout) == 0 || len(f.Rollout) > maxVariants {
		return invalid("%s has %d variants: want 1 to %d", f.Name, len(f.Rollout), maxVariants)
	}
	var all []Range
	names := map[string]bool{}
	for _, v := range f.Rollout {
		if err := checkName("variant", v.Name); err != nil {
			return err
		}
		if names[v.Name] {
			return invalid("variant %s is there twice", v.Name)
		}
		names[v.Name] = true
		if err := f.Type.check(v.Value); err != nil {
			return invalid("variant %s: %w", v.Name, err)
		}
		all = append(all, v.Ranges...)
	}
	if len(all) > maxRanges {
		return invalid("%s has been rolled out in too many steps: its buckets are in %d ranges, and at most %d are allowed; "+
			"set it to one value, and then to variants again", f.Name, len(all), maxRanges)
	}
	for _, r := range all {
		if r.From >= r.To {
			return invalid("%s has an empty range of buckets, from %d to %d", f.Name, r.From, r.To)
		}
	}
	if whole := join(all); len(whole) != 1 || whole[0] != (Range{0, Buckets}) {
		return invalid("%s: each of the %d buckets must be in exactly one range", f.Name, Buckets)
	}
	return nil
}
