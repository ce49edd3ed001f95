package event

import (
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/type/money"
)

// iso4217 lists the currencies of ISO 4217 since 2020, by number of decimals. Codes without a
// number of decimals (metals, XDR, XTS, XXX) are not used in prices.
var iso4217 = map[int]string{
	0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
	2: "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD " +
		"CDF CHE CHF CHW CNY COP COU CRC CUC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP " +
		"GMD GTQ GYD HKD HNL HRK HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD " +
		"MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR " +
		"PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SLL SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP " +
		"TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG ZWL",
	3: "BHD IQD JOD KWD LYD OMR TND",
	4: "CLF UYW",
}

// decimalsOf maps each currency of ISO 4217 to its number of decimals.
var decimalsOf = func() map[string]int {
	known := map[string]int{}
	for decimals, codes := range iso4217 {
		for code := range strings.FieldsSeq(codes) {
			known[code] = decimals
		}
	}
	return known
}()

// Currencies overrides ISO 4217: it maps a currency to the number of decimals that an amount may
// have. ISO 4217 applies to currencies that are not in the map.
type Currencies map[string]int

// Decimals returns how many decimals an amount in a currency may have. known is false if the
// currency does not exist.
func (c Currencies) Decimals(code string) (decimals int, known bool) {
	if decimals, known = c[code]; known {
		return decimals, true
	}
	decimals, known = decimalsOf[code]
	return decimals, known
}

// Fits reports whether a well-formed amount has no more decimals than its currency, which must be
// known.
func (c Currencies) Fits(m *money.Money) bool {
	decimals, known := c.Decimals(m.GetCurrencyCode())
	// unit is the smallest amount of the currency, in nanos.
	unit := int32(1)
	for range nanosDigits - min(decimals, nanosDigits) {
		unit *= 10
	}
	return known && m.GetNanos()%unit == 0
}

// Check returns an error for settings that no amount can meet.
func (c Currencies) Check() error {
	for code, decimals := range c {
		if !isCurrency(code) {
			return fmt.Errorf("currency %q is not three capital letters", code)
		}
		if decimals < 0 || decimals > nanosDigits {
			return fmt.Errorf("%d decimals of %s are not between 0 and %d", decimals, code, nanosDigits)
		}
	}
	return nil
}
