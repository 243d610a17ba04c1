package handler

import (
	"strings"
	"testing"

	"github.com/guestflow/guestflow/internal/events"
)

func TestHappyPath(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	withHarness(t, secrets, func(w *harness) {
		run := w.run(whole)
		want := "run.accepted check.completed " +
			"customize.starting customize.started customize.progressed customize.progressed customize.progressed " +
			"customize.progressed customize.completed " +
			"network.starting network.started network.completed verify.completed " +
			"process.starting process.started process.exited process.starting process.started process.exited " +
			"run.succeeded"
		if got := strings.Join(w.kinds(), " "); got != want {
			t.Errorf("events\n got %s\nwant %s", got, want)
		}
		if run.Status != events.StatusSucceeded {
			t.Errorf("status %s", run.Status)
		}
	})
}
