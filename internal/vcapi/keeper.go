package vcapi

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// What is made on vCenter outlives the answer that names it, and the caller who wanted it; vCenter itself removes it with its session only, and a session
// that is in use never ends. So each thing that is made there has an owner, from before its call is sent until vCenter says that it is gone:
//
//   - it is made under a context of its own (create; of sessions login.get): the answer is awaited also when its caller has given up;
//   - what could not be taken down is owed, and tried again until it is gone, or its session is;
//   - what may have been made under a name that nobody heard (the answer was lost) is counted, and its session is changed before that is many: ending
//     a session removes all that was made in it;
//   - a session that is not used any more is such a thing itself. One whose own answer was lost has no name: to find it takes the privilege
//     Sessions.TerminateSession, which nothing else needs, so it is left to vCenter's idle time-out, and logins are spaced (login.keep).
//
// What makes nothing of the kind: acts leave Tasks and programs, which the run follows; InitiateFileTransferFromGuest leaves a URL, for one use, which
// ends by itself and which no method takes back.
type keeper struct {
	c *Client

	closing context.Context // ended when Close begins: nothing new is made
	close   context.CancelFunc
	over    context.Context // ended when Close is through
	end     context.CancelFunc
	all     sync.WaitGroup // creations, and the work on what is owed

	mu      sync.Mutex
	closed  bool
	working bool
	owed    []*made
}

// made is one thing on vCenter that is ours to take down.
type made struct {
	ref  moRef
	in   *session // it goes with this one
	down *call    // takes it down
	gone func()   // told once, when it is; may be nil
}

const (
	// mostLost is how many things of one session may be there under names that nobody heard; vCenter allows it 32 collectors of a kind.
	mostLost = 8
	// mostOwed is how many of one session wait to be taken down, before the whole session is.
	mostOwed = 32
	// mostSessions is how many sessions wait for their end; an older one is left to vCenter's idle time-out.
	mostSessions = 16
	owedMost     = 5 * time.Second // between two tries
)

// takenDown tells how what a method makes is removed.
var takenDown = map[string]struct{ kind, method string }{
	historyCollector:          {"TaskHistoryCollector", "DestroyCollector"},
	"CreatePropertyCollector": {"PropertyCollector", "DestroyPropertyCollector"},
	"CreateListView":          {"ListView", "DestroyView"},
	"CreateFilter":            {"PropertyFilter", "DestroyPropertyFilter"},
}

const historyCollector = "CreateCollectorForTasks"

func newKeeper(c *Client) *keeper {
	k := &keeper{c: c}
	k.closing, k.close = context.WithCancel(context.Background())
	k.over, k.end = context.WithCancel(context.Background())
	return k
}

// begin counts one goroutine more, unless the client is closed.
func (k *keeper) begin() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.closed {
		k.all.Add(1)
	}
	return !k.closed
}

// apart is ctx without its end, but with that of until.
func apart(ctx, until context.Context) (context.Context, func()) {
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(until, func() { cancel(errClosed) })
	return own, func() { stop(); cancel(nil) }
}

// create makes a thing within s by one of the methods in takenDown. Where ctx ends before the answer comes, what comes is taken down again.
func (k *keeper) create(ctx context.Context, s *session, obj object, kind, method string, in any, gone func()) (*made, error) {
	if gone == nil {
		gone = func() {}
	}
	if ctx.Err() != nil || !k.begin() {
		gone()
		return nil, k.c.noSession(cmp.Or(context.Cause(ctx), errClosed), Transient)
	}
	type result struct {
		m   *made
		err error
	}
	done := make(chan result)
	go func() {
		defer k.all.Done()
		own, release := apart(ctx, k.closing)
		defer release()
		m, err := k.make(own, s, obj, kind, method, in)
		if err != nil {
			gone()
		} else {
			m.gone = sync.OnceFunc(gone)
		}
		select {
		case done <- result{m, err}:
		case <-ctx.Done():
			if m != nil {
				k.takeDown(own, m)
			}
		}
	}()
	select {
	case r := <-done:
		return r.m, r.err
	case <-ctx.Done():
		return nil, k.c.givenUp(ctx, method)
	}
}

func (k *keeper) make(ctx context.Context, s *session, obj object, kind, method string, in any) (*made, error) {
	m, by := &made{in: s}, takenDown[method]
	cl, err := k.c.vimCall(s.service, obj, kind, method, in)
	if err != nil {
		return nil, err
	}
	cl.token, cl.once = s.token, true // the transport's own repeat could make two
	ans, err := k.c.exchange(ctx, k.c.reads, cl)
	if err == nil {
		if err = k.c.decode(cl, ans, &m.ref); err == nil && m.ref.Value == "" {
			err = k.c.notUnderstood(cl, ans, errors.New("it names no "+by.kind))
		}
		m.ref = moRef{Type: by.kind, Value: m.ref.Value}
	}
	if e := (*Error)(nil); errors.As(err, &e) && nameless(e) && s.lost.Add(1) >= mostLost {
		k.c.forget(s, false)
	}
	if err != nil {
		return nil, err
	}
	if method == historyCollector {
		s.histories.Add(1)
	}
	m.down, err = k.c.vimCall(s.service, at(by.kind, m.ref.Value), by.kind, by.method, none)
	if err != nil {
		return nil, err
	}
	m.down.token = s.token
	return m, nil
}

// nameless reports whether an error may hide that something was made: no answer came, or none that tells.
func nameless(e *Error) bool {
	return e.Sent != NotSent && (e.Status == 0 || e.Status < 300 || e.Status >= 500 && e.Name == "")
}

// givenUp is the error of a caller whose time ended before the answer came.
func (c *Client) givenUp(ctx context.Context, op string) *Error {
	why := context.Cause(ctx)
	return (&Error{Class: Transient, Message: c.known.veil().text(why.Error()), Err: why}).fill(op, "", c.host)
}

// takeDown removes m now, if it can within ctx, and reports whether it could; else it is removed later.
func (k *keeper) takeDown(ctx context.Context, m *made) bool {
	if ctx.Err() == nil {
		if gone, _ := k.down(ctx, m); gone {
			return true
		}
	}
	k.owe(m)
	return false
}

// down tries once. gone: nothing is left to be done, for it is gone, unknown to vCenter, or refused for good. answered: somebody is there.
func (k *keeper) down(ctx context.Context, m *made) (gone, answered bool) {
	_, err := k.c.exchange(ctx, k.c.reads, m.down)
	if e := (*Error)(nil); err != nil && (!errors.As(err, &e) || e.Status == 0 || e.Class == Transient) {
		return false, e != nil && e.Status != 0
	}
	m.removed()
	return true, true
}

// session reports whether m is a whole session.
func (m *made) session() bool { return m.ref.Value == "" }

func (m *made) removed() {
	if m.gone != nil {
		m.gone()
	}
}

// owe keeps m until it is gone. The session itself is such a thing: what was made in it goes with it.
func (k *keeper) owe(m *made) {
	if k.list(m) == mostOwed {
		k.c.forget(m.in, false) // its end is owed then
	}
}

// list adds m to what is owed, and gives how much of its session is.
func (k *keeper) list(m *made) (things int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed && !m.session() { // its session ends with the client
		m.removed()
		return 0
	}
	k.owed = append(k.owed, m)
	sessions := 0
	for _, other := range k.owed {
		switch {
		case other.session():
			sessions++
		case other.in == m.in:
			things++
		}
	}
	if sessions > mostSessions {
		k.drop(slices.IndexFunc(k.owed, (*made).session))
	}
	if !k.working && !k.closed {
		k.working = true
		k.all.Add(1)
		go k.work()
	}
	return things
}

// ended is owed for a session that is not used any more.
func (k *keeper) ended(s *session) {
	if s.end != nil {
		k.list(&made{in: s, down: s.end})
	}
}

// drop takes one off the list. The caller holds mu.
func (k *keeper) drop(i int) {
	m := k.owed[i]
	k.owed = slices.Delete(k.owed, i, i+1)
	m.removed()
}

// settled takes m off the list, and with a session all that was in it.
func (k *keeper) settled(m *made) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := len(k.owed) - 1; i >= 0; i-- {
		if o := k.owed[i]; o == m || m.session() && o.in == m.in {
			k.drop(i)
		}
	}
}

// work takes down what is owed until nothing is.
func (k *keeper) work() {
	defer k.all.Done()
	for pause := backoffFirst; ; pause = min(2*pause, owedMost) {
		if k.round() {
			pause = backoffFirst
		}
		k.mu.Lock()
		if len(k.owed) == 0 || k.closed {
			k.working = false
			k.mu.Unlock()
			return
		}
		k.mu.Unlock()
		select {
		case <-k.closing.Done():
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
	}
}

// round tries each once, sessions first; it ends with the first that is not answered: the others would only wait, too.
func (k *keeper) round() (progress bool) {
	k.mu.Lock()
	list := slices.Clone(k.owed)
	k.mu.Unlock()
	for _, m := range append(slices.DeleteFunc(slices.Clone(list), func(m *made) bool { return !m.session() }), list...) {
		if !k.owes(m) {
			continue
		}
		if k.closing.Err() != nil {
			return progress
		}
		switch gone, answered := k.down(k.over, m); {
		case gone:
			k.settled(m)
			progress = true
		case !answered:
			return progress
		}
	}
	return progress
}

func (k *keeper) owes(m *made) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Contains(k.owed, m)
}

// shut lets nothing new be made, waits within ctx for what is on its way, and gives the sessions that are still to be ended.
func (k *keeper) shut(ctx context.Context) (sessions []*session) {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.all.Wait()
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.owed) > 0 {
		if m := k.owed[0]; m.session() {
			sessions = append(sessions, m.in)
		}
		k.drop(0)
	}
	return sessions
}
