package handler

import (
	"context"
	"fmt"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

const (
	// historyReach is how far behind the baseline Tasks are asked for: further than the ten minutes for which vCenter
	// lists a Task as recent, so that whatever the list may show later is in the baseline too.
	historyReach = 15 * time.Minute
	// clockJitter is what two readings of two clocks may differ by although neither was set: the calls between them
	// take time.
	clockJitter = 30 * time.Second
	// recentReach and recentMost are how long, and among how many, vCenter lists an ended Task as recent.
	recentReach = 10 * time.Minute
	recentMost  = 200
	// processReach is how long a look for a process can be sure: tools keep an ended one for five minutes, less a
	// margin.
	processReach = 4 * time.Minute
	// baselineTime is how long the acceptance of a run waits for a silent vCenter.
	baselineTime = 5 * time.Second
)

// baselineWithin notes the Tasks that are there before the run makes any, if vCenter answers in time; else the check
// does it.
func (r *run) baselineWithin(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r.asking = true
	_, err := r.baseline(ctx)
	return err
}

// baseline notes the Tasks that vCenter shows now, by its clock.
func (r *run) baseline(ctx context.Context) (struct{}, error) {
	var none struct{}
	now, about, err := r.clockOf(ctx)
	if err != nil {
		return none, err
	}
	ours := time.Now()
	tasks, history, err := r.vc.Tasks(ctx, r.vm, now.Add(-historyReach))
	if err != nil {
		return none, err
	}
	p := &r.point
	p.Baseline, p.BaselineAt, p.BaselineOurs, p.Recent, p.Instance, p.BaselineNewest = nil, &now, &ours, !history,
		about.InstanceUUID, nil
	for _, t := range tasks {
		p.Baseline = append(p.Baseline, t.ID)
		r.seen.newestTask = t.ID
		if p.BaselineNewest == nil || t.QueueTime.After(*p.BaselineNewest) {
			queued := t.QueueTime
			p.BaselineNewest = &queued
		}
	}

	return none, nil
}

// clockOf is vCenter's clock, and which vCenter it is.
func (r *run) clockOf(ctx context.Context) (now time.Time, about vcapi.About, err error) {
	if now, err = r.vc.Now(ctx); err != nil {
		return now, about, err
	}
	about, err = r.vc.About(ctx)
	return now, about, err
}

// since is the time, by vCenter's clock, from which on Tasks are asked for, so that none that this run made is left
// out: also where that clock was set back after the baseline. Our own clock tells by how much: it only makes the answer
// longer.
func (r *run) since(now time.Time) time.Time {
	p := r.point
	if p.BaselineAt == nil {
		return time.Time{} // all of them
	}
	from := *p.BaselineAt
	if p.BaselineOurs != nil {
		if expected := p.BaselineAt.Add(time.Since(*p.BaselineOurs)); now.Before(expected) {
			from = from.Add(now.Sub(expected))
		}
	}

	if open := p.Intent; open != nil && open.At.Before(from) {
		from = open.At
	}
	if p.Recent && p.BaselineAt.Sub(from) < clockJitter { // an older one could not be told from this run's
		return from
	}
	return from.Add(-historyReach)
}

// findTask looks for the Task that a call of method may have made: one that is not known. Who asks for the first time,
// with no other owner before and no call of its own that was not answered, has nothing to look for and only notes what
// a later look needs.
func (r *run) findTask(ctx context.Context, effect, method string, adopt func(vcapi.Task)) (found, error) {
	now, about, err := r.clockOf(ctx)
	if err != nil {
		return found{}, err
	}
	s := found{sure: true, now: intent{At: now, Newest: r.seen.newestTask}}
	vs, err := r.vc.Session(ctx)
	if err != nil {
		return s, err
	}
	s.now.Session = vs.Key
	if err := r.sameVCenter(about); err != nil {
		return s, err
	}
	if !r.owner.tookOver && !r.owner.inFlight && !r.owner.lookAgain {
		return s, nil
	}
	tasks, history, err := r.vc.Tasks(ctx, r.vm, r.since(now))
	if err != nil {
		return s, err
	}
	shown := map[string]bool{}
	var found *vcapi.Task
	unclear := false
	for i, t := range tasks {
		shown[t.ID] = true
		s.now.Newest = t.ID
		yes, maybe := madeBy(t, method)
		switch {
		case !yes && !maybe, r.point.known(t, about.InstanceUUID):
		case maybe, r.point.Recent && t.QueueTime.Before(*r.point.BaselineAt): // it may have been there before
			unclear = true
		default:
			found = &tasks[i]
		}
	}

	r.seen.newestTask = s.now.Newest
	if found != nil {
		if r.point.doubted(effect) { // it may be the one of which an earlier run ended uncertain
			s.sure = false
			return s, nil
		}

		s.adopt = func() { adopt(*found) }
		return s, nil
	}

	if open := r.point.Intent; r.owner.inFlight && open != nil {
		s.sure, err = r.reachesBack(ctx, open, now, tasks, shown, history, vs.UserName)
	}
	s.sure = s.sure && !unclear
	return s, err
}

// sameVCenter fails where the vCenter of that name is another one than when the run was accepted: neither its Tasks nor
// its VMs are those that the run knows.
func (r *run) sameVCenter(about vcapi.About) error {
	was := r.point.Instance
	if was == "" || about.InstanceUUID == "" || was == about.InstanceUUID {
		return nil
	}
	s := r.currentStep()
	f := &stepError{step: s.name, process: s.process, code: events.NotFound, message: fmt.Sprintf(
		"vCenter %s is another one now (instance UUID %s) than when the run was accepted (%s): its %s may be another "+
			"VM; look at the VM, then send a new request",
		r.VCenter, about.InstanceUUID, was, r.vm)}
	if r.owner.inFlight {
		r.owner.inFlight, f.code, f.doubt = false, events.Uncertain, r.point.Intent.Act
	}
	return f
}

// reachesBack reports whether vCenter's answer goes back behind an intent: a Task that it made would have been in it.
func (r *run) reachesBack(ctx context.Context, open *intent, now time.Time, tasks []vcapi.Task, shown map[string]bool,
	history bool,
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

	// The list of recent Tasks lives in vCenter's memory: it is whole if vCenter was not restarted, that is, if a
	// session of that time lives.
	return proof(r.vc.SessionAlive(ctx, vcapi.Session{Key: open.Session, UserName: user}))
}

// proof takes a question that vCenter does not answer us, for want of a privilege or of the method, for one that proves
// nothing.
func proof(yes bool, err error) (bool, error) {
	if permanent(err) {
		return false, nil
	}
	return yes, err
}
