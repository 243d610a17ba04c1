package events

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"testing"
)

// byTokens reads JSON token by token: slow, and plain to see. It fails as strictJSON does.
func byTokens(b []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	v, err := orderedValue(d)
	if err != nil {
		return nil, err
	}
	return withMaps(v)
}

// withMaps is v with maps in the place of its objects.
func withMaps(v any) (any, error) {
	var err error
	switch v := v.(type) {
	case []any:
		for i := range v {
			if v[i], err = withMaps(v[i]); err != nil {
				return nil, within(err, fmt.Sprintf("[%d]", i))
			}
		}
	case object:
		members := make(map[string]any, len(v))
		for _, m := range v {
			if _, twice := members[m.name]; twice {
				return nil, &twiceError{Cut(m.name, 40)}
			}
			if members[m.name], err = withMaps(m.value); err != nil {
				return nil, within(err, Cut(m.name, 40))
			}
		}
		return members, nil
	}
	return v, nil
}

// strictJSON says of every valid JSON text what a reader of its tokens says.
func FuzzStrictJSON(f *testing.F) {
	for _, text := range []string{
		`null`, ` true `, `-1.5e3`, `"a\"b"`, `[]`, ` [ ] `, `{}`, "{\n}", `[1, [2,{"a":[]}] , "]"]`,
		`{"a":1,"b":{"a":2,"c":[{"a":1},{"a":1,"a":2}]}}`, `{"a" : 1 , "a" : 2}`, `{"a":1,"\u0061":2}`,
		`{"ä":1,"\u00e4":2}`, `{"\ud800":1,"\ud801":2}`, "{\"\xff\":1,\"\xfe\":2}", `{"":{"":{"":1,"":2}}}`,
		`{"a\\":1,"a\\":2}`, `[[{"x":0},{"x":[{"y":1,"z":2,"y":3}]}]]`, `{"a":12345678901234567890}`,
		`{"{":"}","[":"]"}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if !json.Valid(text) {
			return
		}
		got, err := strictJSON(text)
		want, wantErr := byTokens(text)
		if fmt.Sprint(err) != fmt.Sprint(wantErr) || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %#v, %v; want %#v, %v", text, got, err, want, wantErr)
		}
	})
}
