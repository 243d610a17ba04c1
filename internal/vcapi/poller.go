package vcapi

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/guestflow/guestflow/internal/backoff"
)

// poller is the one long poll of a vCenter (PropertyCollector.WaitForUpdatesEx). It shows the changes of every VM and
// Task that is watched, so that waiting costs no call per object.
//
// The watched objects are members of a ListView, and one property filter covers the view. A watch that begins or ends
// changes the view (ModifyListView), not the filter. Collector, view and filter together are a generation. After any
// failure the poller begins a new generation and reads everything again (version ""): that finds what a server lost
// while a connection was down.
//
// Source: VI JSON, PropertyCollector.WaitForUpdatesEx, ListView.ModifyListView.
type poller struct {
	c *Client

	// showTimeout is how long the poll may take to show an object that was added.
	showTimeout time.Duration
	// lingerTime is how long an object stays in the view after its last watch, so that the next step's watch costs no
	// call.
	lingerTime time.Duration
	// firstPause is the pause after the first failure of the poll.
	firstPause time.Duration

	mu          sync.Mutex
	objects     map[moRef]*watchedObject
	down        error // why the poll is not answered; nil while it is
	lastAnswer  time.Time
	missesAdded bool // this server was seen not to show objects that were added to the view
	// When this generation had shown all objects; zero before that, and while more pages follow.
	allShownAt   time.Time
	allShownTook time.Duration  // how long that took, in this generation or the one before
	pageSize     int            // the largest number of objects in one response
	maxBytes     int            // the largest size of one response
	oversized    map[moRef]bool // objects that are too large for a response: each is read by itself
	session      *session       // of this generation; another session may be of another server
	changed      chan struct{}  // signals that the set of objects changed; holds one
}

// watchedObject is a VM or a Task that is watched, or recently was.
type watchedObject struct {
	ref       moRef
	watchers  map[*watcher]bool
	idleSince time.Time // when the last watch ended
	props     properties
	known     bool // props are what vCenter showed
	gone      bool // vCenter says that the object does not exist

	// The state in this generation:
	shown    bool      // the poll has shown the object, or has no reason to
	reAdded  bool      // it was in the view a moment ago: unless it changed meanwhile, the poll has nothing to show
	mustRead bool      // vCenter did not resolve it, or it left the view: it has to be read by itself
	checkAt  time.Time // when to act if it was not shown by then
	reading  bool      // a read of it is in flight
	attempts int       // how often the poller acted because it was not shown
	updates  int       // how often the poll showed it: an older read is outdated then
	readErr  error     // why it cannot be read by itself
}

// maxPollBytes is the most that is read of a response, from a server that does not keep to smaller pages.
const maxPollBytes = 64 << 20

// maxPageSize is the number of objects in one response of the poll, where they have the usual size.
const maxPageSize = 100

const (
	backoffFirst   = 250 * time.Millisecond
	backoffMax     = 30 * time.Second
	oversizedPause = 10 * time.Second // between two reads of an object that is too large for the poll
	// Between an update and the next poll: changes that come together cost one call.
	gatherTime = 50 * time.Millisecond
	// Between a change of what is watched and the next pass over all objects, see gather.
	shortestGather = time.Millisecond
	longestGather  = 250 * time.Millisecond
)

func newPoller(c *Client) *poller {
	return &poller{
		c:           c,
		showTimeout: 2 * time.Second,
		lingerTime:  5 * time.Second,
		firstPause:  backoffFirst,
		pageSize:    maxPageSize,
		maxBytes:    c.maxBody,
		objects:     make(map[moRef]*watchedObject),
		lastAnswer:  time.Now(),
		changed:     make(chan struct{}, 1),
	}
}

// Run keeps the long poll of this vCenter going until ctx ends, over lost connections, expired sessions and restarts of
// vCenter. It returns the cause of ctx's end.
func (c *Client) Run(ctx context.Context) error {
	pause := backoff.New(c.poller.firstPause, backoffMax)
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

		// A poll whose responses are never understood is answered each time, and is a failure all the same.
		notUnderstood := errors.Is(err, ErrNotUnderstood)
		if answered && (!notUnderstood || time.Since(began) > backoffMax) {
			failures = 0
			pause.Reset()
		}

		failures++

		// One cut connection or expired session is not reported: the next generation is up within a second.
		if failures > 1 || errors.Is(err, errPollUnanswered) {
			c.poller.setDown(err)
		}

		cautious = notUnderstood && failures > 1

		if err := pause.Wait(ctx); err != nil {
			return err
		}
	}

	return context.Cause(ctx)
}

// PollAge is the time since the long poll was last answered; before the first response, the time since New.
func (c *Client) PollAge() time.Duration {
	c.poller.mu.Lock()
	defer c.poller.mu.Unlock()
	return time.Since(c.poller.lastAnswer)
}

// setDown records why the poll is not answered, or not understood, and tells every watcher.
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

// useSession begins to poll in s. Another session may be of another server, or of another release of it: what was
// learned about the one before does not count.
func (p *poller) useSession(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.session == s {
		return
	}
	p.session = s
	p.missesAdded, p.allShownTook = false, 0
	p.pageSize, p.maxBytes, p.oversized = maxPageSize, p.c.maxBody, nil
}

// answerLimits is how large one response may be, in objects and in bytes.
func (p *poller) answerLimits() (objects, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pageSize, p.maxBytes
}

// noteAllShown records how long this server takes to show all objects.
func (p *poller) noteAllShown(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.allShownTook = took
}

// showGrace is how long the poll may take to show an object that was added. It follows the speed of the server: a slow
// one is not taken for one that leaves objects out. The caller holds mu.
func (p *poller) showGrace() time.Duration {
	return max(p.showTimeout, min(2*p.allShownTook, backoffMax))
}

// notify wakes all watchers of o. The caller holds poller.mu.
func (o *watchedObject) notify() {
	for w := range o.watchers {
		wake(w.signal)
	}
}

// setProps stores what the poll showed of o. The caller holds poller.mu.
func (o *watchedObject) setProps(props properties) {
	o.props, o.known, o.gone = props, true, false
	o.shown, o.mustRead, o.readErr = true, false, nil
	o.updates++
	o.notify()
}

// watchedProps are the properties of a kind of object that the poll shows.
func watchedProps(kind string) []string {
	if kind == virtualMachine {
		return watchedVM
	}
	return []string{"info"}
}
