package handler

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/guestflow/guestflow/internal/events"
)

// readSpec reads the spec that the run customizes with: the request's own, or the one of that name in vCenter. That one
// is pinned by its digest: what was changed after the check is not what the check saw, nor what the guest was
// customized with.
func (s *step) readSpec(ctx context.Context) (json.RawMessage, error) {
	r := s.run
	if r.customSpec.json != nil || r.spec.Customize == nil {
		return r.customSpec.json, nil
	}
	name := r.spec.Customize.SpecName
	if name == "" {
		r.customSpec.json = r.spec.Customize.Spec
		return r.customSpec.json, nil
	}
	spec, err := retryRead(ctx, s, func(ctx context.Context) (json.RawMessage,
		error) {
		return r.vc.StoredSpec(ctx, name)
	})

	if err != nil {
		return nil, err
	}
	digest := digestOf(spec)
	if r.point.Spec != "" && r.point.Spec != digest {
		return nil, &stepError{step: s.name, code: events.InvalidState, retryable: true, message: fmt.Sprintf(
			"the customization specification %q was changed in vCenter %s after the run's check: send a new request",
			name, r.VCenter)}
	}

	r.point.Spec, r.customSpec.json = digest, spec
	return r.customSpec.json, nil
}

// readSpecSince is readSpec once the guest was customized: where the stored spec has changed since, or is gone, nothing
// is known of what the guest should show.
func (s *step) readSpecSince(ctx context.Context) error {
	r := s.run
	_, err := s.readSpec(ctx)
	var f *stepError
	if errors.As(err, &f) && r.spec.Customize.SpecName != "" {
		r.customSpec.gone = f.message
		return nil
	}
	return err
}

// digestOf names the content of a spec, but its passwords: vCenter keeps them under a key of its own, and may write
// them otherwise each time.
func digestOf(spec json.RawMessage) string {
	var tree any
	if json.Unmarshal(spec, &tree) == nil {
		dropPasswords(tree)
		if canonical, err := json.Marshal(tree); err == nil {
			spec = canonical
		}
	}

	sum := sha256.Sum256(spec)
	return hex.EncodeToString(sum[:])
}

func dropPasswords(tree any) {
	switch t := tree.(type) {
	case []any:
		for _, element := range t {
			dropPasswords(element)
		}
	case map[string]any:
		delete(t, "encryptionKey")
		if t["_typeName"] == "CustomizationPassword" {
			delete(t, "value")
		}
		for _, member := range t {
			dropPasswords(member)
		}
	}
}

// expected is what the run's spec says that the guest will show; nothing, where one that is stored in vCenter was not
// read.
func (r *run) expected(ctx context.Context) expected {
	spec := r.customSpec.json
	if spec == nil && r.spec != nil && r.spec.Customize != nil {
		spec = r.spec.Customize.Spec
	}
	e := expect(spec, func(t events.TextOrSecret) (string, error) { return r.secrets.text(ctx, t) })
	if r.customSpec.gone != "" {
		e.unread = append(e.unread, events.NotCompared{Field: "customize.specName", Reason: r.customSpec.gone})
	}
	return e
}
