package stream_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
)

// Whatever headers a message has: no panic, an error is a refusal, and the dead letter made of it can be published: no
// header of it means something to the server but our own, and none was lost.
func FuzzHeaders(f *testing.F) {
	f.Add("ce-specversion: 1.0\nCe-Id: 7\nce-source: /a\nce-type: "+requestedType, []byte(`{"vm":"vm-42"}`))
	f.Add("Content-Type: application/cloudevents+json; charset=utf-8\nNats-Msg-Id: "+
		"x\nNats-Expected-Last-Sequence: 7\nGuestflow-Code: y", []byte(`{}`))
	f.Add("ce-specversion: 1.0\nCE-SPECVERSION: 2\nce-expirytime: 2026-01-02T03:04:05Z\nce-authid: %F0%9F%98%80",
		[]byte(`null`))
	f.Add("ce-specversion: 1.0\nce-id: %zz\nce-traceparent: %00\ncontent-type: text/plain", []byte("\xff"))
	f.Fuzz(func(t *testing.T, block string, data []byte) {
		h := nats.Header{}
		for line := range strings.Lines(block) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			h[name] = append(h[name], value)
		}
		r, err := events.DecodeRequest("lab", subject, h, data)
		var reject *events.RejectError
		if err != nil && !errors.As(err, &reject) {
			t.Fatalf("error %T %v, want a refusal", err, err)
		}
		if _, err := events.DecodeCancel("lab", subject, h, data); err != nil && !errors.As(err, &reject) {
			t.Fatalf("error %T %v, want a refusal", err, err)
		}
		if reject == nil {
			return
		}
		letter := stream.DeadLetter(stream.RefusedMessage{VCenter: "lab", VM: r.VM, Seq: 7, Subject: subject, Header: h,
			Data: data}, reject)
		for name, values := range h {
			kept := letter.Header[name]
			if lower := strings.ToLower(name); strings.HasPrefix(lower, "nats-") ||
				strings.HasPrefix(lower, "guestflow-") {
				kept = letter.Header["Guestflow-Original-"+name]
			}
			if !slices.Equal(kept, values) {
				t.Errorf("header %q: %q became %q", name, values, kept)
			}
		}
		for name, values := range letter.Header {
			ours := strings.HasPrefix(name, "Guestflow-") && !strings.HasPrefix(name, "Guestflow-Original-")
			broken := ours && slices.ContainsFunc(values, func(v string) bool { return strings.ContainsAny(v, "\r\n") })
			if broken || strings.HasPrefix(strings.ToLower(name), "nats-") && name != "Nats-Msg-Id" {
				t.Errorf("header %q: %q", name, values)
			}
		}
	})
}

// Why a message was refused is told in a header, which programs show as it is.
func TestReasonOfADeadLetterIsClean(t *testing.T) {
	t.Parallel()
	why := &events.RejectError{Code: events.InvalidRequest, Message: "a\x1b[31m\nb\u202ec\xff"}
	letter := stream.DeadLetter(stream.RefusedMessage{VCenter: "lab", Seq: 7}, why)
	if got, want := letter.Header.Get("Guestflow-Reason"), "a [31m bc\ufffd"; got != want {
		t.Errorf("the dead letter says %q, want %q", got, want)
	}
}
