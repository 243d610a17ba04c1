package events_test

import (
	"errors"
	"fmt"
	"time"

	"github.com/guestflow/guestflow/internal/events"
)

// A subscriber of guestflow.events.lab.> reads each event with the headers that it came with.
func ExampleDecodeEvent() {
	header := map[string][]string{"Content-Type": {"application/cloudevents+json"}}
	data := []byte(`{
		"specversion": "1.0", "id": "5pqkd5cmmksy6vba2psrnysvuv.3", "source": "/guestflow/lab", "subject": "vm-42",
		"type": "io.guestflow.customization.customize.started.v1", "correlationid": "order-7",
		"data": {"run": "5pqkd5cmmksy6vba2psrnysvuv", "n": 3, "vcenter": "lab", "vm": "vm-42", "status": "running",
			"customize": {"state": "running", "task": "task-7"}}
	}`)

	e, err := events.DecodeEvent(header, data)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(e.Kind, e.Run.VM, e.Run.Customize.Task, e.Attrs.CorrelationID, e.Kind.Last())
	// Output: customize.started vm-42 task-7 order-7 false
}

// A request that does not fit is refused with the field that is wrong.
func ExampleDecodeRequest() {
	data := []byte(`{
		"specversion": "1.0", "id": "order-7", "source": "/provisioner",
		"type": "io.guestflow.customization.requested.v1",
		"data": {"vm": "vm-42", "timeout": "soon"}
	}`)

	_, err := events.DecodeRequest("lab", events.RequestSubject("lab", "vm-42"), nil, data)
	var reject *events.RejectError
	if errors.As(err, &reject) {
		fmt.Println(reject.Code, "in", reject.Field)
	}
	// Output: InvalidRequest in timeout
}

// The ID of a run follows from the request, so a client knows it before guestflow has begun.
func ExampleRunID() {
	// printf 'lab\nvm-42\n/provisioner\n7f3c' | sha256sum | xxd -r -p | base32 | tr A-Z a-z | cut -c1-26
	fmt.Println(events.RunID("lab", "vm-42", events.RequestRef{Source: "/provisioner", ID: "7f3c"}))
	// Output: 5pqkd5cmmksy6vba2psrnysvuv
}

// An event in the binary form has the CloudEvents attributes in headers, and the run alone as its data.
func ExampleEncodeEvent() {
	run := &events.Run{
		ID: "5pqkd5cmmksy6vba2psrnysvuv", N: 9, VCenter: "lab", VM: "vm-42", Status: events.StatusSucceeded,
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

	header, data, err := events.EncodeEvent(at, events.RunSucceeded, events.Attributes{}, run, events.Binary)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(header["ce-type"][0], header["ce-id"][0])
	fmt.Println(string(data))
	// Output:
	// io.guestflow.customization.run.succeeded.v1 5pqkd5cmmksy6vba2psrnysvuv.9
	// {"run":"5pqkd5cmmksy6vba2psrnysvuv","n":9,"vcenter":"lab","vm":"vm-42","status":"succeeded"}
}
