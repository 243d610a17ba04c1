package events

// PercentEncode is percentEncode, for tests from outside.
var PercentEncode = percentEncode

// IsURIReference is isURIReference, for tests from outside.
var IsURIReference = isURIReference
