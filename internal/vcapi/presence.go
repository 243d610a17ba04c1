package vcapi

import (
	"errors"
	"strings"
	"sync"
	"unicode"
)

// presence is whether vCenter answers, by two witnesses: the calls, and the long poll, which may be down while single calls are answered (its answers
// are not understood, or something on the way ends what takes long): runs wait for both.
type presence struct {
	tell func(why error) // may be nil; it is called in the order of the changes

	mu    sync.Mutex
	known bool
	call  error // why the last call was not answered
	poll  error // why the long poll is down
}

// called notes whether the last call was answered: why is why it was not, nil where it was.
func (p *presence) called(why error) { p.note(&p.call, why) }

// polled notes whether the long poll stands.
func (p *presence) polled(why error) { p.note(&p.poll, why) }

func (p *presence) note(witness *error, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, known := p.why(), p.known
	if sameReason(*witness, why) && known {
		return
	}
	*witness, p.known = why, true
	if now := p.why(); p.tell != nil && (!known || !sameReason(before, now)) {
		p.tell(now)
	}
}

// why prefers what the poll says: it stays until the poll stands again. The caller holds mu.
func (p *presence) why() error {
	if p.poll != nil {
		return p.poll
	}
	return p.call
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
	c.presence.mu.Lock()
	up := c.presence.known && c.presence.call == nil
	c.presence.mu.Unlock()
	return up && c.refusal() == nil
}

// Why tells why vCenter cannot be used: the login that it refused, the long poll that is down, or the last call, which it did not answer; nil where it
// can, or was not asked yet.
func (c *Client) Why() error {
	if refused := c.refusal(); refused != nil {
		return refused
	}
	c.presence.mu.Lock()
	defer c.presence.mu.Unlock()
	return c.presence.why()
}

// refusal is the last login's, nil where vCenter took it.
func (c *Client) refusal() error {
	if err := c.vimLogin.turnedAway(); err != nil {
		return err
	}
	return c.restLogin.turnedAway()
}
