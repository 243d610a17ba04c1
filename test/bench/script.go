package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/test/bench/fakevc"
)

// script is one run of guestflow as it was recorded: its calls to vCenter and its events, in their order.
type script struct {
	VM, Run string
	Lines   []line
}

// line is one call or one event.
type line struct {
	At     time.Time
	Method string // of a call; "" for an event
	Path   string // of a call; of an event its subject
	Body   string
	Header nats.Header // of an event
}

// record lets a service make two runs, and records the second: the first one finds out what vCenter can do.
func record(ctx context.Context, binary string, data func(vm string) map[string]any) (*script, error) {
	l, err := newLab(ctx, 4)
	if err != nil {
		return nil, err
	}
	defer l.close()
	service, err := l.startService(ctx, binary, "bench")
	if err != nil {
		return nil, err
	}
	defer service.kill()
	for i := range 2 {
		if err := l.tell(ctx, "reset", url.Values{"record": {"true"}}); err != nil {
			return nil, err
		}
		if err := l.publish(ctx, data, i, 1); err != nil {
			return nil, err
		}
		if err := l.ended(ctx, service, time.Minute); err != nil {
			return nil, err
		}
	}

	var calls []fakevc.Call
	if err := getJSON(ctx, l.vcAt.Control+"/record", &calls); err != nil {
		return nil, err
	}
	vm := vmID(1)
	s := &script{VM: vm, Run: events.RunID(vcenterName, vm, events.RequestRef{Source: source, ID: requestID(vm)})}
	for _, c := range calls {
		s.Lines = append(s.Lines, line{At: c.At, Method: c.Method, Path: c.Path, Body: c.Body})
	}
	stored, err := l.history(ctx, vm)
	if err != nil {
		return nil, err
	}
	s.Lines = append(s.Lines, stored...)
	slices.SortStableFunc(s.Lines, func(a, b line) int { return a.At.Compare(b.At) })
	if n := len(stored); n == 0 || !strings.HasSuffix(stored[n-1].Path, ".run.succeeded") {
		return nil, errors.New("the recorded run did not succeed")
	}
	return s, nil
}

// history reads the events of a VM.
func (l *lab) history(ctx context.Context, vm string) (lines []line, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = l.each(ctx, events.History(vcenterName, vm), false, func(m jetstream.Msg, at time.Time) {
		h := nats.Header{}
		for key, values := range m.Headers() {
			if !strings.HasPrefix(key, "Nats-") || key == jetstream.MsgIDHeader {
				h[key] = values
			}
		}
		lines = append(lines, line{At: at, Path: m.Subject(), Body: string(m.Data()), Header: h})
	})
	return lines, err
}

// each calls fn with the events under a subject, and when they were stored.
func (l *lab) each(ctx context.Context, subject string, headers bool, fn func(jetstream.Msg, time.Time)) error {
	consumer, err := l.js.OrderedConsumer(ctx, events.EventsStream, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{subject}, HeadersOnly: headers})
	if err != nil {
		return err
	}
	info, err := consumer.Info(ctx)
	if err != nil || info.NumPending == 0 {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("read %s: %w", subject, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		fn(m, meta.Timestamp)
		if meta.NumPending == 0 {
			return nil
		}
	}
}

// template is a text in which the number of the VM and the id of the run are to be filled in.
type template []part

// part is a piece of text as it is, or one of the two.
type part struct {
	text    string
	vm, run bool
}

func newTemplate(text, vm, run string) (t template) {
	for text != "" {
		v, r := strings.Index(text, vm), strings.Index(text, run)
		switch {
		case v < 0 && r < 0:
			return append(t, part{text: text})
		case r < 0 || v >= 0 && v < r:
			t = append(t, part{text: text[:v]}, part{vm: true})
			text = text[v+len(vm):]
		default:
			t = append(t, part{text: text[:r]}, part{run: true})
			text = text[r+len(run):]
		}
	}
	return t
}

// fill makes the text for another VM and run.
func (t template) fill(vm, run string) []byte {
	size := 0
	for _, p := range t {
		size += len(p.text) + len(run)
	}
	b := make([]byte, 0, size)
	for _, p := range t {
		switch {
		case p.vm:
			b = append(b, vm...)
		case p.run:
			b = append(b, run...)
		default:
			b = append(b, p.text...)
		}
	}
	return b
}
