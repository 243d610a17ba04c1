package vcapi

import (
	"context"
	"errors"
	"sync"
	"time"
)

var (
	// The next generation begins at once.
	errRestart = errors.New("the poll does not show an object that was added")
	// The next generation asks for smaller pages.
	errShrunk         = errors.New("the poll's answer is too large")
	errPollUnanswered = errors.New("the long poll was not answered in time")
)

// generation is what was created on the server for one stretch of polling.
type generation struct {
	p         *poller
	s         *session
	cautious  bool            // see runGeneration
	created   []*serverObject // collector (where it is not the session's own), view and filter
	collector moRef
	view      moRef
	cancel    context.CancelCauseFunc
	readers   sync.WaitGroup // the reads of single objects
	readSlots chan struct{}
	inView    map[moRef]bool
	passTook  time.Duration       // how long the last pass over all objects took, of maintainView
	removed   map[moRef]time.Time // objects that were recently removed from the view
}

// runGeneration creates collector, view and filter, and polls until something fails. answered reports whether the poll
// was answered at all.
//
// cautious means that in the generations before the first response was understood and a later one was not: then the
// first response does not prove that the poll works.
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

	p.useSession(s)

	g := &generation{
		p:         p,
		s:         s,
		cautious:  cautious,
		readSlots: make(chan struct{}, maxReaders),
		inView:    make(map[moRef]bool),
		removed:   make(map[moRef]time.Time),
	}

	defer func() { g.tearDown(ctx, classOf(err) == SessionLost) }()
	if err := g.setUp(ctx); err != nil {
		return false, err
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	g.cancel = cancel
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
		err = cause // maintainView's error, or the caller's
	}

	cancel(err)
	<-done
	return answered, err
}

// startGeneration resets what belongs to one generation. What is known of the objects stays until the poll shows them
// anew.
func (p *poller) startGeneration() {
	p.mu.Lock()
	defer p.mu.Unlock()

	p.allShownAt = time.Now()
	for ref, o := range p.objects {
		o.shown, o.reAdded, o.mustRead, o.reading, o.checkAt = false, false, false, false, time.Time{}
		if len(o.watchers) == 0 {
			delete(p.objects, ref)
		} else if !p.oversized[ref] {
			p.allShownAt = time.Time{} // with nothing to show, the first response may take the whole PollWait
		}
	}
}

// call calls a method of the generation's view or collector, in its session.
func (g *generation) call(ctx context.Context, ref *moRef, kind, method string, in, out any) error {
	return g.p.c.callVIMIn(ctx, g.s, func(*service) *moRef { return ref }, kind, method, in, out)
}

// setUp creates collector, view and filter.
func (g *generation) setUp(ctx context.Context) error {
	if err := g.createCollector(ctx); err != nil {
		return err
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

	return g.createFilter(ctx)
}

// createCollector creates a collector for this generation: a poll whose connection was cut may still wait on the old
// one, and would take the updates away. Where vCenter refuses that, the session's own collector is used.
func (g *generation) createCollector(ctx context.Context) error {
	collector, err := g.create(ctx, propertyCollector, "PropertyCollector", "CreatePropertyCollector", noParams)
	if err == nil {
		g.collector = collector.ref
		return nil
	}

	var e *Error
	if errors.As(err, &e) && (e.Status == 0 || e.Class != Permanent) {
		return err
	}
	if ref := g.s.service.content.PropertyCollector; ref != nil {
		g.collector = *ref
	}

	return nil
}

// createFilter creates the filter that covers all VMs and Tasks in the view.
func (g *generation) createFilter(ctx context.Context) error {
	skip := true
	objects := []objectSpec{{
		TypeName:  "ObjectSpec",
		Obj:       refTo("ListView", g.view.Value),
		Skip:      &skip,
		SelectSet: []traversalSpec{{TypeName: "TraversalSpec", Type: "ListView", Path: "view"}},
	}}

	collector := objectRef(g.collector.Type, g.collector.Value)

	return g.p.c.withSupportedProps(watchedVM, func(paths []string) error {
		_, err := g.create(ctx, collector, "PropertyCollector", "CreateFilter", map[string]any{
			"partialUpdates": false,
			"spec": filterSpec{
				TypeName: "PropertyFilterSpec",
				PropSet: []propertySpec{
					propertiesOf(virtualMachine, paths),
					propertiesOf("Task", watchedProps("Task")),
				},
				ObjectSet: objects,
			},
		})
		return err
	})
}

// create creates a part of the generation, and notes it for tearDown.
func (g *generation) create(ctx context.Context, obj objectFunc, kind, method string, in any) (*serverObject, error) {
	m, err := g.p.c.cleaner.create(ctx, g.s, obj, kind, method, in, nil)
	if err == nil {
		g.created = append(g.created, m)
	}
	return m, err
}

// tearDown removes what was created; what vCenter does not answer now is removed later. lost means that the session is
// gone, and all of it with the session. A filter goes with its collector.
func (g *generation) tearDown(ctx context.Context, lost bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	for _, m := range g.created {
		switch {
		case lost || m.ref.Type == "PropertyFilter" && g.created[0].ref.Type == "PropertyCollector":
			m.markRemoved()
		case !g.p.c.cleaner.remove(ctx, m):
			cancel() // vCenter does not answer: the other calls would only wait
		}
	}
}

// poll waits for updates until an error. answered reports whether the poll was answered at all.
func (g *generation) poll(ctx context.Context) (answered bool, err error) {
	version := ""
	began := time.Now()
	pageSize, maxBytes := g.p.answerLimits()
	for {
		set, err := g.waitForUpdates(ctx, version, pageSize, maxBytes)
		if err != nil {
			return answered, err
		}

		works := answered || !g.cautious
		if works {
			g.p.c.reachability.notePoll(nil)
		}

		g.p.apply(set, !answered, works)
		answered = true

		if set.Version == "" {
			continue
		}

		version = set.Version
		if set.hasMore() {
			continue
		}

		if !began.IsZero() { // this was the last page of the first reading
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

// waitForUpdates is one call of the long poll: it waits until something changes after version, at most PollWait. null,
// 204 and an empty body are an empty set: nothing changed.
func (g *generation) waitForUpdates(
	ctx context.Context, version string, pageSize, maxBytes int,
) (set updateSet, err error) {
	c := g.p.c
	params := map[string]any{"options": map[string]any{
		"_typeName":        "WaitOptions",
		"maxWaitSeconds":   max(int(c.cfg.PollWait/time.Second), 1),
		"maxObjectUpdates": pageSize,
	}}

	if version != "" {
		params["version"] = version
	}

	collector := func(*service) *moRef { return &g.collector }
	cl, err := c.newVIMCall(g.s.service, collector, "PropertyCollector", "WaitForUpdatesEx", params)
	if err != nil {
		return set, err
	}

	cl.token, cl.noRetry = g.s.token, true
	cl.timeout, cl.maxBytes = c.cfg.PollWait+c.cfg.PollGrace, maxBytes

	resp, err := c.roundTrip(ctx, c.polls, cl)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return set, errors.Join(errPollUnanswered, err)
	case errors.Is(err, ErrTooLarge):
		return set, g.shrinkPages(ctx, err)
	case err != nil:
		return set, err
	}

	if err := c.decode(cl, resp, &set); err != nil {
		return set, err
	}
	if set.Version == "" && len(set.FilterSet) > 0 {
		return set, c.notUnderstood(cl, resp, errors.New("updates without a version"))
	}

	return set, nil
}
