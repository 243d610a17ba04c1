package vcsim

import (
	"sync"

	"github.com/vmware/govmomi/vim25/types"
)

// changeLog records when each managed object changed last, as a generation that only grows, and wakes those who wait
// for a change.
type changeLog struct {
	mu      sync.Mutex
	gen     uint64
	last    map[types.ManagedObjectReference]uint64
	wake    chan struct{}
	blocked map[types.ManagedObjectReference]bool // whose updates are held back
}

func newChangeLog() *changeLog {
	return &changeLog{last: make(map[types.ManagedObjectReference]uint64), wake: make(chan struct{}),
		blocked: make(map[types.ManagedObjectReference]bool)}
}

// note records a change of an object, its creation and its end included.
func (c *changeLog) note(ref types.ManagedObjectReference) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gen++
	c.last[ref] = c.gen
	close(c.wake)
	c.wake = make(chan struct{})
}

// now is the current generation, and a channel that the next change closes.
func (c *changeLog) now() (gen uint64, wake <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gen, c.wake
}

// changedSince reports whether an object changed after a generation.
func (c *changeLog) changedSince(ref types.ManagedObjectReference, gen uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last[ref] > gen
}

// block holds back an object's updates, or ends that.
func (c *changeLog) block(ref types.ManagedObjectReference, back bool) {
	c.mu.Lock()
	was := c.blocked[ref]
	if back {
		c.blocked[ref] = true
	} else {
		delete(c.blocked, ref)
	}

	c.mu.Unlock()
	if was && !back {
		c.note(ref)
	}
}

func (c *changeLog) isBlocked(ref types.ManagedObjectReference) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.blocked[ref]
}
