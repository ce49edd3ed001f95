// Package exact is the arithmetic of features: aggregates whose result does not depend on the order
// in which values were added, on how they were split into partial states, or on who added them.
//
// State is what one aggregate keeps of the values in a window. It contains integers, picks, counts
// by bucket and registers, and no floating-point number. States merge, and Result rounds once, at
// the very end. So an online server, a database that merges the states of tiles, and a scan of all
// values return the same bits.
//
// Int is a signed integer of 256 bits. A value has at most 94 bits (an amount of money in
// billionths), so that neither sums nor sums of squares can overflow.
package exact

import (
	"fmt"
	"math/big"
	"math/bits"
)

// Int is a signed integer of 256 bits in two's complement, least significant word first. The zero
// Int is 0.
type Int [4]uint64

// FromInt64 returns v as an Int.
func FromInt64(v int64) Int {
	sign := uint64(v >> 63)
	return Int{uint64(v), sign, sign, sign}
}

// FromMoney returns units and billionths of a unit, which have the same sign, as billionths.
func FromMoney(units int64, nanos int32) Int {
	return FromInt64(units).Mul(FromInt64(1_000_000_000)).Add(FromInt64(int64(nanos)))
}

// FromBig returns b as an Int, or an error if it has more than 255 bits.
func FromBig(b *big.Int) (Int, error) {
	if b.BitLen() > 255 {
		return Int{}, fmt.Errorf("integer of %d bits, want at most 255", b.BitLen())
	}
	var words [32]byte
	new(big.Int).Abs(b).FillBytes(words[:])
	var n Int
	for i := range n {
		for j := range 8 {
			n[i] |= uint64(words[31-8*i-j]) << (8 * j)
		}
	}
	if b.Sign() < 0 {
		return n.Neg(), nil
	}
	return n, nil
}

// Add returns n + m, modulo 2^256.
func (n Int) Add(m Int) Int {
	var carry uint64
	n[0], carry = bits.Add64(n[0], m[0], 0)
	n[1], carry = bits.Add64(n[1], m[1], carry)
	n[2], carry = bits.Add64(n[2], m[2], carry)
	n[3], _ = bits.Add64(n[3], m[3], carry)
	return n
}

// Neg returns -n.
func (n Int) Neg() Int {
	return Int{^n[0], ^n[1], ^n[2], ^n[3]}.Add(Int{1})
}

// Sub returns n - m, modulo 2^256.
func (n Int) Sub(m Int) Int { return n.Add(m.Neg()) }

// Mul returns n × m, modulo 2^256.
func (n Int) Mul(m Int) Int {
	// Two's complement multiplies like unsigned integers, modulo 2^256.
	var p Int
	for i, x := range n {
		if x == 0 {
			continue
		}
		var carry uint64
		for j := 0; i+j < 4; j++ {
			hi, lo := bits.Mul64(x, m[j])
			var c uint64
			lo, c = bits.Add64(lo, carry, 0)
			hi += c
			p[i+j], c = bits.Add64(p[i+j], lo, 0)
			carry = hi + c
		}
	}
	return p
}

// Sign returns -1, 0 or +1.
func (n Int) Sign() int {
	switch {
	case n == Int{}:
		return 0
	case int64(n[3]) < 0:
		return -1
	}
	return 1
}

// Compare returns -1, 0 or +1 if n is less than, equal to or greater than m.
func (n Int) Compare(m Int) int {
	if n[3] != m[3] {
		if int64(n[3]) < int64(m[3]) {
			return -1
		}
		return 1
	}
	for i := 2; i >= 0; i-- {
		if n[i] != m[i] {
			if n[i] < m[i] {
				return -1
			}
			return 1
		}
	}
	return 0
}

// Int64 returns n as an int64. ok is false if it does not fit.
func (n Int) Int64() (v int64, ok bool) {
	v = int64(n[0])
	return v, FromInt64(v) == n
}

// Big returns n as a big integer.
func (n Int) Big() *big.Int {
	if v, ok := n.Int64(); ok {
		return big.NewInt(v)
	}
	negative := n.Sign() < 0
	if negative {
		n = n.Neg()
	}
	var words [32]byte
	for i, w := range n {
		for j := range 8 {
			words[31-8*i-j] = byte(w >> (8 * j))
		}
	}
	b := new(big.Int).SetBytes(words[:])
	if negative {
		b.Neg(b)
	}
	return b
}

// String returns n in decimal.
func (n Int) String() string {
	if v, ok := n.Int64(); ok {
		return fmt.Sprint(v)
	}
	return n.Big().String()
}

// Quotient returns the float64 nearest to n / d, ties to even. d must not be 0.
func Quotient(n, d Int) float64 {
	// Both are exact as float64, and one division rounds once.
	if a, ok := n.Int64(); ok && -1<<53 <= a && a <= 1<<53 {
		if b, ok := d.Int64(); ok && -1<<53 <= b && b <= 1<<53 {
			return float64(a)/float64(b) + 0 // +0 turns -0 into 0
		}
	}
	f, _ := new(big.Rat).SetFrac(n.Big(), d.Big()).Float64()
	return f
}

// powers are those of ten that have 64 bits.
var powers = func() (all [19]Int) {
	for e, p := 0, int64(1); e < len(all); e, p = e+1, p*10 {
		all[e] = FromInt64(p)
	}
	return all
}()

// Pow10 returns 10^e for 0 <= e <= 18.
func Pow10(e int) Int { return powers[e] }

// root returns the square root of n / d, rounded once from 320 bits, for n >= 0 and d > 0.
func root(n, d *big.Int) float64 {
	if n.Sign() == 0 {
		return 0
	}
	q := new(big.Float).SetPrec(320).Quo(new(big.Float).SetPrec(320).SetInt(n), new(big.Float).SetPrec(320).SetInt(d))
	f, _ := q.Sqrt(q).Float64()
	return f
}
