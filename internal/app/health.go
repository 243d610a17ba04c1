package app

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/guestflow/guestflow/internal/events/stream"
)

// health answers the probes. A vCenter that is down does not make the pod unready: the other vCenters go on, and
// guestflow_vcenter_up shows it.
type health struct {
	conn    *stream.Conn
	started atomic.Bool // streams and consumers exist, and the service takes requests
}

// live answers always: a restart does not bring back NATS or a vCenter.
func (h *health) live(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") }

// readyTimeout bounds the round trip to JetStream. It is shorter than the usual time-out of a probe.
const readyTimeout = 2 * time.Second

func (h *health) ready(w http.ResponseWriter, req *http.Request) {
	ctx, cancel := context.WithTimeout(req.Context(), readyTimeout)
	defer cancel()
	if !h.started.Load() {
		http.Error(w, "not ready: the streams and consumers are not there yet, or the service stops"+h.longWaits(),
			http.StatusServiceUnavailable)
		return
	}
	if err := h.conn.Ready(ctx); err != nil {
		http.Error(w, fmt.Sprintf("not ready: %v", err), http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
	for _, t := range h.conn.LastTroubles() { // these do not stop the service
		_, _ = fmt.Fprintln(w, "warning: "+t.String())
	}
}

// longWaits says what the service waits for at its start, if that takes longer than usual.
func (h *health) longWaits() string {
	text := ""
	for _, t := range h.conn.LongWaits() {
		text += "\n" + t.String()
	}
	return text
}
