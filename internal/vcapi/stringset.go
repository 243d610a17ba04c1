package vcapi

import "sync"

// stringSet is a set of strings that grows until it is cleared.
type stringSet struct {
	mu      sync.Mutex
	members map[string]bool
}

func (n *stringSet) add(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.members == nil {
		n.members = make(map[string]bool)
	}
	n.members[name] = true
}

func (n *stringSet) clear() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.members)
}

// without gives list without what is in the set.
func (n *stringSet) without(list []string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()

	var rest []string
	for _, name := range list {
		if !n.members[name] {
			rest = append(rest, name)
		}
	}
	return rest
}
