package handler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// taskEffect is an effect that is a Task: method makes it, and task and startedAt are where the run's state keeps it.
func (r *run) taskEffect(name, method string, task *string, startedAt **time.Time,
	call func(ctx context.Context, fence vcapi.Fence, auth vcapi.GuestAuth) (string, error)) *effect {
	var auth vcapi.GuestAuth
	made := func(id string) {
		*task = id
		r.point.Tasks = append(r.point.Tasks, id)
		r.seen.newestTask = id
	}

	return &effect{
		name: name, task: true, lostMost: lostMost,
		find: func(ctx context.Context) (found, error) {
			return r.findTask(ctx, name, method, func(t vcapi.Task) { made(t.ID) })
		},
		prepare: func(ctx context.Context) (intend func(), err error) {
			auth, err = r.guestAuth(ctx, name)
			return func() {
				if *startedAt == nil {
					now := stamp(time.Now())
					*startedAt = &now
				}
			}, err
		},
		call: func(ctx context.Context, fence vcapi.Fence) error {
			id, err := call(ctx, fence, auth)
			if err == nil {
				made(id)
			}
			return err
		},
	}
}

// followTask waits for the end of a Task, or until each fails. That vCenter does not show the Task counts only once it
// must: V after its fact, and after the history was asked, which remembers it for longer than the ten minutes for which
// it is shown.
func (s *step) followTask(ctx context.Context, id string, each func(vcapi.WatchState) error) (vcapi.Task, error) {
	r := s.run
	from := time.Now() // the fact is no newer than this
	for pause := newPause(askPause); ; {
		end, gone, err := s.watchTask(ctx, id, each)
		if err != nil || !gone {
			return end, err
		}
		late := time.Since(from) >= r.VisibilityLag
		tasks, err := retryRead(ctx, s, func(ctx context.Context) ([]vcapi.Task, error) {
			now, err := r.vc.Now(ctx)
			if err != nil {
				return nil, err
			}
			tasks, _, err := r.vc.Tasks(ctx, r.vm, r.since(now))
			return tasks, err
		})

		if err != nil {
			return end, err
		}
		i := slices.IndexFunc(tasks, func(t vcapi.Task) bool { return t.ID == id && r.point.sameTask(t) })
		switch {
		case i >= 0 && taskEnded(tasks[i]):
			r.point.sawTask(tasks[i])
			return tasks[i], nil
		case i < 0 && late:
			return end, &stepError{step: s.name, code: events.Uncertain,
				message: "vCenter no longer knows " + id +
					": how it ended can not be told; look at the guest, then send a new request"}
		}

		if pause.Wait(ctx) != nil {
			return end, r.interrupted(ctx)
		}
	}
}

// watchTask follows a Task on the long poll until it has ended, or is not shown. One of another VM, or of another time,
// is not it: its ID was given again.
func (s *step) watchTask(ctx context.Context, id string, each func(vcapi.WatchState) error) (end vcapi.Task, gone bool,
	err error) {
	r := s.run
	err = s.watch(ctx, id, func(w vcapi.WatchState) (bool, error) {
		if w.TaskGone || w.Task != nil && (w.Task.Entity != "" && w.Task.Entity != r.vm || !r.point.sameTask(*w.Task)) {
			gone = true
			return true, nil
		}

		if w.Task == nil {
			return false, nil
		}
		end = *w.Task
		r.point.sawTask(end)
		if taskEnded(end) {
			return true, nil
		}
		return false, each(w)
	})

	return end, gone, err
}

func taskEnded(t vcapi.Task) bool { return t.State == "success" || t.State == "error" }

// taskOver reports whether a Task has ended, or vCenter no longer has it.
func (r *run) taskOver(ctx context.Context, id string) (bool, error) {
	t, err := r.vc.Task(ctx, id)
	if gone(err) {
		return true, nil
	}
	return err == nil && taskEnded(t), err
}

// taskFailure is why a Task that has ended did not succeed, nil where it did, and what that means.
func (s *step) taskFailure(t vcapi.Task) (*stepError, faultKind) {
	if t.State == "success" {
		return nil, final
	}
	if t.Err == nil {
		return &stepError{step: s.name, code: s.fallback,
			message: fmt.Sprintf("%s %s ended in state %s without a fault: see it in vCenter's recent tasks", t.Name,
				t.ID, t.State)}, unknownEnd
	}

	return s.failure(fmt.Errorf("%s: %w", t.ID, t.Err)), s.kindOf(t.Err) // which names its method
}

// harmless is the error of a Task that may be made again at any time: an againError where its fault will pass.
func (s *step) harmless(t vcapi.Task) error {
	switch f, kind := s.taskFailure(t); {
	case f == nil:
		return nil
	case kind == passes, kind == toolsLost:
		return &againError{err: f.err}
	default:
		return f
	}
}

// stopTask cancels a Task, or where vCenter does not let it be canceled uses the other way; then it waits for the
// Task's end.
func (s *step) stopTask(id string, reason *string, other func(context.Context) error) error {
	r := s.run
	ctx, cancel := r.toStop()
	defer cancel()
	err := r.retryUntilFinal(ctx, func(fence vcapi.Fence) error { return r.vc.CancelTask(ctx, fence, id) })
	if err != nil && !errors.Is(err, events.ErrFenced) {
		// It may have ended already: by a CancelTask without an answer, or by itself, which of a customization says
		// nothing about the guest.
		t, unread := r.vc.Task(ctx, id)
		if unread == nil && taskEnded(t) && (other == nil || t.Err != nil && t.Err.Name == "RequestCanceled") {
			err = nil
		}
	}

	aborted := err != nil && other != nil && !errors.Is(err, events.ErrFenced)
	if aborted {
		own, done := r.toStop()
		err = other(own)
		done()
	}

	if err != nil {
		*reason = "it could not be stopped: " + r.reasonFor(err)
		return onlyFenced(err)
	}

	stopped, done := context.WithTimeoutCause(r.life, stopTime, errStopTime)
	defer done()
	end, err := s.followTask(stopped, id, func(vcapi.WatchState) error { return nil })
	switch {
	case err != nil:
		*reason = fmt.Sprintf("it was told to stop and has not ended within %s", stopTime)
		return onlyFenced(err)
	case end.State == "success" && !aborted: // it was quicker
		*s.state = events.Succeeded
	default:
		*s.state = events.Canceled
	}

	endsNow(*s.state, s.finished)
	return nil
}
