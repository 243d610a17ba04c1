package events

import "time"

// DeadLetter is deadLetter, for tests from outside.
var DeadLetter = deadLetter

// PercentEncode is percentEncode, for tests from outside.
var PercentEncode = percentEncode

// IsURIReference is isURIReference, for tests from outside.
var IsURIReference = isURIReference

// KeepTime sets how long refused messages wait for their dead letters' stream alone.
func (c *Conn) KeepTime(d time.Duration) { c.keepTime = d }
