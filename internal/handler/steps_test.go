package handler

import (
	"encoding/json"
	"testing"

	"github.com/guestflow/guestflow/internal/events"
)

// stepOf is a step of a run for every step, where it stands in one of its states.
func stepOf(t *testing.T, name string, state events.State) (*run, *step) {
	t.Helper()
	r := &run{Handler: &Handler{kinds: stepKinds()}, spec: new(events.RequestSpec)}
	if err := json.Unmarshal([]byte(whole), r.spec); err != nil {
		t.Fatal(err)
	}
	r.accept()
	for _, s := range r.steps {
		if s.name == name {
			*s.state = state
			return r, s
		}
	}

	t.Fatalf("no step %s", name)
	return nil, nil
}

// Every step that a run can have is known to the handler, with what it needs.
func TestEveryStepIsKnown(t *testing.T) {
	t.Parallel()
	r, _ := stepOf(t, events.StepCheck, events.Pending)
	known := map[string]bool{}
	for _, s := range r.steps {
		known[s.name] = true
		if s.read == nil || s.end == "" {
			t.Errorf("step %s: nothing is read, or no event is its end", s.name)
		}
		if s.timeout != 0 && (s.ended == nil || s.stop == nil) {
			t.Errorf("step %s waits for something: whether that has ended, and how it is stopped, is not known", s.name)
		}
		if s.effect != nil && (s.fallback == "" || len(s.privileges) == 0 || s.effect.lostMost == 0) {
			t.Errorf("step %s changes the guest: it has no code, no privileges, or no pause", s.name)
		}
	}

	for _, kind := range stepKinds() {
		if !known[kind.name] {
			t.Errorf("no request asks for a step %s", kind.name)
		}
	}
}
