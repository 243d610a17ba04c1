// Sends a request for one VM and waits for the end of its run; asks for the state of a VM; cancels a run:
//
//	go run ./examples/go submit lab vm-42 request.json [id]
//	go run ./examples/go ask lab vm-42
//	go run ./examples/go cancel lab vm-42 id
//
// request.json is the data of the request without "vm"; see schemas/requested.v1.json. NATS_URL says where
// NATS is. Exit codes: 0 succeeded, 1 failed, 2 rejected, 3 canceled, 4 unknown; of a cancel: 0 canceled, 1 the run
// ended in another way, 2 rejected.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	source    = "/examples/go"
	prefix    = "io.guestflow.customization."
	queueFull = 10077 // err_code of the JetStream API
)

// event is a CloudEvent of guestflow, with what this program reads of its data.
type event struct {
	ID, Type string
	Data     struct {
		Status  string
		Request struct{ Source, ID string }
		Error   struct{ Code, Message string }
	}
}

// read takes an event in either form: GUESTFLOW_EVENT_MODE says which one guestflow writes.
func read(h nats.Header, data []byte) (e event, err error) {
	if h.Get("ce-specversion") == "" {
		return e, json.Unmarshal(data, &e)
	}
	if e.ID, err = url.PathUnescape(h.Get("ce-id")); err != nil {
		return e, err
	}
	e.Type = h.Get("ce-type")
	return e, json.Unmarshal(data, &e.Data)
}

// publish returns once the stream has stored the event. A VM's queue may be full for some milliseconds right after a
// run has ended.
func publish(ctx context.Context, js jetstream.JetStream, subject, kind, id, vm string,
	data map[string]any) (*jetstream.PubAck, error) {
	body, err := json.Marshal(map[string]any{"specversion": "1.0", "type": prefix + kind + ".v1", "source": source,
		"id": id, "subject": vm,
		"datacontenttype": "application/json", "data": data})
	if err != nil {
		return nil, err
	}
	m := &nats.Msg{Subject: subject, Data: body, Header: nats.Header{"Content-Type": {"application/cloudevents+json"}}}
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		ack, err := js.PublishMsg(ctx, m)
		var refused *jetstream.APIError
		if !errors.As(err, &refused) || refused.ErrorCode != queueFull || time.Since(began) > time.Second {
			return ack, err
		}
	}
}

// wait reads the VM's journal from its beginning, so it does not matter what happened before. seq is what the publish
// answered.
func wait(ctx context.Context, js jetstream.JetStream, vcenter, vm, id string, seq uint64) (event, error) {
	journal, err := js.OrderedConsumer(ctx, "GUESTFLOW_EVENTS", jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{
			"guestflow.events." + vcenter + "." + vm + ".>", "guestflow.rejections." + vcenter + "." + vm}})
	if err != nil {
		return event{}, err
	}
	messages, err := journal.Messages()
	if err != nil {
		return event{}, err
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return event{}, err
		}
		e, err := read(m.Headers(), m.Data())
		if err != nil {
			continue // not guestflow's
		}
		kind := strings.TrimSuffix(strings.TrimPrefix(e.Type, prefix), ".v1")
		ours := e.Data.Request.Source == source && e.Data.Request.ID == id
		switch {
		case kind == "rejected" && e.ID == fmt.Sprintf("rejected.%d", seq):
			return e, nil
		case kind == "rejected" || !ours: // another message, another run
			continue
		}
		fmt.Println(kind)
		if kind == "run.succeeded" || kind == "run.failed" || kind == "run.canceled" {
			return e, nil
		}
	}
}

// ask reads the VM's last event: its data is the whole run.
func ask(ctx context.Context, nc *nats.Conn, vcenter, vm string) (event, error) {
	m, err := nc.RequestWithContext(ctx, "$JS.API.DIRECT.GET.GUESTFLOW_EVENTS.guestflow.events."+vcenter+"."+vm+".>",
		nil)
	if err != nil {
		return event{}, err
	}
	if m.Header.Get("Nats-Sequence") == "" {
		return event{}, fmt.Errorf("%s has no event: %s", vm, m.Header.Get("Description"))
	}
	return read(m.Header, m.Data)
}

// cancel asks for the end of a request's run, which tells that end; what comes too late is rejected.
func cancel(ctx context.Context, js jetstream.JetStream, vcenter, vm, id string) (*jetstream.PubAck, error) {
	return publish(ctx, js, "guestflow.cancels."+vcenter+"."+vm, "cancel.requested", strings.ToLower(rand.Text()), vm,
		map[string]any{"vm": vm, "request": map[string]any{"source": source, "id": id}, "reason": "no longer wanted"})
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	code, err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// run is the program up to its exit code.
func run(ctx context.Context, args []string) (int, error) {
	if len(args) < 3 || args[0] != "ask" && len(args) < 4 {
		return 4, errors.New("usage: submit VCENTER VM FILE [ID] | ask VCENTER VM | cancel VCENTER VM ID")
	}
	server := os.Getenv("NATS_URL")
	if server == "" {
		server = nats.DefaultURL
	}
	nc, err := nats.Connect(server, nats.MaxReconnects(-1))
	if err != nil {
		return 4, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return 4, err
	}
	vcenter, vm := args[1], args[2]
	var end event
	switch args[0] {
	case "submit":
		end, err = submit(ctx, js, vcenter, vm, args[3:])
	case "cancel":
		var ack *jetstream.PubAck
		if ack, err = cancel(ctx, js, vcenter, vm, args[3]); err == nil {
			end, err = wait(ctx, js, vcenter, vm, args[3], ack.Sequence)
		}
	case "ask":
		end, err = ask(ctx, nc, vcenter, vm)
	default:
		err = fmt.Errorf("%s is not submit, ask or cancel", args[0])
	}
	if err != nil {
		return 4, err
	}
	fmt.Println(end.Data.Status, end.Data.Error.Code)
	codes := map[string]int{"succeeded": 0, "failed": 1, "rejected": 2, "canceled": 3}
	switch args[0] {
	case "ask":
		return 0, nil
	case "cancel":
		codes["canceled"], codes["succeeded"] = 0, 1
	}
	return codes[end.Data.Status], nil
}

func submit(ctx context.Context, js jetstream.JetStream, vcenter, vm string, args []string) (event, error) {
	file, err := os.ReadFile(args[0]) //nolint:gosec // the file that its user names
	if err != nil {
		return event{}, err
	}
	var data map[string]any
	if err := json.Unmarshal(file, &data); err != nil {
		return event{}, err
	}
	data["vm"] = vm
	id := strings.ToLower(rand.Text())
	if len(args) > 1 {
		id = args[1]
	}
	ack, err := publish(ctx, js, "guestflow.requests."+vcenter+"."+vm, "requested", id, vm, data)
	if err != nil {
		return event{}, fmt.Errorf("request %s: %w", id, err)
	}
	return wait(ctx, js, vcenter, vm, id, ack.Sequence)
}
