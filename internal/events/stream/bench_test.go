package stream

import (
	"fmt"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream/natstest"
)

// An event with everything that a run can hold is written.
func BenchmarkEncodeEvent(b *testing.B) {
	run, at := wholeRun(), time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := events.EncodeEvent(at, events.RunFailed, goldenAttrs, run, events.Structured); err != nil {
			b.Fatal(err)
		}
	}
}

// The same event is read.
func BenchmarkDecodeEvent(b *testing.B) {
	h, data, err := events.EncodeEvent(time.Now(), events.RunFailed, goldenAttrs, wholeRun(), events.Structured)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := events.DecodeEvent(h, data); err != nil {
			b.Fatal(err)
		}
	}
}

// benchJournal is a journal on a nats-server in this process, whose CPU and allocations are in the figures.
func benchJournal(b *testing.B) *Journal {
	b.Helper()
	conn, err := Connect(b.Context(), Config{URL: natstest.StartServer(b).URL()}, zerolog.Nop())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(conn.Close)
	settings := Settings{Replicas: 1, EventsMaxAge: time.Hour, DeadlettersMaxAge: time.Hour, QueuePerVM: 2,
		AckWait: time.Minute, MaxInFlight: map[string]int{"lab": 16}, Provision: true}
	if err := conn.Provision(b.Context(), settings); err != nil {
		b.Fatal(err)
	}
	return NewJournal(conn, events.Structured)
}

// One event after the other is appended to a VM's history.
func BenchmarkAppend(b *testing.B) {
	j, run, last := benchJournal(b), wholeRun(), uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		run.N++
		id := fmt.Sprintf("%s.%d.token", run.ID, run.N)
		var err error
		if last, err = j.Append(b.Context(), last, id, events.RunWaiting, goldenAttrs, run); err != nil {
			b.Fatal(err)
		}
	}
}

// The read-back before an effect.
func BenchmarkConfirmLast(b *testing.B) {
	j, run := benchJournal(b), wholeRun()
	var marks [2]events.Mark
	for i := range marks {
		run.N = i + 1
		marks[i].MsgID = fmt.Sprintf("%s.%d.token", run.ID, run.N)
		var err error
		after := marks[0].Seq // 0 for the first
		if marks[i].Seq, err = j.Append(b.Context(), after, marks[i].MsgID, events.RunWaiting, goldenAttrs,
			run); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := j.ConfirmLast(b.Context(), run.VCenter, run.VM, marks[1], marks[0]); err != nil {
			b.Fatal(err)
		}
	}
}
