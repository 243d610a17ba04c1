package vcapi

import (
	"context"
	"errors"
	"maps"
	"slices"
)

// shrinkPages handles a poll response that was too large: it makes the next pages smaller, down to one object. Where
// even one object is too large, it finds out which ones by reading them, and excludes them from the view: they are read
// by themselves from then on, so that they do not break the poll of all the others. It returns errShrunk where the poll
// may begin again, else tooLarge, or the error of a read.
func (g *generation) shrinkPages(ctx context.Context, tooLarge error) error {
	p := g.p
	pageSize, byKind := p.shrinkPage()
	if pageSize > 1 {
		return errShrunk
	}

	found := make(map[moRef]bool)
	for kind, ids := range byKind {
		for chunk := range slices.Chunk(ids, maxPageSize) {
			if err := p.c.findOversized(ctx, kind, watchedProps(kind), chunk, found); err != nil {
				return err
			}
		}
	}

	p.mu.Lock()
	defer p.mu.Unlock()

	switch {
	case len(found) == 0 && p.maxBytes < maxPollBytes: // this server does not keep to one object a page
		p.maxBytes *= 4
		return errShrunk
	case len(found) == 0:
		return tooLarge
	case p.oversized == nil:
		p.oversized = found
	default:
		maps.Copy(p.oversized, found)
	}

	p.pageSize = maxPageSize
	return errShrunk
}

// shrinkPage divides the page size by four. It returns the size before that, and the watched objects by kind.
func (p *poller) shrinkPage() (before int, byKind map[string][]string) {
	p.mu.Lock()
	defer p.mu.Unlock()

	before = p.pageSize
	p.pageSize = max(1, before/4)
	byKind = make(map[string][]string)
	for ref, o := range p.objects {
		if len(o.watchers) > 0 && !p.oversized[ref] {
			byKind[ref.Type] = append(byKind[ref.Type], ref.Value)
		}
	}
	return before, byKind
}

// findOversized adds to found which of the objects are too large for a response by themselves.
func (c *Client) findOversized(ctx context.Context, kind string, paths, ids []string, found map[moRef]bool) error {
	_, err := c.retrieveOnce(ctx, kind, paths, ids)
	var e *Error
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &e), e.Status == 0, e.Class == SessionLost:
		return err
	case len(ids) == 1 && !errors.Is(err, ErrTooLarge): // gone, or not visible to this account: not too large
		return nil
	case len(ids) == 1:
		found[moRef{Type: kind, Value: ids[0]}] = true
		return nil
	}

	if err := c.findOversized(ctx, kind, paths, ids[:len(ids)/2], found); err != nil {
		return err
	}

	return c.findOversized(ctx, kind, paths, ids[len(ids)/2:], found)
}
