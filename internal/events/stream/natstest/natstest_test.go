package natstest_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/guestflow/guestflow/internal/events/stream/natstest"
)

func TestMain(m *testing.M) {
	natstest.Main()
	goleak.VerifyTestMain(m)
}

// A server that was killed comes back at its port, with what it had stored.
func TestProcessesAreKilledAndComeBack(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := natstest.StartProcesses(t, 3)
	nc, err := nats.Connect(c.URL(), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	var st jetstream.Stream
	again(ctx, t, func() (err error) {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		st, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, Replicas: 3})
		return err
	})
	again(ctx, t, func() error { return publish(ctx, js, "1") })
	leader := c.Named(st.CachedInfo().Cluster.Leader)
	if leader == nil || c.Named("nobody") != nil {
		t.Fatalf("leader %q is %v", st.CachedInfo().Cluster.Leader, leader)
	}
	leader.Kill()
	again(ctx, t, func() error { return publish(ctx, js, "2") })
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
	again(ctx, t, func() error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		info, err := st.Info(ctx)
		switch {
		case err != nil:
			return err
		case info.State.Msgs != 2:
			return fmt.Errorf("%d messages", info.State.Msgs)
		}
		for _, r := range info.Cluster.Replicas {
			if r.Offline || !r.Current {
				return fmt.Errorf("%s is not current", r.Name)
			}
		}
		return nil
	})
}

// publish tries once to publish a message that the stream takes once.
func publish(ctx context.Context, js jetstream.JetStream, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := js.Publish(ctx, "s."+id, nil, jetstream.WithMsgID(id))
	return err
}

// again repeats f until it succeeds.
func again(ctx context.Context, t *testing.T, f func() error) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for err := f(); err != nil; err = f() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}
