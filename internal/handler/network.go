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
	a := r.taskAct("network", "StartGuestNetwork_Task", &n.Task, &n.StartedAt, func(ctx context.Context, gate vcapi.Gate, auth vcapi.GuestAuth) (string, error) {
		return r.vc.StartGuestNetwork(ctx, gate, r.vm, auth)
	})
	a.starting, a.started = events.NetworkStarting, events.NetworkStarted
	return a
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
	return r.complete(events.NetworkCompleted, &n.State, failure)
}
