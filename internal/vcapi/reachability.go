package vcapi

import (
	"errors"
	"strings"
	"sync"
	"unicode"
)

// reachability is whether vCenter answers, by two witnesses: the calls, and the long poll, which may be down while single calls are answered (its answers
// are not understood, or something on the way ends what takes long): runs wait for both.
type reachability struct {
	onChange func(why error) // may be nil; it is called in the order of the changes

	mu        sync.Mutex
	contacted bool
	callErr   error // why the last call was not answered
	pollErr   error // why the long poll is down
}

// noteCall notes whether the last call was answered: why is why it was not, nil where it was.
func (p *reachability) noteCall(why error) { p.set(&p.callErr, why) }

// notePoll notes whether the long poll stands.
func (p *reachability) notePoll(why error) { p.set(&p.pollErr, why) }

func (p *reachability) set(witness *error, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, known := p.reason(), p.contacted
	if sameReason(*witness, why) && known {
		return
	}
	*witness, p.contacted = why, true
	if now := p.reason(); p.onChange != nil && (!known || !sameReason(before, now)) {
		p.onChange(now)
	}
}

// reason prefers what the poll says: it stays until the poll stands again. The caller holds mu.
func (p *reachability) reason() error {
	if p.pollErr != nil {
		return p.pollErr
	}
	return p.callErr
}

// sameReason reports whether two errors give one reason. Numbers do not count: each try comes from a port of its own; nor does which call met it first.
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

// Up reports whether vCenter answers calls, and takes this client's login. An error of vCenter's own is an answer too. How the long poll is, PollAge tells.
func (c *Client) Up() bool {
	c.reachability.mu.Lock()
	up := c.reachability.contacted && c.reachability.callErr == nil
	c.reachability.mu.Unlock()
	return up && c.loginRefusal() == nil
}

// Why tells why vCenter cannot be used: the login that it refused, the long poll that is down, or the last call, which it did not answer; nil where it
// can, or was not asked yet.
func (c *Client) Why() error {
	if refused := c.loginRefusal(); refused != nil {
		return refused
	}
	c.reachability.mu.Lock()
	defer c.reachability.mu.Unlock()
	return c.reachability.reason()
}

// loginRefusal is the last login's, nil where vCenter took it.
func (c *Client) loginRefusal() error {
	if err := c.vimLogin.refusal(); err != nil {
		return err
	}
	return c.restLogin.refusal()
}
