package vcapi

import (
	"context"
	"errors"
	"time"
)

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
