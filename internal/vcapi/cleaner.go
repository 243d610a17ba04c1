package vcapi

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/guestflow/guestflow/internal/backoff"
)

// cleaner removes what the client created on vCenter: collectors, views, filters and sessions. Such an object outlives
// the response that names it and the caller who wanted it. vCenter removes it only with its session, and a session in
// use never ends. So the cleaner is responsible for each object from before the call that creates it is sent until
// vCenter says that the object is gone:
//
//   - An object is created under a context of its own (create; of sessions login.get): its response is awaited even
//     when the caller has given up.
//   - An object that could not be removed is pending, and is tried again until it is gone, or its session is.
//   - When a response was lost, an object may exist whose name is not known. These are counted, and the session is
//     replaced before they are many: the end of a session removes all that was created in it.
//   - A session that is no longer used is such an object, too. One whose own response was lost has no name: to find it
//     takes the privilege Sessions.TerminateSession, which nothing else needs. So it is left to vCenter's idle timeout,
//     and logins are spaced out (login.record).
//
// Not its business: effects leave Tasks and programs, which the run follows, and InitiateFileTransferFromGuest leaves a
// URL for one use, which expires by itself and which no method takes back.
type cleaner struct {
	c *Client

	acceptCtx     context.Context // ends when Close begins: nothing new is created
	stopAccepting context.CancelFunc
	lifetime      context.Context // ends when Close is done
	endLifetime   context.CancelFunc
	running       sync.WaitGroup // goroutines that create, and the one that retries removals

	mu       sync.Mutex
	closed   bool
	retrying bool
	pending  []*serverObject
}

// serverObject is one object on vCenter that the client has to remove.
type serverObject struct {
	ref        moRef    // zero for a session
	session    *session // vCenter removes the object with this session
	removeCall *call
	onRemoved  func() // called once, when the object is gone; may be nil
}

const (
	// maxUnnamed is how many objects of one session may exist under names that are not known. vCenter allows a session
	// 32 collectors of a kind.
	maxUnnamed = 8
	// maxPending is how many objects of one session wait for their removal before the whole session is ended.
	maxPending = 32
	// maxPendingSessions is how many sessions wait for their end; older ones are left to vCenter's idle timeout.
	maxPendingSessions = 16
	// removeBackoffMax is the longest pause between two tries.
	removeBackoffMax = 5 * time.Second
)

// removalMethods are the methods that remove what a method creates.
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

// startWork counts one more goroutine. It returns false where the client is closed.
func (k *cleaner) startWork() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.closed {
		k.running.Add(1)
	}
	return !k.closed
}

// detach is ctx with the end of until in place of its own.
func detach(ctx, until context.Context) (context.Context, func()) {
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(until, func() { cancel(errClosed) })
	return own, func() { stop(); cancel(nil) }
}

// create creates an object in s by one of the methods in removalMethods. Where ctx ends before the response comes, the
// object is removed when it comes. gone, where not nil, is called once, when the object does not exist, or no longer.
func (k *cleaner) create(
	ctx context.Context, s *session, obj objectFunc, kind, method string, in any, gone func(),
) (*serverObject, error) {
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

// sendCreate makes the call that creates an object, and prepares the one that removes it.
func (k *cleaner) sendCreate(
	ctx context.Context, s *session, obj objectFunc, kind, method string, in any,
) (*serverObject, error) {
	cl, err := k.c.newVIMCall(s.service, obj, kind, method, in)
	if err != nil {
		return nil, err
	}

	cl.token, cl.noRetry = s.token, true // a repeat by the transport could create two

	m, removal := &serverObject{session: s}, removalMethods[method]
	resp, err := k.c.roundTrip(ctx, k.c.reads, cl)
	if err == nil {
		if err = k.c.decode(cl, resp, &m.ref); err == nil && m.ref.Value == "" {
			err = k.c.notUnderstood(cl, resp, errors.New("it names no "+removal.kind))
		}
		m.ref = moRef{Type: removal.kind, Value: m.ref.Value}
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

	m.removeCall, err = k.c.newVIMCall(
		s.service, objectRef(removal.kind, m.ref.Value), removal.kind, removal.method, noParams,
	)
	if err != nil {
		return nil, err
	}

	m.removeCall.token = s.token
	return m, nil
}

// mayHaveCreated reports whether the object may exist in spite of the error: no response came, or none that says.
func mayHaveCreated(e *Error) bool {
	return e.Sent != NotSent && (e.Status == 0 || e.Status < 300 || e.Status >= 500 && e.Name == "")
}

// canceledError is the error for a caller whose context ended before the response came.
func (c *Client) canceledError(ctx context.Context, op string) *Error {
	why := context.Cause(ctx)
	e := &Error{Class: Transient, Message: c.secrets.redactor().text(why.Error()), Err: why}
	return e.withCall(op, "", c.host)
}

// remove removes m now, if it can within ctx, and reports whether it could; else m is removed later.
func (k *cleaner) remove(ctx context.Context, m *serverObject) bool {
	if ctx.Err() == nil {
		if gone, _ := k.tryRemove(ctx, m); gone {
			return true
		}
	}
	k.removeLater(m)
	return false
}

// tryRemove tries once. gone means that nothing is left to do: m is removed, unknown to vCenter, or vCenter refuses for
// good. answered reports whether there was a response.
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

// removeLater keeps m until it is gone. Where too many objects of its session wait, the whole session is ended.
func (k *cleaner) removeLater(m *serverObject) {
	if k.enqueue(m) == maxPending {
		k.c.forgetSession(m.session, false)
	}
}

// enqueue adds m to what is pending, starts the retries, and returns how many objects of its session are pending.
func (k *cleaner) enqueue(m *serverObject) (ofSession int) {
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
			ofSession++
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

	return ofSession
}

// logoutLater ends a session that is no longer used.
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

// markDone takes m off the list, and with a session all that was created in it.
func (k *cleaner) markDone(m *serverObject) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := len(k.pending) - 1; i >= 0; i-- {
		if o := k.pending[i]; o == m || m.isSession() && o.session == m.session {
			k.dropPending(i)
		}
	}
}

// retryLoop tries to remove what is pending until nothing is.
func (k *cleaner) retryLoop() {
	defer k.running.Done()
	for pause := backoff.New(backoffFirst, removeBackoffMax); ; {
		if k.retryOnce() {
			pause.Reset()
		}

		k.mu.Lock()
		if len(k.pending) == 0 || k.closed {
			k.retrying = false
			k.mu.Unlock()
			return
		}

		k.mu.Unlock()

		_ = pause.Wait(k.acceptCtx) // a cleaner that closes tries what is left once more
	}
}

// retryOnce tries each object once, sessions first. It stops at the first that is not answered: the others would only
// wait, too. progress reports whether anything was removed.
func (k *cleaner) retryOnce() (progress bool) {
	k.mu.Lock()
	list := slices.Clone(k.pending)
	k.mu.Unlock()

	sessions := slices.DeleteFunc(slices.Clone(list), func(m *serverObject) bool { return !m.isSession() })
	for _, m := range append(sessions, list...) {
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

// shutDown lets nothing new be created, waits within ctx for the calls in flight, and returns the sessions that are
// still to be ended.
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
