package stream_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/events/stream/memstore"
)

// Two owners of one run: whoever appends after an event that is no longer the last one is fenced.
func ExampleJournal() {
	ctx := context.Background()
	journal := stream.NewStoreJournal(memstore.New(memstore.Options{}).Client(), events.Structured, zerolog.Nop())
	run := &events.Run{
		ID: events.RunID("lab", "vm-42", events.RequestRef{Source: "/provisioner", ID: "7f3c"}),
		N:  1, VCenter: "lab", VM: "vm-42", Status: events.StatusRunning,
	}

	accepted, err := journal.Append(ctx, 0, "owner-1.1", events.RunAccepted, events.Attributes{}, run)
	if err != nil {
		fmt.Println(err)
		return
	}
	run.N = 2
	if _, err := journal.Append(ctx, accepted, "owner-2.1", events.RunResumed, events.Attributes{}, run); err != nil {
		fmt.Println(err)
		return
	}

	_, err = journal.Append(ctx, accepted, "owner-1.2", events.CheckCompleted, events.Attributes{}, run)
	fmt.Println("the first owner is fenced:", errors.Is(err, events.ErrFenced))
	last, err := journal.Last(ctx, "lab", "vm-42")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(last.Seq, last.Kind)
	// Output:
	// the first owner is fenced: true
	// 2 run.resumed
}

// A request is answered by what its handler returns.
func ExampleConn_Consume() {
	serve := func(ctx context.Context, conn *stream.Conn) error {
		return conn.Consume(ctx, "lab", func(ctx context.Context, r *events.Request) error {
			fmt.Println("run", r.RunID, "of", r.VM)
			return nil // its run has ended: the message is acknowledged
		})
	}
	_ = serve
}
