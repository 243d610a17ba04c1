package vcapi

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"sync"
	"time"
)

// One long poll (PropertyCollector.WaitForUpdatesEx) shows the changes of every VM and task that is watched: waiting costs no call per object.
//
// The objects stand in a ListView, over which one property filter looks; a watch that begins or ends changes the view (ModifyListView), not the
// filter. Collector, view and filter are made anew, and everything is read again (version ""), after whatever goes wrong: a "generation". What a
// server loses while a connection is down, or does not show although it stands in the view, is found that way.
type poller struct {
	c           *Client
	showTimeout time.Duration // how long the poll may take to show an object that was added
	lingerTime  time.Duration // how long an object stays in the view after its last watch: the next one, of the run's next step, then costs no call

	mu           sync.Mutex
	objects      map[moRef]*watchedObject
	down         error // why the poll is; nil while it stands
	lastAnswer   time.Time
	missesAdded  bool           // this server was seen not to show what was added
	allShownAt   time.Time      // when the present generation had shown all there was; zero before that, and while more is announced
	allShownTook time.Duration  // how long it took to show all, in this generation or the one before
	pageSize     int            // objects in one answer at most
	maxBytes     int            // bytes in one answer at most
	oversized    map[moRef]bool // objects too large for an answer: they are read by themselves
	session      *session       // of the present generation: another may be of another server
	changed      chan struct{}  // the set of objects changed; holds one
}

// watchedObject is a VM or a task that is watched, or lately was.
type watchedObject struct {
	ref       moRef
	watchers  map[*watcher]bool
	idleSince time.Time // when the last of them ended
	props     properties
	known     bool // props are what vCenter showed
	gone      bool // vCenter says that there is none

	// Of the present generation:
	shown    bool      // the poll has shown it, or has no reason to
	reAdded  bool      // it was in the view a moment ago: where it did not change meanwhile, there is nothing for the poll to show
	mustRead bool      // vCenter said that it is none, or left the view: to be read by itself
	checkAt  time.Time // when to do something about it where it was not shown
	reading  bool      // it is just being read
	attempts int       // how often something was done
	updates  int       // how often the poll brought something: what was read before is old then
	readErr  error     // why it cannot be read, by itself
}

// watcher is one Watch.
type watcher struct {
	vm, task moRef
	signal   chan struct{} // holds one: something may have changed
}

// maxPollBytes is how many bytes of an answer are read where the server does not keep to smaller ones.
const maxPollBytes = 64 << 20

// maxPageSize is how many objects are in one answer of the poll, where they are of the usual size.
const maxPageSize = 100

const (
	backoffFirst   = 250 * time.Millisecond
	backoffMax     = 30 * time.Second
	oversizedPause = 10 * time.Second      // between two reads of an object that is too large for the poll
	gatherTime     = 50 * time.Millisecond // between an update and the next poll, so that changes that come together cost one call
)

func newPoller(c *Client) *poller {
	return &poller{
		c: c, showTimeout: 2 * time.Second, lingerTime: 5 * time.Second, pageSize: maxPageSize, maxBytes: maxBody,
		objects: make(map[moRef]*watchedObject), lastAnswer: time.Now(), changed: make(chan struct{}, 1),
	}
}

// PollAge is the time since the long poll was last answered; before the first answer, since New.
func (c *Client) PollAge() time.Duration {
	c.poller.mu.Lock()
	defer c.poller.mu.Unlock()
	return time.Since(c.poller.lastAnswer)
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
		} else if len(o.watchers) == 0 && o.gone { // that was then
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

// state is what w's objects show. It is not ok while one of them is still to be shown, unless the poll is down.
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
			task.ID = firstOf(task.ID, ref.Value)
			state.Task = &task
		}
	}
	return state, ok
}

// notify wakes all who watch o. The caller holds mu.
func (o *watchedObject) notify() {
	for w := range o.watchers {
		wake(w.signal)
	}
}

// setDown says why the poll is not answered, or not understood.
func (p *poller) setDown(why error) {
	if e := (*Error)(nil); errors.As(why, &e) {
		why = e // without what was joined to it
	}
	p.c.reachability.notePoll(why)
	p.mu.Lock()
	defer p.mu.Unlock()
	if sameReason(p.down, why) {
		return
	}
	p.down = why
	for _, o := range p.objects {
		o.notify()
	}
}

// updateSet is what is needed of vmodl.query.PropertyCollector.UpdateSet: what else is in it cannot make it unreadable.
type updateSet struct {
	Version   string `json:"version"`
	Truncated *bool  `json:"truncated"`
	FilterSet []struct {
		ObjectSet []objectUpdate `json:"objectSet"`
	} `json:"filterSet"`
}

// hasMore reports whether there is more, to be had at once.
func (set *updateSet) hasMore() bool { return set.Truncated != nil && *set.Truncated }

type objectUpdate struct {
	Kind      string `json:"kind"` // enter, modify, leave
	Obj       moRef  `json:"obj"`
	ChangeSet []struct {
		Name string          `json:"name"`
		Op   string          `json:"op"` // assign, add, remove, indirectRemove
		Val  json.RawMessage `json:"val"`
	} `json:"changeSet"`
	malformed bool // it is not understood
}

// UnmarshalJSON takes what is odd in one object for that object's own: it is read by itself then, and the others are not held up. Where it cannot be
// told whose it is, the whole is not understood.
func (u *objectUpdate) UnmarshalJSON(raw []byte) error {
	type plain objectUpdate
	err := json.Unmarshal(raw, (*plain)(u))
	if err == nil {
		return nil
	}
	if *u = (objectUpdate{Obj: objectOf(raw), malformed: true}); u.Obj.Value != "" {
		return nil
	}
	return err
}

// apply takes an update in. The first of a generation is fresh; the one that shows that the poll stands also ends Down, together with what it brings.
func (p *poller) apply(set updateSet, fresh, stands bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastAnswer = time.Now()
	stood := !p.allShownAt.IsZero() && !fresh
	switch { // what is on a later page is not overdue
	case set.hasMore():
		p.allShownAt = time.Time{}
	case !stood:
		p.allShownAt = p.lastAnswer
		wake(p.changed)
	}
	if stands && p.down != nil {
		p.down = nil
		for _, o := range p.objects {
			o.notify()
		}
	}
	for _, filter := range set.FilterSet {
		for _, update := range filter.ObjectSet {
			o := p.objects[moRef{Type: update.Obj.Type, Value: update.Obj.Value}]
			if o == nil || len(o.watchers) == 0 && update.Kind == "leave" {
				continue // not watched any more
			}
			if stood && update.Kind == "enter" && !o.shown && !o.reAdded {
				p.missesAdded = false // it does show what is added
			}
			if update.Kind == "leave" { // deleted, or taken out of the view and already added again
				o.shown, o.mustRead, o.checkAt = false, true, time.Time{}
				wake(p.changed)
				continue
			}
			if update.malformed || update.Kind != "enter" && !o.known { // a part of what is not known: the whole is read
				o.shown, o.mustRead, o.checkAt = true, true, time.Time{}
				o.updates++
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
			o.setProps(props)
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

// setProps takes in what vCenter shows of o. The caller holds mu.
func (o *watchedObject) setProps(props properties) {
	o.props, o.known, o.gone, o.shown, o.mustRead, o.readErr = props, true, false, true, false, nil
	o.updates++
	o.notify()
}
