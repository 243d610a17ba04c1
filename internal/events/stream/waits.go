package stream

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// waitLog is the log, and who is told of what waits for NATS.
type waitLog struct {
	zerolog.Logger
	waits *waitRegister // nil: nobody
}

// waitRegister are what waits for NATS at this moment: each is tried again and again.
type waitRegister struct {
	mu   sync.Mutex
	open map[*waiter]openWait
}

// openWait is one of them.
type openWait struct {
	vcenter, vm, what string
	since             time.Time
	err               error // of the last attempt
}

func (w *waitRegister) register(one *waiter, about openWait) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[one] = about
}

func (w *waitRegister) unregister(one *waiter) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.open, one)
}

// longerThan are the waits that are longer than what is worth no word, one per vCenter and reason: the oldest.
func (w *waitRegister) longerThan(than time.Duration) []Trouble {
	w.mu.Lock()
	old := make([]openWait, 0, len(w.open))
	for _, one := range w.open {
		if time.Since(one.since) > than {
			old = append(old, one)
		}
	}
	w.mu.Unlock()
	slices.SortFunc(old, func(a, b openWait) int {
		return cmp.Or(cmp.Compare(a.vcenter, b.vcenter), a.since.Compare(b.since))
	})
	type key struct {
		vcenter string
		reason  Reason
	}
	count := map[key]int{}
	for _, one := range old {
		count[key{one.vcenter, reasonOf(one.err)}]++
	}
	var all []Trouble
	for _, one := range old {
		at := key{one.vcenter, reasonOf(one.err)}
		n := count[at]
		if n == 0 {
			continue
		}
		count[at] = 0
		t := Trouble{VCenter: one.vcenter, Reason: at.reason, Blocks: true, Cure: cures[at.reason],
			What: fmt.Sprintf("cannot %s, tried for %s: %v", one.what, time.Since(one.since).Round(time.Second),
				one.err)}
		if one.vm != "" {
			t.What = "vm " + one.vm + ": " + t.What
		}
		if n > 1 {
			t.What += fmt.Sprintf(" (and %d more wait for the same reason)", n-1)
		}
		all = append(all, t)
	}
	return all
}

// The codes with which JetStream says that it has no room. (nats-server, server/errors.json.)
const (
	codeNoResources    = 10023 // the server's
	codeNoStorage      = 10047
	codeNoMemory       = 10028
	codeAccountStorage = 10002 // the account's
)

// reasonOf sorts what NATS said.
func reasonOf(err error) Reason {
	var refused *StoreError
	var api *jetstream.APIError
	code := 0
	switch {
	case errors.As(err, &refused):
		code = refused.Code
	case errors.As(err, &api):
		code = int(api.ErrorCode)
	}
	switch {
	case code == codeNoResources, code == codeNoStorage, code == codeNoMemory, code == codeAccountStorage,
		code == CodeSubjectFull && !strings.Contains(err.Error(), "maximum"): // the disk's own words
		return NoStorage
	case code == CodeSubjectFull:
		return StreamFull
	case code == int(jetstream.JSErrCodeStreamNotFound), errors.Is(err, jetstream.ErrNoStreamResponse):
		return StreamMissing
	case code == int(jetstream.JSErrCodeConsumerNotFound), errors.Is(err, jetstream.ErrConsumerDeleted):
		return ConsumerMissing
	case code != 0:
		return RefusedByNATS
	}
	return NoAnswer
}

// NoRoom reports whether NATS refused something because JetStream has no room left.
func NoRoom(err error) bool { return reasonOf(err) == NoStorage }

// notConnected puts what nats.go says of a buffer into words.
func notConnected(err error) error {
	if errors.Is(err, nats.ErrReconnectBufExceeded) {
		return errors.New("NATS is not connected")
	}
	return err
}
