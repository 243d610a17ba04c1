package vcapi

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"
)

// One long poll (PropertyCollector.WaitForUpdatesEx) shows the changes of every VM and task that is watched: waiting costs no call per object.
//
// The objects stand in a ListView, over which one property filter looks; a watch that begins or ends changes the view (ModifyListView), not the
// filter. Collector, view and filter are made anew, and everything is read again (version ""), after whatever goes wrong: a "generation". What a
// server loses while a connection is down, or does not show although it stands in the view, is found that way.
type watch struct {
	c        *Client
	patience time.Duration // how long the poll may take to show an object that was added

	mu       sync.Mutex
	objects  map[moRef]*watched
	down     bool
	answered time.Time
	ready    time.Time     // the first answer of the present generation; zero before it
	changed  chan struct{} // the set of objects changed; holds one
}

// watched is a VM or a task that is watched.
type watched struct {
	ref      moRef
	watchers map[*watcher]bool
	props    properties
	known    bool // props are what vCenter showed
	gone     bool // vCenter says that there is none

	// Of the present generation:
	seen    bool      // the poll has shown it
	doubt   bool      // vCenter said that it is none, or left the view: to be read by itself
	patient time.Time // when to do something about it where it was not shown
	nudges  int       // how often something was done
}

// watcher is one Watch.
type watcher struct {
	vm, task moRef
	signal   chan struct{} // holds one: something may have changed
}

const (
	backoffFirst = 250 * time.Millisecond
	backoffMost  = 30 * time.Second
	gather       = 50 * time.Millisecond // between an update and the next poll, so that changes that come together cost one call
)

func newWatch(c *Client) *watch {
	return &watch{c: c, patience: 2 * time.Second, objects: make(map[moRef]*watched), answered: time.Now(), changed: make(chan struct{}, 1)}
}

// PollAge is the time since the long poll was last answered; before the first answer, since New.
func (c *Client) PollAge() time.Duration {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	return time.Since(c.watch.answered)
}

// Watch adds a VM and, where task is not "", a task to the long poll, and calls fn with what is known of them: once when both were first shown, and
// after each change; several changes may come as one, and a call of fn is never concurrent with another of the same Watch. It returns nil once fn
// returns true, and context.Cause(ctx) when ctx ends. It needs Run to be running, and makes no call of its own while nothing changes.
//
// Where the poll is not answered, fn is told so once (Down), and again when it is back, with everything read anew.
func (c *Client) Watch(ctx context.Context, vm, task string, fn func(WatchState) (done bool)) error {
	w := &watcher{signal: make(chan struct{}, 1)}
	if vm != "" {
		w.vm = moRef{Type: virtualMachine, Value: vm}
	}
	if task != "" {
		w.task = moRef{Type: "Task", Value: task}
	}
	c.watch.add(w)
	defer c.watch.remove(w)
	var last *WatchState
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-w.signal:
		}
		state, ok := c.watch.state(w)
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

func wake(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

func (p *watch) add(w *watcher) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ref := range w.refs() {
		o := p.objects[ref]
		if o == nil {
			o = &watched{ref: ref, watchers: make(map[*watcher]bool)}
			p.objects[ref] = o
			wake(p.changed)
		}
		o.watchers[w] = true
	}
	wake(w.signal)
}

func (p *watch) remove(w *watcher) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ref := range w.refs() {
		o := p.objects[ref]
		delete(o.watchers, w)
		if len(o.watchers) == 0 {
			delete(p.objects, ref)
			wake(p.changed)
		}
	}
}

// state is what w's objects show. It is not ok while one of them is still to be shown, unless the poll is down.
func (p *watch) state(w *watcher) (state WatchState, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	state.Down, ok = p.down, true
	for _, ref := range w.refs() {
		o := p.objects[ref]
		if !o.known && !o.gone && !p.down {
			ok = false
		}
		if ref == w.vm {
			state.VMGone = o.gone
			state.VM = decodeVM(o.props)
			continue
		}
		state.TaskGone = o.gone
		if task, shown := decodeTask(o.props, p.c.known.list()); shown {
			task.ID = firstOf(task.ID, ref.Value)
			state.Task = &task
		}
	}
	return state, ok
}

// tell wakes all who watch o. The caller holds mu.
func (o *watched) tell() {
	for w := range o.watchers {
		wake(w.signal)
	}
}

// setDown says whether the poll is answered.
func (p *watch) setDown(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down == down {
		return
	}
	p.down = down
	for _, o := range p.objects {
		o.tell()
	}
}

// updateSet is what is needed of vmodl.query.PropertyCollector.UpdateSet: what else is in it cannot make it unreadable.
type updateSet struct {
	Version   string `json:"version"`
	Truncated *bool  `json:"truncated"` // there is more, to be had at once
	FilterSet []struct {
		ObjectSet []struct {
			Kind      string `json:"kind"` // enter, modify, leave
			Obj       moRef  `json:"obj"`
			ChangeSet []struct {
				Name string          `json:"name"`
				Op   string          `json:"op"` // assign, add, remove, indirectRemove
				Val  json.RawMessage `json:"val"`
			} `json:"changeSet"`
		} `json:"objectSet"`
	} `json:"filterSet"`
}

// apply takes an update in. The first of a generation (fresh) also ends Down, together with what it brings.
func (p *watch) apply(set updateSet, fresh bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answered = time.Now()
	if fresh {
		p.ready = p.answered
		wake(p.changed)
	}
	if fresh && p.down {
		p.down = false
		for _, o := range p.objects {
			o.tell()
		}
	}
	for _, filter := range set.FilterSet {
		for _, update := range filter.ObjectSet {
			o := p.objects[moRef{Type: update.Obj.Type, Value: update.Obj.Value}]
			if o == nil {
				continue // not watched any more
			}
			if update.Kind == "leave" { // deleted, or taken out of the view and already added again
				o.seen, o.doubt, o.patient = false, true, time.Time{}
				wake(p.changed)
				continue
			}
			props := make(properties, len(o.props)+len(update.ChangeSet))
			if update.Kind != "enter" {
				for name, value := range o.props {
					props[name] = value
				}
			}
			for _, change := range update.ChangeSet {
				if change.Op == "remove" || change.Op == "indirectRemove" {
					delete(props, change.Name)
					continue
				}
				props.set(change.Name, change.Val)
			}
			o.shown(props)
		}
	}
}

// set assigns a property. A whole TaskInfo replaces the parts of an older one.
func (p properties) set(name string, value json.RawMessage) {
	if name == "info" {
		clear(p)
	}
	p[name] = value
}

// shown takes in what vCenter shows of o. The caller holds mu.
func (o *watched) shown(props properties) {
	o.props, o.known, o.gone, o.seen, o.doubt = props, true, false, true, false
	o.tell()
}

// Run keeps the long poll of this vCenter going until ctx ends, over lost connections, expired sessions and restarts of vCenter; it returns ctx's cause.
func (c *Client) Run(ctx context.Context) error {
	failures := 0
	for ctx.Err() == nil {
		answered, err := c.watch.generation(ctx)
		if errors.Is(err, errAnew) {
			continue
		}
		if answered {
			failures = 0
		}
		if failures++; failures > 1 || errors.Is(err, errSilent) {
			c.watch.setDown(true) // a single cut, or an expired session, is not worth telling: the next generation stands within a second
		}
		pause := min(backoffFirst<<min(failures-1, 10), backoffMost)
		pause = pause/2 + rand.N(pause/2) //nolint:gosec // jitter
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return context.Cause(ctx)
}

var (
	errAnew   = errors.New("the poll does not show an object that was added") // the next generation begins at once
	errSilent = errors.New("the long poll was not answered in time")
)

// generation makes collector, view and filter, and polls until something goes wrong. answered tells whether the poll was answered at all.
func (p *watch) generation(ctx context.Context) (answered bool, err error) {
	s, err := p.c.vimLogin.get(ctx)
	if err != nil {
		return false, err
	}
	defer func() {
		if classOf(err) == SessionLost {
			p.c.forget(s, true)
		}
	}()
	g := &generation{p: p, s: s, inView: make(map[moRef]bool)}
	defer g.end(ctx)
	if err := g.begin(ctx); err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := g.keepView(ctx); err != nil {
			cancel(err)
		}
	}()
	answered, err = g.poll(ctx)
	if cause := context.Cause(ctx); cause != nil {
		err = cause // of keepView, or the caller's
	}
	cancel(err)
	<-done
	return answered, err
}

// generation is what was made on the server for one stretch of polling.
type generation struct {
	p         *watch
	s         *session
	collector moRef
	own       bool // the collector was made by us, else it is the session's
	view      moRef
	filter    moRef
	inView    map[moRef]bool
}

func (g *generation) call(ctx context.Context, ref *moRef, kind, method string, in, out any) error {
	return g.p.c.vimIn(ctx, g.s, func(*service) *moRef { return ref }, kind, method, in, out)
}

func (g *generation) begin(ctx context.Context) error {
	c := g.p.c
	// A collector of our own, because a poll whose connection was cut may still be waiting on the old one, and would take the updates away.
	err := c.vimIn(ctx, g.s, propertyCollector, "PropertyCollector", "CreatePropertyCollector", none, &g.collector)
	g.own = err == nil && g.collector.Value != ""
	if !g.own {
		var e *Error
		if errors.As(err, &e) && (e.Status == 0 || e.Class != Permanent) {
			return err
		}
		if ref := g.s.service.content.PropertyCollector; ref != nil {
			g.collector = *ref
		}
	}
	if err := c.vimIn(ctx, g.s, viewManager, "ViewManager", "CreateListView", none, &g.view); err != nil {
		return err
	}
	g.p.newGeneration()
	if err := g.syncView(ctx); err != nil {
		return err
	}
	skip := true
	return c.avoiding(watchedVM, func(paths []string) error {
		return g.call(ctx, &g.collector, "PropertyCollector", "CreateFilter", map[string]any{
			"partialUpdates": false,
			"spec": filterSpec{TypeName: "PropertyFilterSpec",
				PropSet: []propertySpec{propertiesOf(virtualMachine, paths), propertiesOf("Task", []string{"info"})},
				ObjectSet: []objectSpec{{TypeName: "ObjectSpec", Obj: refTo("ListView", g.view.Value), Skip: &skip,
					SelectSet: []traversalSpec{{TypeName: "TraversalSpec", Type: "ListView", Path: "view"}}}},
			}}, &g.filter)
	})
}

// end takes down what was made, as well as it can: all of it dies with the session anyway.
func (g *generation) end(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	for _, made := range []struct {
		ref          *moRef
		kind, method string
		whether      bool
	}{
		{&g.filter, "PropertyFilter", "DestroyPropertyFilter", !g.own},
		{&g.collector, "PropertyCollector", "DestroyPropertyCollector", g.own},
		{&g.view, "ListView", "DestroyView", true},
	} {
		if made.ref.Value == "" || !made.whether {
			continue
		}
		var e *Error
		if err := g.call(ctx, made.ref, made.kind, made.method, none, nil); errors.As(err, &e) && (e.Status == 0 || e.Class == SessionLost) {
			return // nobody there, or nothing left: the other calls would only wait
		}
	}
}

// poll waits for updates until an error.
func (g *generation) poll(ctx context.Context) (answered bool, err error) {
	c := g.p.c
	version := ""
	options := map[string]any{"_typeName": "WaitOptions", "maxWaitSeconds": max(int(c.cfg.PollWait/time.Second), 1), "maxObjectUpdates": 100}
	for {
		params := map[string]any{"options": options}
		if version != "" {
			params["version"] = version
		}
		cl, err := c.vimCall(g.s.service, func(*service) *moRef { return &g.collector }, "PropertyCollector", "WaitForUpdatesEx", params)
		if err != nil {
			return answered, err
		}
		cl.token, cl.once, cl.timeout = g.s.token, true, c.cfg.PollWait+c.cfg.PollGrace
		ans, err := c.exchange(ctx, c.polls, cl)
		if err != nil {
			if errors.Is(err, context.DeadlineExceeded) {
				err = errors.Join(errSilent, err)
			}
			return answered, err
		}
		var set updateSet // null, 204 and an empty body leave it empty: nothing changed
		if err := c.decode(cl, ans, &set); err != nil {
			return answered, err
		}
		if set.Version == "" && len(set.FilterSet) > 0 {
			return answered, c.notUnderstood(cl, ans, errors.New("updates without a version"))
		}
		g.p.apply(set, !answered)
		answered = true
		if set.Version == "" {
			continue
		}
		version = set.Version
		if set.Truncated != nil && *set.Truncated {
			continue
		}
		select {
		case <-ctx.Done():
			return answered, context.Cause(ctx)
		case <-time.After(gather):
		}
	}
}

// keepView follows the set of what is watched, and looks after what the poll does not show.
func (g *generation) keepView(ctx context.Context) error {
	for {
		if err := g.syncView(ctx); err != nil {
			return err
		}
		next, err := g.lookAfter(ctx)
		if err != nil {
			return err
		}
		var timer <-chan time.Time
		if !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-g.p.changed:
		case <-timer:
		}
	}
}

// syncView brings the view in line with what is watched, in one call for all that changed meanwhile.
func (g *generation) syncView(ctx context.Context) error {
	add, remove := g.p.difference(g.inView)
	for len(add)+len(remove) > 0 {
		params := make(map[string]any)
		if len(add) > 0 {
			params["add"] = named(add)
		}
		if len(remove) > 0 {
			params["remove"] = named(remove)
		}
		var raw json.RawMessage
		err := g.call(ctx, &g.view, "ListView", "ModifyListView", params, &raw)
		if lost, rest := unresolved(err, add); lost != nil { // a server that refuses the whole call for one object
			g.inView[*lost] = true
			g.p.question(*lost)
			add = rest
			continue
		}
		if err != nil {
			return err
		}
		for _, ref := range add {
			g.inView[ref] = true
		}
		for _, ref := range remove {
			delete(g.inView, ref)
		}
		each(raw, func(element json.RawMessage) { // those that vCenter could not resolve
			var ref moRef
			if json.Unmarshal(element, &ref) == nil {
				g.p.question(moRef{Type: ref.Type, Value: ref.Value})
			}
		})
		return nil
	}
	return nil
}

func named(refs []moRef) []moRef {
	list := make([]moRef, len(refs))
	for i, ref := range refs {
		list[i] = refTo(ref.Type, ref.Value)
	}
	return list
}

// unresolved finds the one of refs that a ManagedObjectNotFound is about.
func unresolved(err error, refs []moRef) (lost *moRef, rest []moRef) {
	var e *Error
	if !errors.As(err, &e) || e.Name != "ManagedObjectNotFound" {
		return nil, refs
	}
	var data struct {
		Obj moRef `json:"obj"`
	}
	_ = json.Unmarshal(e.Data, &data)
	for _, ref := range refs {
		if ref.Type == data.Obj.Type && ref.Value == data.Obj.Value {
			lost = &ref
			continue
		}
		rest = append(rest, ref)
	}
	return lost, rest
}

// newGeneration forgets what was shown in the last one; what is known stays, until it is shown anew.
func (p *watch) newGeneration() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready = time.Time{}
	if len(p.objects) == 0 {
		p.ready = time.Now() // nothing to show: the first answer may take the whole wait
	}
	for _, o := range p.objects {
		o.seen, o.doubt, o.patient = false, false, time.Time{}
	}
}

// difference is what stands between the view and what is watched.
func (p *watch) difference(inView map[moRef]bool) (add, remove []moRef) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ref, o := range p.objects {
		if !inView[ref] {
			add = append(add, ref)
			o.seen, o.patient = false, time.Now().Add(p.patience)
		}
	}
	for ref := range inView {
		if p.objects[ref] == nil {
			remove = append(remove, ref)
		}
	}
	return add, remove
}

// question notes that vCenter does not show an object which is watched.
func (p *watch) question(ref moRef) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.objects[ref]; o != nil {
		o.doubt, o.patient = true, time.Time{}
		wake(p.changed)
	}
}

// lookAfter reads by themselves the objects in doubt, and those that even a new generation did not show; for one that was not shown for the first
// time it asks for a new generation. It tells when to look next; the zero time: when something changes.
func (g *generation) lookAfter(ctx context.Context) (next time.Time, err error) {
	read, anew, next := g.p.overdue(time.Now())
	if anew {
		return next, errAnew
	}
	for _, ref := range read {
		paths := watchedVM
		if ref.Type != virtualMachine {
			paths = []string{"info"}
		}
		all, err := g.p.c.retrieve(ctx, ref.Type, paths, ref.Value)
		switch {
		case ctx.Err() != nil:
			return next, nil
		case isGone(err):
			g.p.found(ref, nil)
		case err == nil:
			g.p.found(ref, all[ref.Value])
		case classOf(err) == SessionLost:
			return next, err
		}
	}
	return next, nil
}

// overdue tells what should have been shown by now.
func (p *watch) overdue(now time.Time) (read []moRef, anew bool, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ref, o := range p.objects {
		due := o.patient
		switch {
		case o.doubt:
		case o.seen, o.gone, p.ready.IsZero():
			continue
		default: // a slow first answer is not taken for one that leaves things out
			due = later(due, p.ready.Add(p.patience))
		}
		if due.After(now) {
			next = sooner(next, due)
			continue
		}
		if !o.doubt && o.nudges == 0 {
			anew = true
		} else {
			read = append(read, ref)
		}
		o.nudges++
		o.patient = now.Add(min(p.patience<<min(o.nudges, 5), backoffMost))
		next = sooner(next, o.patient)
	}
	return read, anew, next
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// sooner takes the zero time for never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// found takes in what a read of one object gave; nil: that there is none.
func (p *watch) found(ref moRef, props properties) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.objects[ref]
	switch {
	case o == nil:
	case props == nil:
		o.gone, o.doubt = true, false
		o.tell()
	default:
		o.props, o.known, o.gone, o.doubt = props, true, false, false
		o.tell()
	}
}
