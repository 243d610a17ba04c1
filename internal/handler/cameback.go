package handler

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/guestflow/guestflow/internal/events"
)

// cameBack reports whether a request was taken before, by a run that the journal's last event no longer remembers: its
// acknowledgement was lost. Such a request has a lower sequence than that of the VM's last run, and the journal shows
// its own run.
//
// A lower sequence proves nothing by itself, and an earlier time neither. A stream that was made anew begins at 1, one
// that lost its end uses sequences again, and the clock of the server may have been set back. A new request that is
// taken for an old one is lost. Where the journal does not reach back to the request, the run begins as one that may
// have begun before: see mayHaveBegun.
func (h *Handler) cameBack(ctx context.Context, req *events.Request, last *events.Entry, point checkpoint,
) (bool, error) {
	if req.Seq >= point.Seq {
		return false, nil
	}
	taken, reached := false, false
	err := h.journal.Runs(ctx, req.VCenter, req.VM, func(e *events.Entry) (more bool) {
		var at checkpoint // of any version: each has its request's place
		taken = e.Run.ID == req.RunID && json.Unmarshal(e.Run.Checkpoint, &at) == nil && at.isOf(req)
		reached = e.Seq >= last.Seq || ofOneRun(e, last)
		return !taken && !reached
	})

	if err != nil || taken || reached {
		return taken, err
	}

	since, err := h.journal.CompleteSince(ctx)
	if err == nil && !req.At.Before(since) {
		err = &events.RetryError{After: olderViewDelay, Err: errOlderView}
	}
	return false, err
}

// ofOneRun reports whether two events are of one run, and not of two that one request made, one after the other. Where
// its acceptance stands in the stream does not tell: that event may be gone, and the stream may have been made anew.
func ofOneRun(a, b *events.Entry) bool {
	return a.Run.ID == b.Run.ID && a.Run.AcceptedAt != nil && b.Run.AcceptedAt != nil &&
		a.Run.AcceptedAt.Equal(*b.Run.AcceptedAt)
}

// olderViewDelay is when a journal is read again whose reader has not caught up.
const olderViewDelay = time.Second

var errOlderView = errors.New("the server that answered does not show the VM's last run yet")
