package vcapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"html"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// secrets are texts that must not leave the client in an error: passwords, tokens, session IDs. A server, or a proxy
// before it, may echo a request.
type secrets []string

// redactor hides these secrets alone.
func (s secrets) redactor() redactor {
	more := newTextMatcher()
	for _, secret := range s {
		more.add(secret)
	}
	return redactor{extra: more}
}

// redactor hides secrets in texts: those in a store, and extra ones of one call. The zero redactor hides nothing.
type redactor struct {
	store *secretStore
	extra *textMatcher
}

// encodings are a secret as it is, and as JSON, HTML and URLs write it.
func encodings(secret string) []string {
	all := []string{
		secret,
		jsonQuoted(secret, true),
		jsonQuoted(secret, false),
		html.EscapeString(secret),
		url.QueryEscape(secret),
		url.PathEscape(secret),
	}

	slices.Sort(all)
	return slices.Compact(all)
}

// jsonQuoted is s as inside a JSON string.
func jsonQuoted(s string, escapeHTML bool) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(escapeHTML)
	if enc.Encode(s) != nil {
		return s
	}
	return strings.Trim(strings.TrimSpace(b.String()), `"`)
}

// textMatcher finds any of its texts in another text in one pass, by their prefixes. Adding or removing a text rebuilds
// nothing: with the passwords of thousands of VMs, that would cost more than the rest of a call.
type textMatcher struct {
	byPrefix [prefixLen + 1]map[string][]string // by prefix length: the texts with a prefix, longest first
	count    map[string]int                     // how often each was added
}

const prefixLen = 8

func newTextMatcher() *textMatcher { return &textMatcher{count: make(map[string]int)} }

func (f *textMatcher) add(secret string) {
	if secret == "" {
		return
	}

	for _, text := range encodings(secret) {
		if f.count[text]++; f.count[text] > 1 {
			continue
		}
		n := min(len(text), prefixLen)
		if f.byPrefix[n] == nil {
			f.byPrefix[n] = make(map[string][]string)
		}

		list := f.byPrefix[n][text[:n]]
		at, _ := slices.BinarySearchFunc(
			list, len(text), func(have string, length int) int { return length - len(have) },
		)

		f.byPrefix[n][text[:n]] = slices.Insert(list, at, text)
	}
}

func (f *textMatcher) remove(secret string) {
	if secret == "" {
		return
	}

	for _, text := range encodings(secret) {
		if f.count[text]--; f.count[text] > 0 {
			continue
		}

		delete(f.count, text)
		n := min(len(text), prefixLen)
		list := slices.DeleteFunc(f.byPrefix[n][text[:n]], func(have string) bool { return have == text })
		if f.byPrefix[n][text[:n]] = list; len(list) == 0 {
			delete(f.byPrefix[n], text[:n])
		}
	}
}

// longestAt is the longest of the texts that t begins with, "" for none.
func (f *textMatcher) longestAt(t string) string {
	for n := min(prefixLen, len(t)); n > 0; n-- {
		if len(f.byPrefix[n]) == 0 {
			continue
		}
		for _, text := range f.byPrefix[n][t[:n]] {
			if strings.HasPrefix(t, text) {
				return text
			}
		}
	}
	return ""
}

// text is t with the secrets hidden.
func (v redactor) text(t string) string {
	if v.store != nil {
		v.store.mu.RLock()
		defer v.store.mu.RUnlock()
	}

	var out strings.Builder
	kept := 0 // of t
	for i := 0; i < len(t); {
		found := ""
		if v.store != nil && v.store.textMatcher != nil {
			found = v.store.longestAt(t[i:])
		}

		if v.extra != nil {
			if more := v.extra.longestAt(t[i:]); len(more) > len(found) {
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

// secretStore holds the secrets that are in use.
type secretStore struct {
	mu sync.RWMutex
	*textMatcher
	heldByRuns    map[string]int // how many runs hold each
	permanent     map[string]bool
	recentEffects recentSecrets
	recentTokens  recentSecrets
}

// recentSecrets are the newest of many.
type recentSecrets struct {
	order   []string
	members map[string]bool
}

// How many secrets of effects are kept (a Task's own error may quote them much later), and how many tokens of sessions.
const (
	maxRecentEffects = 4096
	maxRecentTokens  = 1024
)

// add adds a secret; the caller holds mu.
func (m *secretStore) add(secret string) {
	if m.textMatcher == nil {
		m.textMatcher, m.heldByRuns, m.permanent = newTextMatcher(), make(map[string]int), make(map[string]bool)
	}
	m.textMatcher.add(secret)
}

// addPermanent adds secrets of the service's own, for good.
func (m *secretStore) addPermanent(values ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, value := range values {
		if !m.permanent[value] {
			m.add(value)
			m.permanent[value] = true
		}
	}
}

// hold adds secrets of a run until the function that it returns is called; several runs may hold the same.
func (m *secretStore) hold(values ...string) (forget func()) {
	m.mu.Lock()
	defer m.mu.Unlock()

	for _, value := range values {
		m.add(value)
		m.heldByRuns[value]++
	}

	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, value := range values {
			m.remove(value)
			if m.heldByRuns[value]--; m.heldByRuns[value] == 0 {
				delete(m.heldByRuns, value)
			}
		}
	})
}

// addRecent adds secrets that an effect has sent, until many others came after them.
func (m *secretStore) addRecent(values ...string) {
	m.pushRecent(&m.recentEffects, maxRecentEffects, values)
}

// addToken adds the token of a session, until many others came after it.
func (m *secretStore) addToken(value string) {
	m.pushRecent(&m.recentTokens, maxRecentTokens, []string{value})
}

func (m *secretStore) pushRecent(r *recentSecrets, limit int, values []string) {
	m.mu.Lock()
	defer m.mu.Unlock()

	if r.members == nil {
		r.members = make(map[string]bool)
	}

	for _, value := range values {
		if value == "" || r.members[value] {
			continue
		}

		m.add(value)
		r.members[value] = true
		if r.order = append(r.order, value); len(r.order) > limit {
			m.remove(r.order[0])
			delete(r.members, r.order[0])
			r.order = slices.Delete(r.order, 0, 1)
		}
	}
}

// redactor hides all that is stored, and s.
func (m *secretStore) redactor(s ...string) redactor {
	m.mu.RLock()
	defer m.mu.RUnlock()

	v := redactor{store: m}
	for _, secret := range s {
		if secret == "" || m.permanent[secret] || m.heldByRuns[secret] > 0 || m.recentEffects.members[secret] ||
			m.recentTokens.members[secret] {
			continue
		}
		if v.extra == nil {
			v.extra = newTextMatcher()
		}
		v.extra.add(secret)
	}

	return v
}

// json hides the secrets in the strings of a JSON document. Names of types and codes stay: a password that happens to
// be "status" must not make an error unreadable. A body that is not JSON is treated as text.
func (v redactor) json(body []byte) []byte {
	if v == (redactor{}) || len(body) == 0 {
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

	doc, changed := redactValue(doc, v.text)
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

// redactValue applies hide to the strings in a JSON value, and reports whether any changed.
func redactValue(v any, hide func(string) string) (any, bool) {
	changed := false
	switch v := v.(type) {
	case string:
		clean := hide(v)
		return clean, clean != v
	case []any:
		for i := range v {
			var c bool
			if v[i], c = redactValue(v[i], hide); c {
				changed = true
			}
		}
		return v, changed
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if key == "_typeName" || key == "error_type" {
				continue
			}

			clean, c := redactValue(v[key], hide)
			if name := hide(key); name != key { // a secret as a key: the value stays under the hidden name
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

// Hide keeps secrets out of all that vCenter or a guest says, whoever sent them there (an earlier owner of the run, for
// example), until forget is called. Several callers may hide the same text.
func (c *Client) Hide(values ...string) (forget func()) { return c.secrets.hold(values...) }

func (c *Client) redactorFor(cl *call) redactor { return c.secrets.redactor(cl.secrets...) }

func (c *Client) redact(cl *call, text string) string { return c.redactorFor(cl).text(text) }

// redactError is err itself or, where its text holds a secret (net/http quotes what it cannot read), an error with the
// redacted text alone.
func (c *Client) redactError(cl *call, err error) error {
	if text := c.redact(cl, err.Error()); text != err.Error() {
		return errors.New(text)
	}
	return err
}
