package handler

import (
	"strings"
	"testing"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/events/stream/memstore"
)

// An event that the server refuses for good ends its run, whichever it is: the request does not come round for ever,
// and the VM is free.
func TestEventThatCannotBeStoredEndsTheRun(t *testing.T) {
	t.Parallel()
	secrets := secretsDir(t)
	for _, kind := range []events.Kind{events.CheckCompleted, events.CustomizeStarting, events.CustomizeStarted,
		events.CustomizeCompleted, events.NetworkStarted,
		events.VerifyCompleted, events.ProcessStarting, events.ProcessExited} {
		for _, code := range []int{stream.CodeMessageTooLarge, stream.CodeHeadersTooLarge} {
			t.Run(string(kind), func(t *testing.T) {
				t.Parallel()
				withHarness(t, secrets, func(w *harness) {
					w.slow = func(_ int, m stream.Message) memstore.Fault {
						if strings.HasSuffix(m.Subject, "."+string(kind)) {
							return memstore.Fault{Refuse: code}
						}
						return memstore.Fault{}
					}

					req := w.request("order-1", whole)
					o := w.deliver(req)
					w.await(o)
					if run := w.last(); run.Status != events.StatusFailed || run.Error.Code != events.Internal ||
						!strings.Contains(run.Error.Message, "max_payload") {
						t.Errorf("the run ended as %s: %+v", run.Status, run.Error)
					}
				})
			})
		}
	}
}
