package handler

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/guestflow/guestflow/internal/events"
)

// fill puts the values of secrets into a tree of JSON: each {"secretRef": …, "key": …} becomes the string that it
// names. All else stays word for word: what guestflow does not know of a spec is vCenter's to read. secrets are the
// values, to be kept out of errors.
func (s Secrets) fill(ctx context.Context, tree json.RawMessage) (filled json.RawMessage, secrets []string, err error) {
	refs, err := secretRefs(tree)
	if err != nil {
		return nil, nil, err
	}
	filled = slices.Clone(tree)
	for _, ref := range slices.Backward(refs) { // from behind, so that the places before it stay where they are
		value, err := s.read(ctx, ref.name, ref.key)
		if err != nil {
			return nil, nil, err
		}
		quoted, err := json.Marshal(value)
		if err != nil {
			return nil, nil, fmt.Errorf("secret %q, key %q: it is no text", ref.name, ref.key)
		}
		filled = slices.Replace(filled, ref.from, ref.to, quoted...)
		secrets = append(secrets, value)
	}

	return filled, secrets, nil
}

// secretRef is where a tree of JSON names a secret.
type secretRef struct {
	name, key string
	from, to  int // bytes
}

// secretRefs finds the secrets that a tree names, first to last.
func secretRefs(tree json.RawMessage) ([]secretRef, error) {
	if len(tree) == 0 {
		return nil, nil
	}
	f := refFinder{decoder: json.NewDecoder(bytes.NewReader(tree))}
	f.decoder.UseNumber()
	for {
		token, err := f.decoder.Token()
		switch {
		case err != nil && len(f.open) == 0:
			return f.refs, nil // the end
		case err != nil:
			return nil, err
		}

		f.take(token)
	}
}

// refFinder reads a tree of JSON, token by token.
type refFinder struct {
	decoder *json.Decoder
	refs    []secretRef
	open    []*openObject // nil: an array
	name    string        // of the member whose value comes next
	named   bool
}

// openObject is an object whose end is not read yet.
type openObject struct {
	from    int
	members map[string]string // those that are strings
	others  bool              // it has other members
}

// around is what the next token stands in, nil for an array or nothing.
func (f *refFinder) around() *openObject {
	if len(f.open) == 0 {
		return nil
	}
	return f.open[len(f.open)-1]
}

// take reads one token.
func (f *refFinder) take(token json.Token) {
	in := f.around()
	text, isText := token.(string)
	delim, _ := token.(json.Delim)
	switch {
	case isText && in != nil && !f.named:
		f.name, f.named = text, true
		return
	case delim == '{':
		f.open = append(f.open, &openObject{from: f.offset() - 1, members: map[string]string{}})
	case delim == '[':
		f.open = append(f.open, nil)
	case delim == '}', delim == ']':
		f.end(in)
	case in != nil && isText:
		in.members[f.name] = text
	case in != nil:
		in.others = true
	}

	f.named = false
}

// end closes an object, or an array, and notes it where it names a secret.
func (f *refFinder) end(in *openObject) {
	f.open = f.open[:len(f.open)-1]
	if in != nil && !in.others && len(in.members) == 2 && in.members["secretRef"] != "" && in.members["key"] != "" {
		f.refs = append(f.refs, secretRef{name: in.members["secretRef"], key: in.members["key"], from: in.from,
			to: f.offset()})
	}

	if outer := f.around(); outer != nil {
		outer.others = true
	}
}

// offset is behind the token that was read last.
func (f *refFinder) offset() int { return int(f.decoder.InputOffset()) }

// text is the string that a request gives or names.
func (s Secrets) text(ctx context.Context, t events.TextOrSecret) (string, error) {
	if t.SecretRef == "" {
		return t.Text, nil
	}
	return s.read(ctx, t.SecretRef, t.Key)
}
