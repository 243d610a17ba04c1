package events

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/guestflow/guestflow/schemas"
)

// Event is an event of a run as its readers see it.
type Event struct {
	Kind  Kind
	Attrs Attributes
	Run   Run // the event's data
}

// EncodeEvent writes an event of kind k: the run as it stands after it. What others wrote into the run is cleaned, and
// cut where it is too long; the caller's run stays as it is. mode is Structured or Binary.
func EncodeEvent(
	at time.Time, k Kind, attrs Attributes, run *Run, mode string,
) (header map[string][]string, data []byte, err error) {
	data, err = fitted(k, run)
	if err != nil {
		return nil, nil, fmt.Errorf("event %s: %w", k, err)
	}
	return encode(outgoing{
		id: fmt.Sprintf("%s.%d", run.ID, run.N), vcenter: run.VCenter, vm: run.VM, kind: k, time: at, attrs: attrs,
		schema: schemas.URN(schemas.Run), data: data,
	}, mode)
}

// DecodeEvent reads an event of a run, in either form.
func DecodeEvent(header map[string][]string, data []byte) (*Event, error) {
	env, err := decodeEnvelope(header, data)
	if err != nil {
		return nil, err
	}
	e := &Event{Kind: KindOf(env.attrs["type"]), Attrs: env.attributes()}
	if err := json.Unmarshal(env.data, &e.Run); err != nil {
		return nil, err
	}
	return e, nil
}

// Rejection is a refused message, as far as its publisher is told of it.
type Rejection struct {
	VCenter string
	VM      string     // empty where the message's subject names none
	Seq     uint64     // in the requests stream
	Ref     RequestRef // the message's own source and id, zero where they could not be read
	Attrs   Attributes
}

// EncodeRejection writes the event that tells a publisher that its message was refused. It has the shape of a run's
// event, and belongs to no run.
func EncodeRejection(
	r Rejection, why *RejectError, at time.Time, mode string,
) (header map[string][]string, data []byte, err error) {
	run := Run{VCenter: r.VCenter, VM: r.VM, Status: StatusRejected, Error: &Error{
		Code: why.Code, Message: why.Reason(), Field: why.Field, Retryable: why.Code == Expired,
	}}
	if r.Ref != (RequestRef{}) {
		run.Request = &r.Ref
	}
	data, err = marshal((&cutter{limits: limitsOf[0]}).run(&run))
	if err != nil {
		return nil, nil, err
	}
	return encode(outgoing{
		id: fmt.Sprintf("rejected.%d", r.Seq), vcenter: r.VCenter, vm: r.VM, kind: KindRejected, time: at,
		attrs: r.Attrs, schema: schemas.URN(schemas.Run), data: data,
	}, mode)
}
