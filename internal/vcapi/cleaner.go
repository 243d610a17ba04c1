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
type cleaner struct {
	c *Client

	acceptCtx     context.Context // ended when Close begins: nothing new is made
	stopAccepting context.CancelFunc
	lifetime      context.Context // ended when Close is through
	endLifetime   context.CancelFunc
	running       sync.WaitGroup // creations, and the work on what is owed

	mu       sync.Mutex
	closed   bool
	retrying bool
	pending  []*serverObject
}

// serverObject is one thing on vCenter that is ours to take down.
type serverObject struct {
	ref        moRef
	session    *session // it goes with this one
	removeCall *call    // takes it down
	onRemoved  func()   // told once, when it is; may be nil
}

const (
	// maxUnnamed is how many things of one session may be there under names that nobody heard; vCenter allows it 32 collectors of a kind.
	maxUnnamed = 8
	// maxPending is how many of one session wait to be taken down, before the whole session is.
	maxPending = 32
	// maxPendingSessions is how many sessions wait for their end; an older one is left to vCenter's idle time-out.
	maxPendingSessions = 16
	removeBackoffMax   = 5 * time.Second // between two tries
)

// removalMethods tells how what a method makes is removed.
var removalMethods = map[string]struct{ kind, method string }{
	createHistoryCollector:    {"TaskHistoryCollector", "DestroyCollector"},
	"CreatePropertyCollector": {"PropertyCollector", "DestroyPropertyCollector"},
	"CreateListView":          {"ListView", "DestroyView"},
	"CreateFilter":            {"PropertyFilter", "DestroyPropertyFilter"},
}

const createHistoryCollector = "CreateCollectorForTasks"

func newCleaner(c *Client) *cleaner {
	k := &cleaner{c: c}
	k.acceptCtx, k.stopAccepting = context.WithCancel(context.Background())
	k.lifetime, k.endLifetime = context.WithCancel(context.Background())
	return k
}

// startWork counts one goroutine more, unless the client is closed.
func (k *cleaner) startWork() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.closed {
		k.running.Add(1)
	}
	return !k.closed
}

// detach is ctx without its end, but with that of until.
func detach(ctx, until context.Context) (context.Context, func()) {
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(until, func() { cancel(errClosed) })
	return own, func() { stop(); cancel(nil) }
}

// create makes a thing within s by one of the methods in takenDown. Where ctx ends before the answer comes, what comes is taken down again.
func (k *cleaner) create(ctx context.Context, s *session, obj objectFunc, kind, method string, in any, gone func()) (*serverObject, error) {
	if gone == nil {
		gone = func() {}
	}
	if ctx.Err() != nil || !k.startWork() {
		gone()
		return nil, k.c.noSessionError(cmp.Or(context.Cause(ctx), errClosed), Transient)
	}
	type result struct {
		m   *serverObject
		err error
	}
	done := make(chan result)
	go func() {
		defer k.running.Done()
		own, release := detach(ctx, k.acceptCtx)
		defer release()
		m, err := k.sendCreate(own, s, obj, kind, method, in)
		if err != nil {
			gone()
		} else {
			m.onRemoved = sync.OnceFunc(gone)
		}
		select {
		case done <- result{m, err}:
		case <-ctx.Done():
			if m != nil {
				k.remove(own, m)
			}
		}
	}()
	select {
	case r := <-done:
		return r.m, r.err
	case <-ctx.Done():
		return nil, k.c.canceledError(ctx, method)
	}
}

func (k *cleaner) sendCreate(ctx context.Context, s *session, obj objectFunc, kind, method string, in any) (*serverObject, error) {
	m, by := &serverObject{session: s}, removalMethods[method]
	cl, err := k.c.newVIMCall(s.service, obj, kind, method, in)
	if err != nil {
		return nil, err
	}
	cl.token, cl.noRetry = s.token, true // the transport's own repeat could make two
	resp, err := k.c.roundTrip(ctx, k.c.reads, cl)
	if err == nil {
		if err = k.c.decode(cl, resp, &m.ref); err == nil && m.ref.Value == "" {
			err = k.c.notUnderstood(cl, resp, errors.New("it names no "+by.kind))
		}
		m.ref = moRef{Type: by.kind, Value: m.ref.Value}
	}
	if e := (*Error)(nil); errors.As(err, &e) && mayHaveCreated(e) && s.unnamedObjects.Add(1) >= maxUnnamed {
		k.c.forgetSession(s, false)
	}
	if err != nil {
		return nil, err
	}
	if method == createHistoryCollector {
		s.historyCollectors.Add(1)
	}
	m.removeCall, err = k.c.newVIMCall(s.service, objectRef(by.kind, m.ref.Value), by.kind, by.method, noParams)
	if err != nil {
		return nil, err
	}
	m.removeCall.token = s.token
	return m, nil
}

// mayHaveCreated reports whether an error may hide that something was made: no answer came, or none that tells.
func mayHaveCreated(e *Error) bool {
	return e.Sent != NotSent && (e.Status == 0 || e.Status < 300 || e.Status >= 500 && e.Name == "")
}

// canceledError is the error of a caller whose time ended before the answer came.
func (c *Client) canceledError(ctx context.Context, op string) *Error {
	why := context.Cause(ctx)
	return (&Error{Class: Transient, Message: c.secrets.redactor().text(why.Error()), Err: why}).withCall(op, "", c.host)
}

// remove removes m now, if it can within ctx, and reports whether it could; else it is removed later.
func (k *cleaner) remove(ctx context.Context, m *serverObject) bool {
	if ctx.Err() == nil {
		if gone, _ := k.tryRemove(ctx, m); gone {
			return true
		}
	}
	k.removeLater(m)
	return false
}

// tryRemove tries once. gone: nothing is left to be done, for it is gone, unknown to vCenter, or refused for good. answered: somebody is there.
func (k *cleaner) tryRemove(ctx context.Context, m *serverObject) (gone, answered bool) {
	_, err := k.c.roundTrip(ctx, k.c.reads, m.removeCall)
	if e := (*Error)(nil); err != nil && (!errors.As(err, &e) || e.Status == 0 || e.Class == Transient) {
		return false, e != nil && e.Status != 0
	}
	m.markRemoved()
	return true, true
}

// isSession reports whether m is a whole session.
func (m *serverObject) isSession() bool { return m.ref.Value == "" }

func (m *serverObject) markRemoved() {
	if m.onRemoved != nil {
		m.onRemoved()
	}
}

// removeLater keeps m until it is gone. The session itself is such a thing: what was made in it goes with it.
func (k *cleaner) removeLater(m *serverObject) {
	if k.enqueue(m) == maxPending {
		k.c.forgetSession(m.session, false) // its end is owed then
	}
}

// enqueue adds m to what is owed, and gives how much of its session is.
func (k *cleaner) enqueue(m *serverObject) (things int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed && !m.isSession() { // its session ends with the client
		m.markRemoved()
		return 0
	}
	k.pending = append(k.pending, m)
	sessions := 0
	for _, other := range k.pending {
		switch {
		case other.isSession():
			sessions++
		case other.session == m.session:
			things++
		}
	}
	if sessions > maxPendingSessions {
		k.dropPending(slices.IndexFunc(k.pending, (*serverObject).isSession))
	}
	if !k.retrying && !k.closed {
		k.retrying = true
		k.running.Add(1)
		go k.retryLoop()
	}
	return things
}

// logoutLater is owed for a session that is not used any more.
func (k *cleaner) logoutLater(s *session) {
	if s.logoutCall != nil {
		k.enqueue(&serverObject{session: s, removeCall: s.logoutCall})
	}
}

// dropPending takes one off the list. The caller holds mu.
func (k *cleaner) dropPending(i int) {
	m := k.pending[i]
	k.pending = slices.Delete(k.pending, i, i+1)
	m.markRemoved()
}

// markDone takes m off the list, and with a session all that was in it.
func (k *cleaner) markDone(m *serverObject) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := len(k.pending) - 1; i >= 0; i-- {
		if o := k.pending[i]; o == m || m.isSession() && o.session == m.session {
			k.dropPending(i)
		}
	}
}

// retryLoop takes down what is owed until nothing is.
func (k *cleaner) retryLoop() {
	defer k.running.Done()
	for pause := backoffFirst; ; pause = min(2*pause, removeBackoffMax) {
		if k.retryOnce() {
			pause = backoffFirst
		}
		k.mu.Lock()
		if len(k.pending) == 0 || k.closed {
			k.retrying = false
			k.mu.Unlock()
			return
		}
		k.mu.Unlock()
		select {
		case <-k.acceptCtx.Done():
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
	}
}

// retryOnce tries each once, sessions first; it ends with the first that is not answered: the others would only wait, too.
func (k *cleaner) retryOnce() (progress bool) {
	k.mu.Lock()
	list := slices.Clone(k.pending)
	k.mu.Unlock()
	for _, m := range append(slices.DeleteFunc(slices.Clone(list), func(m *serverObject) bool { return !m.isSession() }), list...) {
		if !k.isPending(m) {
			continue
		}
		if k.acceptCtx.Err() != nil {
			return progress
		}
		switch gone, answered := k.tryRemove(k.lifetime, m); {
		case gone:
			k.markDone(m)
			progress = true
		case !answered:
			return progress
		}
	}
	return progress
}

func (k *cleaner) isPending(m *serverObject) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Contains(k.pending, m)
}

// shutDown lets nothing new be made, waits within ctx for what is on its way, and gives the sessions that are still to be ended.
func (k *cleaner) shutDown(ctx context.Context) (sessions []*session) {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.stopAccepting()
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.running.Wait()
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.pending) > 0 {
		if m := k.pending[0]; m.isSession() {
			sessions = append(sessions, m.session)
		}
		k.dropPending(0)
	}
	return sessions
}
