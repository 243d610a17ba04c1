package vcapi

import (
	"context"
	"errors"
	"maps"
	"slices"
)

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
