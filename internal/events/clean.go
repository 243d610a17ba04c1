package events

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean makes other people's words fit to be shown: what a vCenter, a guest or a publisher wrote is read by terminals,
// chat messages and pages that take control characters for commands. Controls (C0, C1) and line ends become blanks,
// what changes the direction of writing goes, and bytes that are no UTF-8 become U+FFFD. Every text of an event that is
// not guestflow's own passes here, and so does what the command writes for people.
func Clean(s string) string { return cleaned(s, false) }

// CleanLines is Clean for a text of several lines.
func CleanLines(s string) string { return cleaned(s, true) }

func cleaned(s string, lines bool) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, unfit) {
		return s
	}
	return strings.Map(func(r rune) rune {
		switch {
		case lines && r == '\n':
			return r
		case directs(r):
			return -1
		case unfit(r):
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, string(utf8.RuneError)))
}

// unfit reports whether r is more than a character that is read: line and paragraph separators are controls by another
// name.
func unfit(r rune) bool { return unicode.IsControl(r) || directs(r) || r == '\u2028' || r == '\u2029' }

// directs reports whether r changes the direction of writing (Unicode: Bidi_Control).
func directs(r rune) bool { return unicode.Is(unicode.Bidi_Control, r) }

// Other people's JSON keeps its shape when it is cleaned and cut: a value is nil, bool, json.Number, string, []any or
// an object, whose members stay in their order.
type (
	object []member
	member struct {
		name  string
		value any
	}
)

// readJSON reads one value; what is no JSON is read as a text.
func readJSON(raw json.RawMessage) any {
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil
	}
	if !json.Valid(raw) { // also bounds how deep it is nested
		return string(raw)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	v, err := orderedValue(d)
	if err != nil {
		return string(raw)
	}
	return v
}

func orderedValue(d *json.Decoder) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := orderedValue(d)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err = d.Token()
		return list, err
	case json.Delim('{'):
		o := object{}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return nil, err
			}
			v, err := orderedValue(d)
			if err != nil {
				return nil, err
			}
			text, _ := name.(string) // the decoder gives nothing else there
			o = append(o, member{text, v})
		}
		_, err = d.Token()
		return o, err
	}
	return token, nil
}

// MarshalJSON writes the members in their order.
func (o object) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			b = append(b, ',')
		}
		name, err := marshal(m.name)
		if err != nil {
			return nil, err
		}
		value, err := marshal(m.value)
		if err != nil {
			return nil, err
		}
		b = append(append(append(b, name...), ':'), value...)
	}
	return append(b, '}'), nil
}

// mapped is v with its texts, names of members among them, changed by text, and without its nulls: null is read as
// absent, and never sent. Of members that have one name then, the first stays: an event that names one twice could not
// be read.
func mapped(v any, text func(string) string) any {
	switch v := v.(type) {
	case string:
		return text(v)
	case []any:
		list := []any{}
		for _, item := range v {
			if item != nil {
				list = append(list, mapped(item, text))
			}
		}
		return list
	case object:
		o := object{}
		for _, m := range v {
			if m.value != nil {
				o = o.with(text(m.name), mapped(m.value, text))
			}
		}
		return o
	}
	return v
}

func (o object) with(name string, value any) object {
	if slices.ContainsFunc(o, func(m member) bool { return m.name == name }) {
		return o
	}
	return append(o, member{name, value})
}

// WithoutNulls is a request's data as events show it.
func WithoutNulls(raw json.RawMessage) json.RawMessage {
	if !bytes.Contains(raw, []byte("null")) {
		return raw
	}
	b, err := marshal(mapped(readJSON(raw), func(s string) string { return s }))
	if err != nil { // of what was read as JSON: never
		return raw
	}
	return b
}

// shortJSON is other people's JSON cleaned and cut to most bytes: long texts, lists and objects lose their ends, then
// more of them, and what is still too long is told as the beginning of its text. wasCut reports whether it lost
// anything. It is nil where there is nothing to tell.
func shortJSON(raw json.RawMessage, most int) (short json.RawMessage, wasCut bool) {
	v := mapped(readJSON(raw), Clean)
	if v == nil {
		return nil, false
	}
	b, err := marshal(v)
	if err == nil && len(b) <= most && depth(v) <= maxDepth {
		return b, false
	}
	for _, l := range []struct{ text, items int }{{most - most/8, 64}, {most / 2, 64}, {most / 8, 32}, {most / 32, 16},
		{16, 4}} {
		if c, err := marshal(trimmed(v, max(l.text, 16), l.items, maxDepth)); err == nil && len(c) <= most {
			return c, true
		}
	}
	for n := most - len(`""`); n > len("…"); n /= 2 { // what has to be escaped takes room
		if c, err := marshal(Cut(string(b), n)); err == nil && len(c) <= most {
			return c, true
		}
	}
	return nil, true
}

// maxDepth is how deep JSON may be nested: a reader of events has a limit too, and theirs is one of ours and more.
const maxDepth = 64

func depth(v any) int {
	inner := 0
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			inner = max(inner, depth(item))
		}
		return inner + 1
	case map[string]any:
		for _, item := range v {
			inner = max(inner, depth(item))
		}
		return inner + 1
	case object:
		for _, m := range v {
			inner = max(inner, depth(m.value))
		}
		return inner + 1
	}
	return 0
}

// trimmed is v with no text longer than text bytes, and no list or object of more than so many items or deeper than so
// many levels.
func trimmed(v any, text, items, levels int) any {
	switch v := v.(type) {
	case string:
		return Cut(v, text)
	case []any:
		if levels == 0 {
			return "…"
		}
		list := []any{}
		for _, item := range v[:min(len(v), items)] {
			list = append(list, trimmed(item, text, items, levels-1))
		}
		return list
	case object:
		if levels == 0 {
			return "…"
		}
		o := object{}
		for _, m := range v[:min(len(v), items)] {
			o = o.with(Cut(m.name, text), trimmed(m.value, text, items, levels-1))
		}
		return o
	}
	return v
}
