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
	var refs []secretRef
	type object struct {
		from    int
		members map[string]string // those that are strings
		others  bool
	}
	var open []*object // nil: an array
	var name string    // of the member whose value comes next
	named := false
	d := json.NewDecoder(bytes.NewReader(tree))
	d.UseNumber()
	for {
		token, err := d.Token()
		if err != nil {
			if len(open) == 0 {
				return refs, nil // the end
			}
			return nil, err
		}
		var in *object
		if len(open) > 0 {
			in = open[len(open)-1]
		}
		if text, ok := token.(string); ok && in != nil && !named {
			name, named = text, true
			continue
		}
		switch t := token.(type) {
		case json.Delim:
			switch t {
			case '{':
				open, named = append(open, &object{from: int(d.InputOffset()) - 1, members: map[string]string{}}), false
				continue
			case '[':
				open, named = append(open, nil), false
				continue
			}
			open = open[:len(open)-1]
			if t == '}' && !in.others && len(in.members) == 2 && in.members["secretRef"] != "" &&
				in.members["key"] != "" {
				refs = append(refs, secretRef{name: in.members["secretRef"], key: in.members["key"], from: in.from,
					to: int(d.InputOffset())})
			}
			if len(open) > 0 && open[len(open)-1] != nil {
				open[len(open)-1].others = true
			}
		case string:
			if in != nil {
				in.members[name] = t
			}
		default:
			if in != nil {
				in.others = true
			}
		}
		named = false
	}
}

// text is the string that a request gives or names.
func (s Secrets) text(ctx context.Context, t events.TextOrSecret) (string, error) {
	if t.SecretRef == "" {
		return t.Text, nil
	}
	return s.read(ctx, t.SecretRef, t.Key)
}
