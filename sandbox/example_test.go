package sandbox_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/sandbox"
)

// A test of another program starts a sandbox, publishes a request for one of its VMs, and waits for the last event of
// the run.
func Example() {
	ctx := context.Background()
	s, err := sandbox.Start(ctx, sandbox.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = s.Close() }()

	nc, err := nats.Connect(s.NATSURL())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		fmt.Println(err)
		return
	}

	vm := s.VMs()[0]
	events, err := nc.SubscribeSync("guestflow.events." + sandbox.VCenter + "." + vm.ID + ".>")
	if err != nil {
		fmt.Println(err)
		return
	}

	request, err := json.Marshal(map[string]any{
		"specversion": "1.0",
		"type":        "io.guestflow.customization.requested.v1",
		"source":      "/example",
		"id":          "order-4711",
		"data":        map[string]any{"vm": vm.ID}, // a check only; vm.Request customizes the guest as well
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	if _, err := js.Publish(ctx, "guestflow.requests."+sandbox.VCenter+"."+vm.ID, request); err != nil {
		fmt.Println(err)
		return
	}

	for {
		msg, err := events.NextMsgWithContext(ctx)
		if err != nil {
			fmt.Println(err)
			return
		}
		var event struct{ Type string }
		if err := json.Unmarshal(msg.Data, &event); err != nil {
			fmt.Println(err)
			return
		}
		if strings.Contains(event.Type, ".run.") && !strings.Contains(event.Type, "accepted") {
			fmt.Println(event.Type)
			fmt.Println(s.Effects(vm.ID).Customizations, "customizations")
			return
		}
	}

	// Output:
	// io.guestflow.customization.run.succeeded.v1
	// 0 customizations
}
