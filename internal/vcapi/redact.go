package vcapi

import (
	"bytes"
	"encoding/json"
	"html"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// secrets are texts that may not leave the client in an error: passwords, tokens, session ids. A server, or a proxy before it, may echo a request.
type secrets []string

// veil hides these secrets alone.
func (s secrets) veil() veil {
	more := newForms()
	for _, secret := range s {
		more.add(secret)
	}
	return veil{more: more}
}

// veil hides secrets in texts: those that are remembered, and those that only one call has. The zero veil hides nothing.
type veil struct {
	known *memory
	more  *forms
}

// spellings are a secret as it is and as JSON, HTML and URLs write it.
func spellings(secret string) []string {
	all := []string{secret, quoted(secret, true), quoted(secret, false), html.EscapeString(secret), url.QueryEscape(secret), url.PathEscape(secret)}
	slices.Sort(all)
	return slices.Compact(all)
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

// forms finds texts in another text, all of them in one pass, by how they begin. Nothing is built anew where one is added or removed: with thousands of VMs'
// passwords that costs more than all else of a call.
type forms struct {
	begin [lead + 1]map[string][]string // by length, up to lead: the texts that begin so, the longest first
	count map[string]int                // how often each was added
}

const lead = 8

func newForms() *forms { return &forms{count: make(map[string]int)} }

func (f *forms) add(secret string) {
	if secret == "" {
		return
	}
	for _, text := range spellings(secret) {
		if f.count[text]++; f.count[text] > 1 {
			continue
		}
		n := min(len(text), lead)
		if f.begin[n] == nil {
			f.begin[n] = make(map[string][]string)
		}
		list := f.begin[n][text[:n]]
		at, _ := slices.BinarySearchFunc(list, len(text), func(have string, length int) int { return length - len(have) })
		f.begin[n][text[:n]] = slices.Insert(list, at, text)
	}
}

func (f *forms) remove(secret string) {
	if secret == "" {
		return
	}
	for _, text := range spellings(secret) {
		if f.count[text]--; f.count[text] > 0 {
			continue
		}
		delete(f.count, text)
		n := min(len(text), lead)
		list := slices.DeleteFunc(f.begin[n][text[:n]], func(have string) bool { return have == text })
		if f.begin[n][text[:n]] = list; len(list) == 0 {
			delete(f.begin[n], text[:n])
		}
	}
}

// at gives the longest of the texts that t begins with, "" for none.
func (f *forms) at(t string) string {
	for n := min(lead, len(t)); n > 0; n-- {
		if len(f.begin[n]) == 0 {
			continue
		}
		for _, text := range f.begin[n][t[:n]] {
			if strings.HasPrefix(t, text) {
				return text
			}
		}
	}
	return ""
}

// text hides the secrets in t.
func (v veil) text(t string) string {
	if v.known != nil {
		v.known.mu.RLock()
		defer v.known.mu.RUnlock()
	}
	var out strings.Builder
	kept := 0 // of t
	for i := 0; i < len(t); {
		found := ""
		if v.known != nil && v.known.forms != nil {
			found = v.known.at(t[i:])
		}
		if v.more != nil {
			if more := v.more.at(t[i:]); len(more) > len(found) {
				found = more
			}
		}
		if found == "" {
			i++
			continue
		}
		out.WriteString(t[kept:i] + hidden)
		i += len(found)
		kept = i
	}
	if kept == 0 {
		return t
	}
	return out.String() + t[kept:]
}

// memory keeps the secrets that are in use.
type memory struct {
	mu sync.RWMutex
	*forms
	held map[string]int // by runs
	own  map[string]bool
	acts recent
	keys recent
}

// recent are the last of many.
type recent struct {
	list []string
	has  map[string]bool
}

// How many are remembered for a while: of acts, since a Task's own error, much later, may still tell them, and of sessions.
const (
	mostOfActs = 4096
	mostTokens = 1024
)

// add notes a secret; the caller holds mu.
func (m *memory) add(secret string) {
	if m.forms == nil {
		m.forms, m.held, m.own = newForms(), make(map[string]int), make(map[string]bool)
	}
	m.forms.add(secret)
}

// keep remembers for good what is the service's own.
func (m *memory) keep(values ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, value := range values {
		if !m.own[value] {
			m.add(value)
			m.own[value] = true
		}
	}
}

// hold remembers what a run uses until the function that it returns is called; several may hold the same.
func (m *memory) hold(values ...string) (forget func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, value := range values {
		m.add(value)
		m.held[value]++
	}
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, value := range values {
			m.remove(value)
			if m.held[value]--; m.held[value] == 0 {
				delete(m.held, value)
			}
		}
	})
}

// lately remembers what acts have sent, and token what a session travels with, until many others came after it.
func (m *memory) lately(values ...string) { m.push(&m.acts, mostOfActs, values) }
func (m *memory) token(value string)      { m.push(&m.keys, mostTokens, []string{value}) }

func (m *memory) push(r *recent, most int, values []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.has == nil {
		r.has = make(map[string]bool)
	}
	for _, value := range values {
		if value == "" || r.has[value] {
			continue
		}
		m.add(value)
		r.has[value] = true
		if r.list = append(r.list, value); len(r.list) > most {
			m.remove(r.list[0])
			delete(r.has, r.list[0])
			r.list = slices.Delete(r.list, 0, 1)
		}
	}
}

// veil hides what is remembered, and s.
func (m *memory) veil(s ...string) veil {
	m.mu.RLock()
	defer m.mu.RUnlock()
	v := veil{known: m}
	for _, secret := range s {
		if secret == "" || m.own[secret] || m.held[secret] > 0 || m.acts.has[secret] || m.keys.has[secret] {
			continue
		}
		if v.more == nil {
			v.more = newForms()
		}
		v.more.add(secret)
	}
	return v
}

// json hides the secrets in the strings of a JSON document. Names of types and codes stay: a password that happens to be called "status" must not
// turn an error into an unreadable one. What is no JSON is treated as text.
func (v veil) json(body []byte) []byte {
	if v == (veil{}) || len(body) == 0 {
		return body
	}
	if !json.Valid(body) {
		return []byte(v.text(string(body)))
	}
	var doc any
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if dec.Decode(&doc) != nil {
		return []byte(v.text(string(body)))
	}
	doc, changed := scrub(doc, v.text)
	if !changed && v.text(string(body)) == string(body) {
		return body // as it was sent, to the byte
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if enc.Encode(doc) != nil {
		return []byte(v.text(string(body)))
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
