package vcsim

import (
	"sync"

	"github.com/vmware/govmomi/vim25/types"
)

// changes remembers when each managed object changed last, in generations that only grow, and wakes those that wait for a change.
type changes struct {
	mu   sync.Mutex
	gen  uint64
	last map[types.ManagedObjectReference]uint64
	wake chan struct{}
}

func newChanges() *changes {
	return &changes{last: make(map[types.ManagedObjectReference]uint64), wake: make(chan struct{})}
}

// touch notes a change of an object, its making and its end included.
func (c *changes) touch(ref types.ManagedObjectReference) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gen++
	c.last[ref] = c.gen
	close(c.wake)
	c.wake = make(chan struct{})
}

// now is the current generation, and a channel that is closed by the next change.
func (c *changes) now() (gen uint64, wake <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gen, c.wake
}

// since tells whether an object changed after a generation.
func (c *changes) since(ref types.ManagedObjectReference, gen uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last[ref] > gen
}
