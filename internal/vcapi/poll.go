package vcapi

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

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

var (
	errRestart        = errors.New("the poll does not show an object that was added") // the next generation begins at once
	errShrunk         = errors.New("the poll's answer is too large")                  // the next generation asks for smaller ones
	errPollUnanswered = errors.New("the long poll was not answered in time")
)

// runGeneration makes collector, view and filter, and polls until something goes wrong. answered reports whether the poll was answered at all. wary: the first
// answer of the generations before was understood, a later one was not, so the first is no proof that the poll stands.
func (p *poller) runGeneration(ctx context.Context, cautious bool) (answered bool, err error) {
	s, err := p.c.vimLogin.get(ctx)
	if err != nil {
		return false, err
	}
	defer func() {
		if classOf(err) == SessionLost {
			p.c.forgetSession(s, true)
		}
	}()
	if p.session != s { // perhaps another server than before, or another release of it
		p.mu.Lock()
		p.session, p.missesAdded, p.pageSize, p.maxBytes, p.oversized, p.allShownTook = s, false, maxPageSize, maxBody, nil, 0
		p.mu.Unlock()
	}
	g := &generation{p: p, s: s, cautious: cautious, inView: make(map[moRef]bool), removed: make(map[moRef]time.Time)}
	defer func() { g.tearDown(ctx, classOf(err) == SessionLost) }()
	if err := g.setUp(ctx); err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	g.cancel, g.readSlots = cancel, make(chan struct{}, maxReaders)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := g.maintainView(ctx); err != nil {
			cancel(err)
		}
		g.readers.Wait()
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
	p         *poller
	s         *session
	cautious  bool
	created   []*serverObject // the collector, where it is not the session's, else the filter; the view
	collector moRef
	view      moRef
	cancel    context.CancelCauseFunc
	readers   sync.WaitGroup // what reads objects by themselves
	readSlots chan struct{}
	inView    map[moRef]bool
	removed   map[moRef]time.Time // from the view, lately
}

func (g *generation) call(ctx context.Context, ref *moRef, kind, method string, in, out any) error {
	return g.p.c.callVIMIn(ctx, g.s, func(*service) *moRef { return ref }, kind, method, in, out)
}

func (g *generation) setUp(ctx context.Context) error {
	// A collector of our own, because a poll whose connection was cut may still be waiting on the old one, and would take the updates away.
	collector, err := g.create(ctx, propertyCollector, "PropertyCollector", "CreatePropertyCollector", noParams)
	if err == nil {
		g.collector = collector.ref
	} else {
		var e *Error
		if errors.As(err, &e) && (e.Status == 0 || e.Class != Permanent) {
			return err
		}
		if ref := g.s.service.content.PropertyCollector; ref != nil {
			g.collector = *ref
		}
	}
	view, err := g.create(ctx, viewManager, "ViewManager", "CreateListView", noParams)
	if err != nil {
		return err
	}
	g.view = view.ref
	g.p.startGeneration()
	if err := g.syncView(ctx); err != nil {
		return err
	}
	skip := true
	return g.p.c.withSupportedProps(watchedVM, func(paths []string) error {
		_, err := g.create(ctx, objectRef(g.collector.Type, g.collector.Value), "PropertyCollector", "CreateFilter", map[string]any{
			"partialUpdates": false,
			"spec": filterSpec{TypeName: "PropertyFilterSpec",
				PropSet: []propertySpec{propertiesOf(virtualMachine, paths), propertiesOf("Task", []string{"info"})},
				ObjectSet: []objectSpec{{TypeName: "ObjectSpec", Obj: refTo("ListView", g.view.Value), Skip: &skip,
					SelectSet: []traversalSpec{{TypeName: "TraversalSpec", Type: "ListView", Path: "view"}}}},
			}})
		return err
	})
}

// create makes a part of the generation.
func (g *generation) create(ctx context.Context, obj objectFunc, kind, method string, in any) (*serverObject, error) {
	m, err := g.p.c.cleaner.create(ctx, g.s, obj, kind, method, in, nil)
	if err == nil {
		g.created = append(g.created, m)
	}
	return m, err
}

// tearDown takes down what was made: what is not reached now, later. A filter goes with a collector of our own.
func (g *generation) tearDown(ctx context.Context, lost bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	for _, m := range g.created {
		switch {
		case lost || m.ref.Type == "PropertyFilter" && g.created[0].ref.Type == "PropertyCollector":
			m.markRemoved()
		case !g.p.c.cleaner.remove(ctx, m):
			cancel() // nobody there: the other calls would only wait
		}
	}
}

// poll waits for updates until an error.
func (g *generation) poll(ctx context.Context) (answered bool, err error) {
	c := g.p.c
	version := ""
	page, most := g.p.answerLimits()
	options := map[string]any{"_typeName": "WaitOptions", "maxWaitSeconds": max(int(c.cfg.PollWait/time.Second), 1), "maxObjectUpdates": page}
	began := time.Now()
	for {
		params := map[string]any{"options": options}
		if version != "" {
			params["version"] = version
		}
		cl, err := c.newVIMCall(g.s.service, func(*service) *moRef { return &g.collector }, "PropertyCollector", "WaitForUpdatesEx", params)
		if err != nil {
			return answered, err
		}
		cl.token, cl.noRetry, cl.timeout, cl.maxBytes = g.s.token, true, c.cfg.PollWait+c.cfg.PollGrace, most
		resp, err := c.roundTrip(ctx, c.polls, cl)
		if err != nil {
			switch {
			case errors.Is(err, context.DeadlineExceeded):
				err = errors.Join(errPollUnanswered, err)
			case errors.Is(err, ErrTooLarge):
				err = g.shrinkPages(ctx, err)
			}
			return answered, err
		}
		var set updateSet // null, 204 and an empty body leave it empty: nothing changed
		if err := c.decode(cl, resp, &set); err != nil {
			return answered, err
		}
		if set.Version == "" && len(set.FilterSet) > 0 {
			return answered, c.notUnderstood(cl, resp, errors.New("updates without a version"))
		}
		stands := answered || !g.cautious
		if stands {
			c.reachability.notePoll(nil)
		}
		g.p.apply(set, !answered, stands)
		answered = true
		if set.Version == "" {
			continue
		}
		version = set.Version
		if set.hasMore() {
			continue
		}
		if !began.IsZero() { // all is shown
			g.p.noteAllShown(time.Since(began))
			began = time.Time{}
		}
		select {
		case <-ctx.Done():
			return answered, context.Cause(ctx)
		case <-time.After(gatherTime):
		}
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

// shrinkPages makes the next answers smaller, down to one object. Where even one is too large it finds out which, by reads, and keeps it apart: it is read by
// itself from then on, so that it does not take the poll of all others down.
func (g *generation) shrinkPages(ctx context.Context, err error) error {
	p := g.p
	p.mu.Lock()
	page := p.pageSize
	p.pageSize = max(1, page/4)
	byKind := make(map[string][]string)
	for ref, o := range p.objects {
		if len(o.watchers) > 0 && !p.oversized[ref] {
			byKind[ref.Type] = append(byKind[ref.Type], ref.Value)
		}
	}
	p.mu.Unlock()
	if page > 1 {
		return errShrunk
	}
	big := make(map[moRef]bool)
	for kind, ids := range byKind {
		for some := range slices.Chunk(ids, maxPageSize) {
			if err := p.c.findOversized(ctx, kind, watchedOf(kind), some, big); err != nil {
				return err
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(big) == 0 && p.maxBytes < maxPollBytes { // it does not keep to one object
		p.maxBytes *= 4
		return errShrunk
	}
	if len(big) == 0 {
		return err
	}
	if p.oversized == nil {
		p.oversized = big
	}
	maps.Copy(p.oversized, big)
	p.pageSize = maxPageSize
	return errShrunk
}

// findOversized notes in large which of the objects are too large by themselves.
func (c *Client) findOversized(ctx context.Context, kind string, paths, ids []string, large map[moRef]bool) error {
	_, err := c.retrieveOnce(ctx, kind, paths, ids)
	var e *Error
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &e), e.Status == 0, e.Class == SessionLost:
		return err
	case len(ids) == 1 && !errors.Is(err, ErrTooLarge): // gone, or not shown to us: small, that is
		return nil
	case len(ids) == 1:
		large[moRef{Type: kind, Value: ids[0]}] = true
		return nil
	}
	if err := c.findOversized(ctx, kind, paths, ids[:len(ids)/2], large); err != nil {
		return err
	}
	return c.findOversized(ctx, kind, paths, ids[len(ids)/2:], large)
}

// watchedOf are the properties of a kind of object that the poll shows.
func watchedOf(kind string) []string {
	if kind == virtualMachine {
		return watchedVM
	}
	return []string{"info"}
}

// maintainView follows the set of what is watched, and looks after what the poll does not show.
func (g *generation) maintainView(ctx context.Context) error {
	for {
		if err := g.syncView(ctx); err != nil {
			return err
		}
		next, err := g.readOverdue(ctx)
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
	add, remove := g.p.viewChanges(g.inView, g.removed)
	for len(add)+len(remove) > 0 {
		params := make(map[string]any)
		if len(add) > 0 {
			params["add"] = refList(add)
		}
		if len(remove) > 0 {
			params["remove"] = refList(remove)
		}
		var raw json.RawMessage
		err := g.call(ctx, &g.view, "ListView", "ModifyListView", params, &raw)
		if lost, rest := unresolved(err, add); lost != nil { // a server that refuses the whole call for one object
			g.inView[*lost] = true
			g.p.requestRead(*lost)
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
			g.removed[ref] = time.Now()
		}
		forEachElement(raw, func(element json.RawMessage) { // those that vCenter could not resolve
			var ref moRef
			if json.Unmarshal(element, &ref) == nil {
				g.p.requestRead(moRef{Type: ref.Type, Value: ref.Value})
			}
		})
		return nil
	}
	return nil
}

func refList(refs []moRef) []moRef {
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

// startGeneration forgets what was shown in the last one; what is known stays, until it is shown anew.
func (p *poller) startGeneration() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.allShownAt = time.Now()
	for ref, o := range p.objects {
		o.shown, o.reAdded, o.mustRead, o.reading, o.checkAt = false, false, false, false, time.Time{}
		if len(o.watchers) == 0 {
			delete(p.objects, ref)
		} else if !p.oversized[ref] {
			p.allShownAt = time.Time{} // where there is nothing to show, the first answer may take the whole wait
		}
	}
}

// viewChanges is what stands between the view and what is watched. An object is forgotten here and nowhere else, together with its removal from the view:
// one that was watched again before that is still the same.
func (p *poller) viewChanges(inView map[moRef]bool, removed map[moRef]time.Time) (add, remove []moRef) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for ref, o := range p.objects {
		switch idle := len(o.watchers) == 0; {
		case idle && inView[ref] && now.Sub(o.idleSince) < p.lingerTime:
		case idle:
			delete(p.objects, ref)
			if inView[ref] && p.oversized[ref] {
				delete(inView, ref) // it never was
			} else if inView[ref] {
				remove = append(remove, ref)
			}
		case !inView[ref] && p.oversized[ref]:
			inView[ref] = true // as far as the view goes
			o.shown, o.reAdded, o.mustRead, o.checkAt = false, false, true, time.Time{}
		case !inView[ref]:
			add = append(add, ref)
			o.shown, o.reAdded, o.checkAt = false, false, now.Add(p.showGrace())
			if _, lately := removed[ref]; lately && !p.missesAdded {
				o.reAdded, o.mustRead, o.checkAt = true, true, now.Add(min(p.showTimeout, 4*gatherTime))
			}
		}
	}
	for ref, at := range removed {
		if now.Sub(at) > 2*(p.c.cfg.PollWait+p.c.cfg.PollGrace) { // a whole poll has passed since: it would be shown as new
			delete(removed, ref)
		}
	}
	return add, remove
}

// requestRead notes that vCenter does not show an object which is watched.
func (p *poller) requestRead(ref moRef) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.objects[ref]; o != nil {
		o.mustRead, o.checkAt = true, time.Time{}
		wake(p.changed)
	}
}

// maxReaders is how many objects are read by themselves at once: fewer than there are connections, which others need, too.
const maxReaders = 8

// readOverdue reads by themselves the objects in doubt, and those that even a new generation did not show; for one that was not shown for the first
// time it asks for a new generation. It tells when to look next; the zero time: when something changes. It does not wait for what it reads: an object
// that vCenter is slow about holds nobody else up, nor those that are to be added meanwhile.
func (g *generation) readOverdue(ctx context.Context) (next time.Time, err error) {
	read, anew, next := g.p.overdue(time.Now())
	if anew {
		return next, errRestart
	}
	for ref, news := range read {
		g.readers.Go(func() {
			defer g.p.readDone(ref)
			select {
			case g.readSlots <- struct{}{}:
				defer func() { <-g.readSlots }()
				g.readObject(ctx, ref, news)
			case <-ctx.Done():
			}
		})
	}
	return next, nil
}

// readObject reads one object.
func (g *generation) readObject(ctx context.Context, ref moRef, news int) {
	all, err := g.p.c.retrieve(ctx, ref.Type, watchedOf(ref.Type), ref.Value)
	switch {
	case ctx.Err() != nil:
	case isGone(err):
		g.p.storeRead(ref, news, nil)
	case err == nil:
		g.p.storeRead(ref, news, all[ref.Value])
	case classOf(err) == SessionLost:
		g.cancel(err)
	default:
		g.p.storeReadError(ref, news, err)
	}
}

// readDone notes that an object is no longer being read.
func (p *poller) readDone(ref moRef) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.objects[ref]; o != nil {
		o.reading = false
		wake(p.changed)
	}
}

// overdue tells what should have been shown by now.
func (p *poller) overdue(now time.Time) (read map[moRef]int, anew bool, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	read = make(map[moRef]int) // with the news before
	for ref, o := range p.objects {
		due := o.checkAt
		switch {
		case len(o.watchers) == 0:
			next = earliest(next, o.idleSince.Add(p.lingerTime))
			continue
		case o.mustRead:
		case o.shown, o.gone, p.allShownAt.IsZero():
			continue
		default: // a slow first answer is not taken for one that leaves things out
			due = latest(due, p.allShownAt.Add(p.showGrace()))
		}
		if o.reading {
			continue // its end wakes
		}
		if due.After(now) {
			next = earliest(next, due)
			continue
		}
		if !o.mustRead && o.attempts == 0 {
			anew, p.missesAdded = true, true
		} else {
			read[ref], o.reading = o.updates, true
		}
		o.attempts++
		o.checkAt = now.Add(min(p.showTimeout<<min(o.attempts, 5), backoffMax))
		if p.oversized[ref] { // a read is all that shows it
			o.checkAt = now.Add(min(p.showTimeout<<min(o.attempts, 5), oversizedPause))
		}
		next = earliest(next, o.checkAt)
	}
	return read, anew, next
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// earliest takes the zero time for never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// storeRead takes in what a read of one object gave; nil: that there is none. What the poll brought meanwhile is newer.
func (p *poller) storeRead(ref moRef, news int, props properties) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.objects[ref]
	switch {
	case o == nil, o.updates != news:
	case props == nil:
		o.gone, o.mustRead, o.readErr = true, false, nil
		o.notify()
	default:
		o.props, o.known, o.gone, o.mustRead, o.readErr = props, true, false, false, nil
		o.shown = o.shown || o.reAdded
		o.notify()
	}
}

// storeReadError notes why one object cannot be read: its own watchers are told. No answer at all is a matter of the whole poll.
func (p *poller) storeReadError(ref moRef, news int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o, e := p.objects[ref], (*Error)(nil)
	if o == nil || o.updates != news || !errors.As(err, &e) || e.Status == 0 && e.Name == "" || sameReason(o.readErr, e) {
		return
	}
	o.readErr = e
	o.notify()
}
