package event

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// CanonicalName returns the form of a name (a SKU, a reference) that every store, document and token
// uses: Unicode's NFC, so that names that look the same are equal.
func CanonicalName(s string) string { return norm.NFC.String(s) }

// CheckName rejects a name that looks like another one: with spaces at an end, two spaces in a row,
// or invisible characters.
func CheckName(s string) error {
	if !utf8.ValidString(s) {
		return errors.New("it is not UTF-8")
	}
	for _, r := range s {
		if r != ' ' && invisible(r) {
			return fmt.Errorf("it contains the invisible character U+%04X", r)
		}
	}
	switch {
	case strings.HasPrefix(s, " "):
		return errors.New("it begins with a space")
	case strings.HasSuffix(s, " "):
		return errors.New("it ends with a space")
	case strings.Contains(s, "  "):
		return errors.New("it contains two spaces in a row")
	}
	return nil
}

// invisible reports whether a character has no glyph: control, format, space, private and
// unassigned characters, and those that Unicode ignores by default.
func invisible(r rune) bool {
	return !unicode.IsGraphic(r) || unicode.Is(unicode.Z, r) ||
		unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) ||
		r == '\u2800' // braille pattern without dots
}
