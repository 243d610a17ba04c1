package vcapi

import (
	"bytes"
	"encoding/json"
	"html"
	"net/url"
	"slices"
	"strings"
)

// secrets are texts that may not leave the client in an error: passwords, tokens, session ids. A server, or a proxy before it, may echo a request.
type secrets []string

// replacer finds each secret as it is and as JSON, HTML and URLs write it, the longest first.
func (s secrets) replacer() *strings.Replacer {
	var forms []string
	for _, secret := range s {
		if secret == "" {
			continue
		}
		escaped, plain := quoted(secret, true), quoted(secret, false)
		forms = append(forms, secret, escaped, plain, html.EscapeString(secret), url.QueryEscape(secret), url.PathEscape(secret))
	}
	slices.SortFunc(forms, func(a, b string) int { return len(b) - len(a) })
	pairs := make([]string, 0, 2*len(forms))
	for _, form := range slices.Compact(forms) {
		pairs = append(pairs, form, hidden)
	}
	return strings.NewReplacer(pairs...)
}

// quoted is the inside of s as a JSON string.
func quoted(s string, escapeHTML bool) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(escapeHTML)
	if enc.Encode(s) != nil {
		return s
	}
	return strings.Trim(strings.TrimSpace(b.String()), `"`)
}

// text hides the secrets in s.
func (s secrets) text(t string) string {
	if len(s) == 0 || t == "" {
		return t
	}
	return s.replacer().Replace(t)
}

// json hides the secrets in the strings of a JSON document. Names of types and codes stay: a password that happens to be called "status" must not
// turn an error into an unreadable one. What is no JSON is treated as text.
func (s secrets) json(body []byte) []byte {
	if len(s) == 0 || len(body) == 0 {
		return body
	}
	if !json.Valid(body) {
		return []byte(s.text(string(body)))
	}
	var doc any
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if dec.Decode(&doc) != nil {
		return []byte(s.text(string(body)))
	}
	r := s.replacer()
	doc, changed := scrub(doc, r.Replace)
	if !changed && r.Replace(string(body)) == string(body) {
		return body // as it was sent, to the byte
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if enc.Encode(doc) != nil {
		return []byte(r.Replace(string(body)))
	}
	return bytes.TrimSpace(b.Bytes())
}

func scrub(v any, hide func(string) string) (any, bool) {
	changed := false
	switch v := v.(type) {
	case string:
		clean := hide(v)
		return clean, clean != v
	case []any:
		for i := range v {
			var c bool
			if v[i], c = scrub(v[i], hide); c {
				changed = true
			}
		}
		return v, changed
	case map[string]any:
		for _, key := range sortedKeys(v) {
			if key == "_typeName" || key == "error_type" {
				continue
			}
			clean, c := scrub(v[key], hide)
			if name := hide(key); name != key { // a secret as a key: hidden with its value's place kept
				delete(v, key)
				v[name], changed = clean, true
				continue
			}
			if v[key] = clean; c {
				changed = true
			}
		}
		return v, changed
	}
	return v, false
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
