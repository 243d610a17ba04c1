package e2e

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// spans are durations of which the least, the middle and the most are told.
type spans []time.Duration

func (s spans) String() string {
	if len(s) == 0 {
		return "none"
	}
	sorted := slices.Sorted(slices.Values(s))
	ms := func(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
	return fmt.Sprintf("min %s, median %s, max %s (%d)", ms(sorted[0]), ms(sorted[len(sorted)/2]),
		ms(sorted[len(sorted)-1]), len(sorted))
}

// From the end of a run's owner to the other replica's run.resumed, and to its next call that changes the guest: by
// SIGTERM, which gives the run back, and by SIGKILL, which leaves it to the ack wait.
func TestHandOverAndTakeoverTimes(t *testing.T) {
	t.Parallel()
	const lanes = 4
	perLane := 1
	if *everyPoint {
		perLane = 3
	}
	for _, how := range []string{"SIGTERM", "SIGKILL"} {
		url := startNATS(t)
		var mu sync.Mutex
		var ended, resumed, acted spans
		inLanes(t, lanes, func(t *testing.T, n int) {
			l := newLane(t, url, fmt.Sprintf("lab-%d", n), 1, perLane)
			for i := range perLane {
				end, resume, act := l.handOver(fmt.Sprintf("%s %d", how, i), how)
				mu.Lock()
				ended, resumed, acted = append(ended, end), append(resumed, resume), append(acted, act)
				mu.Unlock()
			}
		})
		t.Logf("%s with an ack wait of 1s, T+D+V = 2.4s: the process was gone after: %s; run.resumed after: %s; the "+
			"next act after: %s", how, ended, resumed, acted)
	}
}

// handOver ends the owner of a run when its customization has begun, and measures until the other replica has it, and
// starts the network.
func (l *lane) handOver(id, how string) (ended, resumed, acted time.Duration) {
	l.t.Helper()
	vm := l.vm()
	signal := make(chan string, 1)
	act := make(chan time.Time, 1)
	l.listen(func(e event) {
		if e.run.VM == vm && e.kind == "customize.started" {
			signal <- e.run.Owner.Instance
		}
	})
	l.hook(func(c vcsim.Call, phase vcsim.Phase) vcsim.Action {
		if c.Op == "StartGuestNetwork_Task" && phase == vcsim.Before {
			act <- time.Now()
		}
		return vcsim.Proceed
	})
	l.publish(vm, id, fullRequest("exit 0"))
	owner := <-signal
	begun := time.Now()
	if how == "SIGKILL" {
		l.kill(owner)
	} else if err := l.replica(owner).stop(); err != nil {
		l.t.Errorf("after SIGTERM: %v", err)
	}
	ended = time.Since(begun)
	l.gone(owner)
	resumed = l.await(id, "run.resumed").at.Sub(begun)
	acted = (<-act).Sub(begun)
	l.settled(id, vm)
	l.hook(nil)
	l.listen(nil)
	l.once(id, vm)
	l.both()
	return ended, resumed, acted
}
