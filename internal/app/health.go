package app

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/guestflow/guestflow/internal/events/stream"
)

// health answers the probes. A vCenter that is down makes no pod unready: the others go on, and guestflow_vcenter_up tells.
type health struct {
	conn    *stream.Conn
	started atomic.Bool // streams and consumers are there, and requests are taken
}

// live says that the process answers; what it waits for from outside is not its own health.
func (h *health) live(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") }

// readyTimeout bounds the round trip to JetStream: below the probe's usual time-out.
const readyTimeout = 2 * time.Second

func (h *health) ready(w http.ResponseWriter, req *http.Request) {
	ctx, cancel := context.WithTimeout(req.Context(), readyTimeout)
	defer cancel()
	if !h.started.Load() {
		http.Error(w, "not ready: the streams and consumers are not there yet, or the service stops"+h.longWaits(), http.StatusServiceUnavailable)
		return
	}
	if err := h.conn.Ready(ctx); err != nil {
		http.Error(w, fmt.Sprintf("not ready: %v", err), http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
	for _, t := range h.conn.LastTroubles() { // what stops nothing
		_, _ = fmt.Fprintln(w, "warning: "+t.String())
	}
}

// longWaits says what the service waits for at its start, where that takes longer than it should.
func (h *health) longWaits() string {
	text := ""
	for _, t := range h.conn.LongWaits() {
		text += "\n" + t.String()
	}
	return text
}
