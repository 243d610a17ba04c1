package handler

import (
	"context"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// startNetwork is the act of starting the guest's network: StartGuestNetwork_Task.
func (r *run) startNetwork() *act {
	n := r.state.Network
	made := func(task string) {
		n.Task = task
		r.point.Tasks = append(r.point.Tasks, task)
		r.newest = task
	}
	return &act{
		name: "network", starting: events.NetworkStarting, started: events.NetworkStarted,
		look: func(ctx context.Context) (sighting, error) {
			return r.lookForTask(ctx, "network", "StartGuestNetwork_Task", func(t vcapi.Task) { made(t.ID) })
		},
		intend: func(context.Context) error {
			if n.StartedAt == nil {
				now := stamp(time.Now())
				n.StartedAt = &now
			}
			return nil
		},
		call: func(ctx context.Context, gate vcapi.Gate) error {
			auth, err := r.guestAuth("network")
			if err != nil {
				return err
			}
			task, err := r.vc.StartGuestNetwork(ctx, gate, r.vm, auth)
			if err == nil {
				made(task)
			}
			return err
		},
	}
}

// networkStarted waits for the end of the Task.
func (r *run) networkStarted(ctx context.Context) error {
	s, n := r.current(), r.state.Network
	task, err := r.followTask(ctx, s, n.Task, func(vcapi.WatchState) error { return nil })
	if err != nil {
		return err
	}
	failure, err := r.taskFailure(s, task)
	if err != nil {
		return err
	}
	now := stamp(time.Now())
	n.FinishedAt = &now
	if failure == nil {
		n.State = events.Succeeded
		return r.record(events.NetworkCompleted)
	}
	n.State = events.Failed
	r.state.Error = r.errorOf(failure)
	if err := r.record(events.NetworkCompleted); err != nil {
		return err
	}
	return failure
}
