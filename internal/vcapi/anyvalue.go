package vcapi

import (
	"bytes"
	"encoding/json"
	"time"
)

// The values of properties are of any type, so they may come bare or as {"_typeName":"int","_value":5}. The any…
// functions accept both, and return the zero value for what is neither: one unexpected property must not hide all the
// others.

func anyValue(raw json.RawMessage) json.RawMessage {
	var boxed struct {
		Value json.RawMessage `json:"_value"`
	}
	if bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) && json.Unmarshal(raw, &boxed) == nil && boxed.Value != nil {
		return boxed.Value
	}
	return raw
}

func anyString(raw json.RawMessage) string { return textOf(anyValue(raw)) }

func anyBool(raw json.RawMessage) *bool {
	var b *bool
	if json.Unmarshal(anyValue(raw), &b) != nil {
		return nil
	}
	return b
}

// anyInt32 is a number that fits; 0 where there is none.
func anyInt32(raw json.RawMessage) (n int32) {
	if json.Unmarshal(anyValue(raw), &n) != nil {
		return 0
	}
	return n
}

// anyTime reads RFC 3339; a time without a zone is taken as UTC.
func anyTime(raw json.RawMessage) *time.Time {
	text := anyString(raw)
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999"} {
		if t, err := time.Parse(layout, text); err == nil {
			t = t.UTC()
			return &t
		}
	}
	return nil
}

// wireTime is an optional time inside a struct, which anyTime reads.
type wireTime struct{ at *time.Time }

func (t *wireTime) UnmarshalJSON(raw []byte) error {
	t.at = anyTime(raw)
	return nil
}

// forEachElement calls fn for each element of an array, bare or boxed (ArrayOfX).
func forEachElement(raw json.RawMessage, fn func(json.RawMessage)) {
	var elements []json.RawMessage
	if json.Unmarshal(anyValue(raw), &elements) != nil {
		return
	}
	for _, element := range elements {
		fn(element)
	}
}

// decodeElements decodes the elements of an array, bare or boxed (ArrayOfX): all at once, or, where one of them is
// malformed, each by itself, and of that one what can be decoded. It returns nil where raw is no array.
func decodeElements[T any](raw json.RawMessage) []T {
	var boxed struct {
		Value []T `json:"_value"`
	}
	if bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) && json.Unmarshal(raw, &boxed) == nil && boxed.Value != nil {
		return boxed.Value
	}

	var elements []json.RawMessage
	if json.Unmarshal(anyValue(raw), &elements) != nil || elements == nil {
		return nil
	}
	all := make([]T, len(elements))
	for i, element := range elements {
		_ = json.Unmarshal(element, &all[i])
	}
	return all
}

// dropNull drops a null.
func dropNull(raw json.RawMessage) json.RawMessage {
	if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
		return nil
	}
	return raw
}

func textOf(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}
