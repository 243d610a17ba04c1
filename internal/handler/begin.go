package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/tracing"
)

// begin starts a run on top of a finished one, or of none.
func (h *Handler) begin(ctx context.Context, req *events.Request, last *events.Entry, before checkpoint) error {
	if !req.Expires.IsZero() && time.Now().After(req.Expires) {
		return &events.RejectError{Code: events.Expired, IfLastSeq: lastSeqOf(last), Message: fmt.Sprintf(
			"expirytime %s had passed when the request's turn came: send it again with a later one, under a new id",
			req.Expires.UTC().Format(time.RFC3339))}
	}

	r, inRun := h.newRun(h.inTrace(ctx, req), req.VM, req.Attrs)
	defer r.done()
	if last != nil {
		r.owner.standsOn(last)
	}
	r.req, r.spec = req, &req.Spec
	r.point = checkpoint{Version: checkpointVersion, Digest: req.Digest, Past: before.Past}
	r.point.stands(req.Place())
	r.state = events.Run{ID: req.RunID, VCenter: req.VCenter, VM: req.VM, Request: &req.Ref,
		Status: events.StatusRunning,
		Owner:  &events.Owner{Instance: h.Instance}}

	turn := time.Now()
	var err error
	if r.point.Lost, err = h.mayHaveBegun(ctx, req); err != nil {
		return h.releaseIfStopping(ctx, err)
	}
	if by, err := r.canceledBy(inRun); err != nil {
		return h.releaseIfStopping(ctx, err)
	} else if by != nil {
		return r.end(&canceledError{by: *by})
	}

	if err := r.baselineWithin(inRun, baselineTime); err != nil && ctx.Err() != nil {
		return events.ErrReleased
	}
	if by, err := r.canceledBy(inRun); err != nil { // once more: that may have taken seconds
		return h.releaseIfStopping(ctx, err)
	} else if by != nil {
		return r.end(&canceledError{by: *by})
	}

	r.accept()
	r.state.Requested = req.Data
	err = r.record(events.RunAccepted)
	r.state.Requested = nil
	if err != nil {
		return h.releaseIfStopping(ctx, err)
	}
	r.telemetry.began(inRun, req, turn)
	return r.walk(inRun)
}

// resume goes on with a run that an owner before this one left unfinished: it fences that owner, and lets its calls
// land before the first call of its own.
func (h *Handler) resume(ctx context.Context, req *events.Request, last *events.Entry, point checkpoint) error {
	r, inRun := h.newRun(h.inTrace(ctx, req), req.VM, req.Attrs)
	defer r.done()
	r.req, r.spec = req, &req.Spec
	trusted := last.Kind == events.RunReleased && point.Released.followedBy(req)
	point.stands(req.Place())
	if err := r.takeOver(last, point); err != nil {
		return h.releaseIfStopping(ctx, err)
	}
	if trusted {
		r.owner.notBefore = time.Time{}
	}
	return r.walk(inRun)
}

// closeOrphan ends a run that nobody will be handed again, so that the VM is free: as an owner who takes over, looks
// what the run's last call did, and does nothing new.
func (h *Handler) closeOrphan(ctx context.Context, last *events.Entry, point checkpoint) error {
	ctx = tracing.From(ctx, last.Attrs.TraceParent, last.Attrs.TraceState)
	ctx, span := h.Tracer.Start(ctx, "orphan", h.about(last.Run.ID, last.Run.VM))
	defer span.End()
	r, inRun := h.newRun(ctx, last.Run.VM, last.Attrs)
	defer r.done()
	data, err := h.requested(ctx, last, point)
	if err != nil {
		return err
	}
	if spec := new(events.RequestSpec); data != nil && json.Unmarshal(data, spec) == nil {
		r.spec = spec
		r.hide(inRun)
	}

	if err := r.takeOver(last, point); err != nil {
		return err
	}
	return r.end(&stepError{code: events.Orphaned, retryable: true, message: fmt.Sprintf(
		"the request of this run (source %q, id %q) has left the requests stream before the run ended: "+
			"see in the events what was done, and send it again under a new id",
		last.Run.Request.Source, last.Run.Request.ID)})
}

// requested is what the run of an event asked for, nil where nothing tells any more.
func (h *Handler) requested(ctx context.Context, last *events.Entry, point checkpoint) (json.RawMessage, error) {
	if last.Kind == events.RunAccepted {
		return last.Run.Requested, nil
	}
	return h.journal.RequestData(ctx, h.VCenter, last.Run.VM, last.Run.ID, point.Accepted)
}

// newRun makes what an owner holds of a run. The context that it returns is the run's own, in which it reads: it ends,
// with its cause, when the run is to be given back, because ctx has ended, and when it is interrupted.
func (h *Handler) newRun(ctx context.Context, vm string, attrs events.Attributes) (*run, context.Context) {
	r := &run{Handler: h, vm: vm, attrs: attrs, telemetry: telemetry{meter: h.Meter, tracer: h.Tracer}}
	r.owner.renew()
	wake, unwake := h.queue.Wake(h.VCenter, vm)

	// What is in hand when the process is to stop, an append or a call, has the drain time to come to its end.
	life, kill := context.WithCancel(context.WithoutCancel(ctx))
	undrain := context.AfterFunc(ctx, func() {
		t := time.NewTimer(h.Drain)
		defer t.Stop()
		select {
		case <-t.C:
			kill()
		case <-life.Done():
		}
	})

	own, interrupt := context.WithCancelCause(ctx)
	r.life, r.interrupt, r.wake = life, interrupt, wake
	r.close = func() {
		unwake()
		undrain()
		interrupt(nil)
		kill()
	}

	return r, own
}
