package vcapi

import (
	"errors"
	"strings"
	"sync"
	"unicode"
)

// reachability is whether vCenter answers: its calls, and its long poll. The poll may be down while single calls are
// answered (its responses are not understood, or a proxy cuts calls that take long), and runs need both.
type reachability struct {
	onChange func(why error) // may be nil; called in the order of the changes

	mu        sync.Mutex
	contacted bool  // there was a call or a poll
	callErr   error // why the last call was not answered; nil where it was
	pollErr   error // why the long poll is down; nil where it is up
}

// noteCall records whether vCenter answered a call: nil where it did, else why not.
func (p *reachability) noteCall(why error) { p.set(&p.callErr, why) }

// notePoll records whether the long poll is up: nil where it is, else why not.
func (p *reachability) notePoll(why error) { p.set(&p.pollErr, why) }

func (p *reachability) set(target *error, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()

	before, known := p.reason(), p.contacted
	if sameReason(*target, why) && known {
		return
	}
	*target, p.contacted = why, true
	if now := p.reason(); p.onChange != nil && (!known || !sameReason(before, now)) {
		p.onChange(now)
	}
}

// reason is why vCenter cannot be used. The poll's comes first: it lasts until the poll is up again. The caller holds
// mu.
func (p *reachability) reason() error {
	if p.pollErr != nil {
		return p.pollErr
	}
	return p.callErr
}

// sameReason reports whether two errors have the same reason. Numbers do not count, because each try comes from another
// port; nor does which call failed first.
func sameReason(a, b error) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return reasonOf(a) == reasonOf(b)
}

type reason struct {
	name   string
	status int
	words  string
}

func reasonOf(err error) (r reason) {
	r.words = err.Error()
	if e := (*Error)(nil); errors.As(err, &e) {
		r = reason{e.Name, e.Status, e.Message}
	}

	r.words = strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return -1
		}
		return r
	}, r.words)
	return r
}

// Up reports whether vCenter answers calls and accepts this client's login. An error of vCenter's own is an answer too.
// For the state of the long poll, see PollAge.
func (c *Client) Up() bool {
	c.reachability.mu.Lock()
	up := c.reachability.contacted && c.reachability.callErr == nil
	c.reachability.mu.Unlock()
	return up && c.loginRefusal() == nil
}

// loginRefusal is the error with which vCenter refused the last login; nil where it accepted it.
func (c *Client) loginRefusal() error {
	if err := c.vimLogin.refusal(); err != nil {
		return err
	}
	return c.restLogin.refusal()
}
