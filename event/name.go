package event

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// CanonicalName is a name that people or other systems give to a thing, a SKU or a reference, as every store, document and
// token has it: composed as Unicode's NFC wants it, so that what looks the same is the same.
func CanonicalName(s string) string { return norm.NFC.String(s) }

// CheckName refuses a name that reads as another one: with a space at an end or two in a row, or with what nobody sees.
func CheckName(s string) error {
	if !utf8.ValidString(s) {
		return errors.New("it is not UTF-8")
	}
	for _, r := range s {
		if r != ' ' && invisible(r) {
			return fmt.Errorf("it holds U+%04X, which nobody sees", r)
		}
	}
	switch {
	case strings.HasPrefix(s, " "):
		return errors.New("it begins with a space")
	case strings.HasSuffix(s, " "):
		return errors.New("it ends with a space")
	case strings.Contains(s, "  "):
		return errors.New("it holds two spaces in a row")
	}
	return nil
}

// invisible reports whether a character shows nothing: controls, formats, spaces, private and unassigned ones, and those that
// Unicode wants ignored where they cannot be shown.
func invisible(r rune) bool {
	return !unicode.IsGraphic(r) || unicode.Is(unicode.Z, r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) ||
		r == '\u2800' // braille without a dot
}
