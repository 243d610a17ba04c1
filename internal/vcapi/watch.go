package vcapi

import (
	"cmp"
	"context"
	"reflect"
	"time"
)

// watcher is one call of Watch.
type watcher struct {
	vm, task moRef
	signal   chan struct{} // something may have changed; holds one
}

// Watch adds a VM and, where task is not "", a Task to the long poll, and calls fn with what is known of them: once
// both were shown, and after each change. Several changes may come as one call. Calls of fn in the same Watch are never
// concurrent. It returns nil once fn returns true, and context.Cause(ctx) when ctx ends. Run must be running; Watch
// makes no call of its own while nothing changes, and may be repeated.
//
// When the poll is not answered, fn is told once (WatchState.Down), and again when the poll is back and everything was
// read anew.
//
// Source: VI JSON, PropertyCollector.WaitForUpdatesEx. Privilege: System.Read on the VM.
func (c *Client) Watch(ctx context.Context, vm, task string, fn func(WatchState) (done bool)) error {
	w := &watcher{signal: make(chan struct{}, 1)}
	if vm != "" {
		w.vm = moRef{Type: virtualMachine, Value: vm}
	}
	if task != "" {
		w.task = moRef{Type: "Task", Value: task}
	}

	c.poller.add(w)
	defer c.poller.remove(w)

	var last *WatchState
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-w.signal:
		}

		state, ok := c.poller.state(w)
		if !ok || last != nil && reflect.DeepEqual(*last, state) {
			continue
		}
		last = &state
		if fn(state) {
			return nil
		}
	}
}

func (w *watcher) refs() (refs []moRef) {
	for _, ref := range []moRef{w.vm, w.task} {
		if ref.Value != "" {
			refs = append(refs, ref)
		}
	}
	return refs
}

// wake signals without waiting: a signal that is still there is enough.
func wake(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

func (p *poller) add(w *watcher) {
	p.mu.Lock()
	defer p.mu.Unlock()

	for _, ref := range w.refs() {
		o := p.objects[ref]
		if o == nil {
			o = &watchedObject{ref: ref, watchers: make(map[*watcher]bool)}
			p.objects[ref] = o
			wake(p.changed)
		} else if len(o.watchers) == 0 && o.gone { // it may exist again
			o.gone, o.known, o.mustRead, o.checkAt = false, false, true, time.Time{}
			wake(p.changed)
		}

		o.watchers[w] = true
	}

	wake(w.signal)
}

func (p *poller) remove(w *watcher) {
	p.mu.Lock()
	defer p.mu.Unlock()

	for _, ref := range w.refs() {
		o := p.objects[ref]
		delete(o.watchers, w)
		if len(o.watchers) == 0 {
			o.idleSince = time.Now()
			wake(p.changed)
		}
	}
}

// state is what w's objects show. ok is false while one of them is still to be shown, unless the poll is down.
func (p *poller) state(w *watcher) (state WatchState, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()

	state.Down, state.Err, ok = p.down != nil, p.down, true
	for _, ref := range w.refs() {
		o := p.objects[ref]
		if o.readErr != nil && p.down == nil {
			state.Down, state.Err = true, o.readErr
		}
		if !o.known && !o.gone && o.readErr == nil && p.down == nil {
			ok = false
		}

		if ref == w.vm {
			state.VMGone = o.gone
			state.VM = decodeVM(o.props, p.c.secrets.redactor())
			continue
		}

		state.TaskGone = o.gone
		if task, shown := decodeTask(o.props, p.c.secrets.redactor()); shown {
			task.ID = cmp.Or(task.ID, ref.Value)
			state.Task = &task
		}
	}

	return state, ok
}
