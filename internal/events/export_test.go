package events

// DeadLetter is deadLetter, for tests from outside.
var DeadLetter = deadLetter
