package memstore

import (
	"sync"
	"time"
)

// lag is how old the view is from which each read is answered: a replica that has not caught up, for as long as a test
// wants.
type lag struct {
	mu     sync.Mutex
	n      int
	behind func(n int) time.Duration
}

func (l *lag) set(behind func(n int) time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n, l.behind = 0, behind
}

func (l *lag) next() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.behind == nil {
		return 0
	}
	l.n++
	return l.behind(l.n)
}
