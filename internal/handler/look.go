package handler

import (
	"context"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

const (
	// historyReach is how far behind the baseline Tasks are asked for: further than the ten minutes for which vCenter lists a Task as recent, so
	// that whatever the list may show later is in the baseline too.
	historyReach = 15 * time.Minute
	// recentReach and recentMost are how long, and among how many, vCenter lists an ended Task as recent.
	recentReach = 10 * time.Minute
	recentMost  = 200
	// processReach is how long a look for a process can be sure: tools keep an ended one for five minutes, less a margin.
	processReach = 4 * time.Minute
	// baselineTime is how long the acceptance of a run waits for a silent vCenter.
	baselineTime = 5 * time.Second
)

// baselineWithin notes the Tasks that are there before the run makes any, if vCenter answers in time; else the check does it.
func (r *run) baselineWithin(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(r.ctx, limit)
	defer cancel()
	r.asking = true
	_, err := r.baseline(ctx)
	return err
}

// baseline notes the Tasks that vCenter shows now, by its clock.
func (r *run) baseline(ctx context.Context) (struct{}, error) {
	var none struct{}
	now, err := r.vc.Now(ctx)
	if err != nil {
		return none, err
	}
	tasks, history, err := r.vc.Tasks(ctx, r.vm, now.Add(-historyReach))
	if err != nil {
		return none, err
	}
	r.point.Baseline, r.point.BaselineAt, r.point.Recent = nil, &now, !history
	for _, t := range tasks {
		r.point.Baseline = append(r.point.Baseline, t.ID)
		r.newest = t.ID
	}
	return none, nil
}

// lookForTask looks for the Task that a call of method may have made: one that is not known. Who asks for the first time, with no other
// owner before and no call of its own that was not answered, has nothing to look for and only notes what a later look needs.
func (r *run) lookForTask(ctx context.Context, act, method string, adopt func(vcapi.Task)) (sighting, error) {
	now, err := r.vc.Now(ctx)
	if err != nil {
		return sighting{}, err
	}
	s := sighting{sure: true, now: intent{At: now, Newest: r.newest}}
	vs, err := r.vc.Session(ctx)
	if err != nil {
		return s, err
	}
	s.now.Session = vs.Key
	if !r.tookOver && !r.open && !r.lookOn {
		return s, nil
	}
	since := r.point.BaselineAt.Add(-historyReach)
	if r.point.Recent { // an older one would be taken for this run's
		since = *r.point.BaselineAt
	}
	tasks, history, err := r.vc.Tasks(ctx, r.vm, since)
	if err != nil {
		return s, err
	}
	shown := map[string]bool{}
	var found *vcapi.Task
	for i, t := range tasks {
		shown[t.ID] = true
		s.now.Newest = t.ID
		if t.Name == method && !r.point.known(t.ID) {
			found = &tasks[i]
		}
	}
	r.newest = s.now.Newest
	if found != nil {
		if r.point.doubted(act) { // it may be the one of which an earlier run ended uncertain
			s.sure = false
			return s, nil
		}
		s.adopt = func() { adopt(*found) }
		return s, nil
	}
	if open := r.point.Intent; r.open && open != nil {
		s.sure, err = r.reachesBack(ctx, open, now, tasks, shown, history, vs.UserName)
	}
	return s, err
}

// reachesBack tells whether vCenter's answer goes back behind an intent: a Task that it made would have been in it.
func (r *run) reachesBack(ctx context.Context, open *intent, now time.Time, tasks []vcapi.Task, shown map[string]bool, history bool,
	user string) (bool, error) {
	if now.Before(open.At) {
		return false, nil // vCenter's clock was set back: its times tell nothing
	}
	inMemory := now.Sub(open.At) < recentReach && len(tasks) < recentMost
	switch {
	case !history && !inMemory: // an older Task that still runs is listed for as long as it does, one that ended is not
		return false, nil
	case open.Newest != "" && (shown[open.Newest] || history):
		return shown[open.Newest], nil
	}
	for _, t := range tasks {
		if t.QueueTime.Before(open.At) {
			return true, nil
		}
	}
	if history {
		older, err := proof(r.vc.AnyTaskBefore(ctx, open.At))
		if err != nil || older {
			return older, err
		}
	}
	if !inMemory {
		return false, nil
	}
	// The list of recent Tasks lives in vCenter's memory: it is whole if vCenter was not restarted, that is, if a session of that time lives.
	return proof(r.vc.SessionAlive(ctx, vcapi.Session{Key: open.Session, UserName: user}))
}

// proof takes a question that vCenter does not answer us, for want of a privilege or of the method, for one that proves nothing.
func proof(yes bool, err error) (bool, error) {
	if permanent(err) {
		return false, nil
	}
	return yes, err
}

// followTask waits for the end of a Task, or until done says that the run knows enough.
func (r *run) followTask(ctx context.Context, s *step, id string, each func(vcapi.WatchState) error) (vcapi.Task, error) {
	var end vcapi.Task
	gone := false
	err := r.watch(ctx, s, id, func(w vcapi.WatchState) (bool, error) {
		if w.TaskGone {
			gone = true
			return true, nil
		}
		if w.Task == nil {
			return false, nil
		}
		end = *w.Task
		if taskEnded(end) {
			return true, nil
		}
		return false, each(w)
	})
	if err != nil || !gone {
		return end, err
	}
	// vCenter shows a Task for ten minutes after its end; its history remembers longer.
	since := time.Now().Add(-24 * time.Hour)
	if r.point.BaselineAt != nil {
		since = r.point.BaselineAt.Add(-historyReach)
	}
	tasks, err := ask(ctx, r, s, func(ctx context.Context) ([]vcapi.Task, error) {
		tasks, _, err := r.vc.Tasks(ctx, r.vm, since)
		return tasks, err
	})
	if err != nil {
		return end, err
	}
	for _, t := range tasks {
		if t.ID == id && taskEnded(t) {
			return t, nil
		}
	}
	return end, &stepError{step: s.name, code: events.Uncertain,
		message: "vCenter no longer knows " + id + ": how it ended can not be told; look at the guest, then send a new request"}
}

func taskEnded(t vcapi.Task) bool { return t.State == "success" || t.State == "error" }
