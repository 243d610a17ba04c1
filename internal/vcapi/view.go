package vcapi

import (
	"context"
	"encoding/json"
	"errors"
	"time"
)

// maintainView keeps the view in line with what is watched, and reads by themselves the objects that the poll does not
// show.
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
			g.gather(ctx)
		case <-timer:
		}
	}
}

// passShare bounds the passes over all objects to a fifth of the time.
const passShare = 5

// gather lets changes come together where passes over all objects take long: thousands of objects are watched then, and
// something changes all the time.
func (g *generation) gather(ctx context.Context) {
	pause := min((passShare-1)*g.passTook, longestGather)
	if pause < shortestGather {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
}

// syncView adds to the view what is newly watched, and removes what no longer is, in one call for all of it.
//
// Source: VI JSON, ListView.ModifyListView, which returns the objects that vCenter could not resolve.
func (g *generation) syncView(ctx context.Context) error {
	began := time.Now()
	add, remove := g.p.viewChanges(g.inView, g.removed)
	g.passTook = time.Since(began)
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
		if missing, rest := unresolved(err, add); missing != nil { // this server refuses the whole call for one object
			g.inView[*missing] = true
			g.p.requestRead(*missing)
			add = rest
			continue
		}

		if err != nil {
			return err
		}

		for _, ref := range add {
			g.inView[ref] = true
		}
		g.p.noteAdded(add)

		for _, ref := range remove {
			delete(g.inView, ref)
			g.removed[ref] = time.Now()
		}

		forEachElement(raw, func(element json.RawMessage) {
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
func unresolved(err error, refs []moRef) (missing *moRef, rest []moRef) {
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
			missing = &ref
			continue
		}
		rest = append(rest, ref)
	}

	return missing, rest
}

// viewChanges is the difference between the view and what is watched. It updates inView for oversized objects, which
// are never in the view, and drops old entries of removed.
//
// An object is forgotten here and nowhere else, together with its removal from the view: one that is watched again
// before that is still the same object.
func (p *poller) viewChanges(inView map[moRef]bool, removed map[moRef]time.Time) (add, remove []moRef) {
	p.mu.Lock()
	defer p.mu.Unlock()

	now := time.Now()
	for ref, o := range p.objects {
		idle, isIn := len(o.watchers) == 0, inView[ref]
		switch {
		case !idle && isIn: // nearly all of them
		case idle && isIn && now.Sub(o.idleSince) < p.lingerTime:
			// The run's next step may watch it soon.
		case idle:
			delete(p.objects, ref)
			if isIn && p.oversized[ref] {
				delete(inView, ref)
			} else if isIn {
				remove = append(remove, ref)
			}
		case p.oversized[ref]:
			inView[ref] = true // treated as if it were
			o.shown, o.reAdded, o.mustRead, o.checkAt = false, false, true, time.Time{}
		default:
			add = append(add, ref)
			o.shown, o.reAdded, o.checkAt = false, false, now.Add(p.showGrace())
			if _, recently := removed[ref]; recently && !p.missesAdded {
				o.reAdded, o.mustRead, o.checkAt = true, true, now.Add(min(p.showTimeout, 4*gatherTime))
			}
		}
	}

	// After a whole poll the collector has seen the removal, and shows the object as new when it is added again.
	for ref, at := range removed {
		if now.Sub(at) > 2*(p.c.cfg.PollWait+p.c.cfg.PollGrace) {
			delete(removed, ref)
		}
	}

	return add, remove
}

// noteAdded lets the time in which the poll must show objects begin when they are in the view: the call that adds
// thousands of them takes long itself.
func (p *poller) noteAdded(refs []moRef) {
	p.mu.Lock()
	defer p.mu.Unlock()

	due := time.Now().Add(p.showGrace())
	for _, ref := range refs {
		if o := p.objects[ref]; o != nil && !o.shown && !o.mustRead {
			o.checkAt = due
		}
	}
}

// requestRead notes that the poll cannot show a watched object, so that it is read by itself.
func (p *poller) requestRead(ref moRef) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.objects[ref]; o != nil {
		o.mustRead, o.checkAt = true, time.Time{}
		wake(p.changed)
	}
}
