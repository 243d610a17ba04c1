package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/nats-io/nats.go"

	"github.com/guestflow/guestflow/internal/events"
)

// Event is an event of guestflow as a subscriber reads it.
type Event struct {
	event.Event
	Kind events.Kind
	Run  events.Run // its data
	Seq  uint64     // in the events stream; 0 where it was heard in core NATS
	// Line is the CloudEvent in its structured form, in one line: the bytes as they came, where they came so.
	Line []byte
}

// typePrefix and typeSuffix stand around the kind in a CloudEvents type.
var typePrefix, typeSuffix, _ = strings.Cut(events.Type("\n"), "\n")

// decode reads an event in either form.
func decode(subject string, h nats.Header, data []byte) (*Event, error) {
	e := &Event{Event: event.New()}
	var err error
	if header(h, "ce-specversion") != "" && !strings.HasPrefix(header(h, "content-type"), "application/cloudevents") {
		err = e.binary(h, data)
	} else if err = json.Unmarshal(data, &e.Event); err == nil {
		var line bytes.Buffer
		err = json.Compact(&line, data)
		e.Line = line.Bytes()
	}
	if err == nil {
		err = json.Unmarshal(e.Data(), &e.Run)
	}
	if err != nil {
		return nil, fmt.Errorf("what was published on %s is no event of guestflow: %w", subject, err)
	}
	e.Kind = events.Kind(strings.TrimSuffix(strings.TrimPrefix(e.Type(), typePrefix), typeSuffix))
	return e, nil
}

func (e *Event) binary(h nats.Header, data []byte) error {
	for name, values := range h {
		name, ok := strings.CutPrefix(strings.ToLower(name), "ce-")
		if !ok || len(values) == 0 {
			continue
		}
		v, err := url.PathUnescape(values[0])
		if err != nil {
			return fmt.Errorf("header ce-%s: %w", name, err)
		}
		switch name {
		case "specversion":
		case "id":
			e.SetID(v)
		case "source":
			e.SetSource(v)
		case "type":
			e.SetType(v)
		case "subject":
			e.SetSubject(v)
		case "dataschema":
			e.SetDataSchema(v)
		case "datacontenttype":
			e.SetDataContentType(v)
		case "time":
			at, err := time.Parse(time.RFC3339, v)
			if err != nil {
				return err
			}
			e.SetTime(at)
		default:
			e.SetExtension(name, v)
		}
	}
	if !json.Valid(data) {
		return errors.New("its data is no JSON")
	}
	e.DataEncoded = data
	var err error
	e.Line, err = json.Marshal(e.Event)
	return err
}

// header is a header's value, whatever its letter case.
func header(h nats.Header, name string) string {
	for n, values := range h {
		if strings.EqualFold(n, name) && len(values) > 0 {
			return values[0]
		}
	}
	return ""
}

// VCenter is the vCenter that the event is about.
func (e *Event) VCenter() string { return e.Run.VCenter }

// Last reports whether the event ends its run.
func (e *Event) Last() bool { return e.Kind.Last() }
