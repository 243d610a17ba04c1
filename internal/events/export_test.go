package events

// DeadLetter is deadLetter, for tests from outside.
var DeadLetter = deadLetter

// PercentEncode is percentEncode, for tests from outside.
var PercentEncode = percentEncode

// IsURIReference is isURIReference, for tests from outside.
var IsURIReference = isURIReference
