// Package events is guestflow's contract with those who ask for customizations and those who follow them: the subjects
// and stream names, the CloudEvents types, and the data of requests, cancels and runs.
//
// DecodeRequest and DecodeCancel read what is published, and refuse what does not fit its schema with a RejectError
// that names the field. EncodeEvent and EncodeRejection write what guestflow publishes; DecodeEvent reads it. What
// others wrote (a vCenter, a guest, a publisher) is cleaned before it is shown, and cut where it is too long.
//
// How NATS JetStream carries all that is the business of package stream, below this one.
package events
