package vcapi

import (
	"context"
	"errors"
	"time"
)

// maxReaders is how many objects are read by themselves at once: fewer than there are connections, because others need
// some.
const maxReaders = 8

// readOverdue starts a read of each object that the poll cannot show, or did not show even in a new generation. Where
// one was not shown for the first time, it returns errRestart instead. next is when to check again; the zero time means
// when something changes.
//
// It does not wait for the reads: an object that vCenter is slow about must not delay the others, nor those to be
// added.
func (g *generation) readOverdue(ctx context.Context) (next time.Time, err error) {
	began := time.Now()
	read, restart, next := g.p.overdue(began)
	g.passTook += time.Since(began)
	if restart {
		return next, errRestart
	}

	for ref, updates := range read {
		g.readers.Go(func() {
			defer g.p.readDone(ref)
			select {
			case g.readSlots <- struct{}{}:
				defer func() { <-g.readSlots }()
				g.readObject(ctx, ref, updates)
			case <-ctx.Done():
			}
		})
	}

	return next, nil
}

// overdue finds the objects that should have been shown by now. read has them with their watchedObject.updates; restart
// means that a new generation should try to show them first.
func (p *poller) overdue(now time.Time) (read map[moRef]int, restart bool, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()

	read = make(map[moRef]int)
	for ref, o := range p.objects {
		due := o.checkAt
		switch {
		case len(o.watchers) == 0:
			next = earliest(next, o.idleSince.Add(p.lingerTime))
			continue
		case o.mustRead:
		case o.shown, o.gone, p.allShownAt.IsZero():
			continue
		default: // the first response may be slow: the time counts from its end
			due = latest(due, p.allShownAt.Add(p.showGrace()))
		}

		if o.reading {
			continue // readDone wakes maintainView
		}

		if due.After(now) {
			next = earliest(next, due)
			continue
		}

		if !o.mustRead && o.attempts == 0 {
			restart, p.missesAdded = true, true
		} else {
			read[ref], o.reading = o.updates, true
		}

		o.attempts++
		longest := backoffMax
		if p.oversized[ref] {
			longest = oversizedPause // only reads show it
		}

		o.checkAt = now.Add(min(p.showTimeout<<min(o.attempts, 5), longest))
		next = earliest(next, o.checkAt)
	}

	return read, restart, next
}

// readObject reads one object. updates is its watchedObject.updates from before the read.
func (g *generation) readObject(ctx context.Context, ref moRef, updates int) {
	all, err := g.p.c.retrieve(ctx, ref.Type, watchedProps(ref.Type), ref.Value)
	switch {
	case ctx.Err() != nil:
	case isGone(err):
		g.p.storeRead(ref, updates, nil)
	case err == nil:
		g.p.storeRead(ref, updates, all[ref.Value])
	case classOf(err) == SessionLost:
		g.cancel(err)
	default:
		g.p.storeReadError(ref, updates, err)
	}
}

// readDone notes that the read of an object has ended.
func (p *poller) readDone(ref moRef) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.objects[ref]; o != nil {
		o.reading = false
		wake(p.changed)
	}
}

// storeRead stores what a read of one object returned; nil means that the object does not exist. What the poll showed
// meanwhile is newer and stays.
func (p *poller) storeRead(ref moRef, updates int, props properties) {
	p.mu.Lock()
	defer p.mu.Unlock()

	o := p.objects[ref]
	switch {
	case o == nil, o.updates != updates:
	case props == nil:
		o.gone, o.mustRead, o.readErr = true, false, nil
		o.notify()
	default:
		o.props, o.known, o.gone, o.mustRead, o.readErr = props, true, false, false, nil
		o.shown = o.shown || o.reAdded
		o.notify()
	}
}

// storeReadError stores why one object cannot be read, and tells its watchers. Where vCenter did not answer at all,
// that concerns the whole poll and is reported there.
func (p *poller) storeReadError(ref moRef, updates int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()

	o, e := p.objects[ref], (*Error)(nil)
	switch {
	case o == nil, o.updates != updates:
		return
	case !errors.As(err, &e), e.Status == 0 && e.Name == "", sameReason(o.readErr, e):
		return
	}

	o.readErr = e
	o.notify()
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
