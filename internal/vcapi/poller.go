package vcapi

import (
	"context"
	"errors"
	"math/rand/v2"
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

// Run keeps the long poll of this vCenter going until ctx ends, over lost connections, expired sessions and restarts of vCenter; it returns ctx's cause.
func (c *Client) Run(ctx context.Context) error {
	failures, cautious := 0, false
	for ctx.Err() == nil {
		began := time.Now()
		answered, err := c.poller.runGeneration(ctx, cautious)
		if errors.Is(err, errRestart) || errors.Is(err, errShrunk) {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		odd := errors.Is(err, ErrNotUnderstood)
		if answered && (!odd || time.Since(began) > backoffMax) { // else it may be answered, and not understood, for ever
			failures = 0
		}
		if failures++; failures > 1 || errors.Is(err, errPollUnanswered) {
			c.poller.setDown(err) // a single cut, or an expired session, is not worth telling: the next generation stands within a second
		}
		cautious = odd && failures > 1
		pause := min(backoffFirst<<min(failures-1, 10), backoffMax)
		pause = pause/2 + rand.N(pause/2)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return context.Cause(ctx)
}

// PollAge is the time since the long poll was last answered; before the first answer, since New.
func (c *Client) PollAge() time.Duration {
	c.poller.mu.Lock()
	defer c.poller.mu.Unlock()
	return time.Since(c.poller.lastAnswer)
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

// answerLimits is how large an answer may be, in objects and in bytes.
func (p *poller) answerLimits() (objects, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pageSize, p.maxBytes
}

// noteAllShown notes how long this server takes to show all that there is.
func (p *poller) noteAllShown(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.allShownTook = took
}

// showGrace is how long the poll may take to show an object that was added: a slow server is not taken for one that leaves things out. The caller holds mu.
func (p *poller) showGrace() time.Duration {
	return max(p.showTimeout, min(2*p.allShownTook, backoffMax))
}

// notify wakes all who watch o. The caller holds mu.
func (o *watchedObject) notify() {
	for w := range o.watchers {
		wake(w.signal)
	}
}

// setProps takes in what vCenter shows of o. The caller holds mu.
func (o *watchedObject) setProps(props properties) {
	o.props, o.known, o.gone, o.shown, o.mustRead, o.readErr = props, true, false, true, false, nil
	o.updates++
	o.notify()
}

// watchedOf are the properties of a kind of object that the poll shows.
func watchedOf(kind string) []string {
	if kind == virtualMachine {
		return watchedVM
	}
	return []string{"info"}
}
