package vcapi

import (
	"context"
	"errors"
	"sync"
	"time"
)

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
