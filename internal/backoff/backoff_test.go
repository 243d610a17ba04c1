package backoff_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/guestflow/guestflow/internal/backoff"
)

// within fails where a pause is not between half of want and want.
func within(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if got < want/2 || got > want {
		t.Errorf("%s: waits %s, want %s to %s", what, got, want/2, want)
	}
}

func TestPausesGrow(t *testing.T) {
	t.Parallel()
	b := backoff.New(time.Second, 5*time.Second)
	for i, seconds := range []int{1, 2, 4, 5, 5} {
		within(t, fmt.Sprint("pause ", i), b.Next(), time.Duration(seconds)*time.Second)
	}

	b.Reset()
	within(t, "after Reset", b.Next(), time.Second)

	b.AtLeast(time.Minute)
	within(t, "after AtLeast", b.Next(), time.Minute)
	within(t, "the one after", b.Next(), 5*time.Second)
}

func TestWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, began := backoff.New(time.Hour, time.Hour), time.Now()
		if err := b.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		within(t, "Wait", time.Since(began), time.Hour)

		wake := make(chan struct{}, 1)
		wake <- struct{}{}
		began = time.Now()
		if err := b.WaitOrWake(t.Context(), wake); err != nil || time.Since(began) != 0 {
			t.Errorf("a signal is waited for %s, %v", time.Since(began), err)
		}
		if err := b.WaitOrWake(t.Context(), wake); err != nil {
			t.Error(err)
		}
		within(t, "without a signal", time.Since(began), time.Hour)

		why := errors.New("the process stops")
		ctx, stop := context.WithCancelCause(t.Context())
		stop(why)
		for name, err := range map[string]error{
			"Wait": b.Wait(ctx), "WaitOrWake": b.WaitOrWake(ctx, wake), "Sleep": backoff.Sleep(ctx, time.Hour),
		} {
			if !errors.Is(err, why) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func ExampleBackoff() {
	ctx := context.Background()
	wake := make(chan struct{}) // closed or signalled when it is worth to look
	answers := 0
	done := func() bool { answers++; return answers == 3 }

	for pause := backoff.New(time.Millisecond, time.Second); !done(); {
		if err := pause.WaitOrWake(ctx, wake); err != nil {
			return
		}
	}
	fmt.Println("done after", answers, "looks")
	// Output: done after 3 looks
}
