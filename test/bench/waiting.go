package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/test/bench/fakevc"
)

// quietTime is for how long runs that wait are watched.
const quietTime = 30 * time.Second

// crowd is many runs that wait for the Tasks of their customizations. The modes waiting, reaction and resume work on
// the same one.
type crowd struct {
	*lab
	binary  string
	service *child
	runs    int
	ended   int // runs whose Task has ended
}

// gather starts the crowd, where there is none yet.
func (b *bench) gather(ctx context.Context) (*crowd, error) {
	if b.crowd != nil {
		return b.crowd, nil
	}
	l, err := newLab(ctx, b.settings.waiting)
	if err != nil {
		return nil, err
	}
	c := &crowd{lab: l, binary: b.services[0], runs: b.settings.waiting}
	b.crowd = c
	if err := l.tell(ctx, "hold", nil); err != nil {
		return nil, err
	}
	if c.service, err = l.startService(ctx, c.binary, "bench-1", b.profileEnv()...); err != nil {
		return nil, err
	}
	idle, err := c.service.memory("VmRSS")
	if err != nil {
		return nil, err
	}

	began := time.Now()
	if err := l.publish(ctx, customizeRequest, 0, c.runs); err != nil {
		return nil, err
	}
	if err := waitFor(ctx, "all runs to wait", time.Hour, func() (bool, error) {
		n, err := l.started(ctx)
		return n == c.runs, err
	}); err != nil {
		return nil, err
	}
	b.printf("\n%d runs, each waits for its Task: all do after %.1f s; RSS before %d MiB\n", c.runs,
		time.Since(began).Seconds(), idle/1024)
	return c, nil
}

// abandon ends the crowd's processes.
func (b *bench) abandon() {
	if b.crowd == nil {
		return
	}
	if b.crowd.service != nil {
		b.crowd.service.kill()
	}
	b.crowd.close()
}

// disperse ends what is left of the crowd, and checks that each run did its work once.
func (b *bench) disperse(ctx context.Context) error {
	c := b.crowd
	if c == nil {
		return nil
	}
	defer b.abandon()
	began := time.Now()
	if err := c.end(ctx, c.runs-c.ended, 0); err != nil {
		return err
	}
	if err := c.lab.ended(ctx, c.service, time.Hour); err != nil {
		return err
	}
	b.printf("\n%d Tasks end at once: all runs have ended after %.1f s\n", c.runs-c.ended, time.Since(began).Seconds())
	if err := c.once(ctx, c.runs, fakevc.Effects{Customized: 1}); err != nil {
		return err
	}
	b.printf("each of the %d runs succeeded and has customized its VM once\n", c.runs)
	return nil
}

// started is how many Tasks are held.
func (l *lab) started(ctx context.Context) (int, error) {
	var held int
	return held, getJSON(ctx, l.vcAt.Control+"/held", &held)
}

// end ends Tasks that are held.
func (c *crowd) end(ctx context.Context, n, rate int) error {
	return c.tell(ctx, "end", url.Values{"n": {strconv.Itoa(n)}, "rate": {strconv.Itoa(rate)}})
}

// waiting measures runs that wait while nothing happens.
func (b *bench) waiting(ctx context.Context) error {
	c, err := b.gather(ctx)
	if err != nil {
		return err
	}
	// The last of them may still be on their way into the long poll.
	if err := pause(ctx, 10*time.Second); err != nil {
		return err
	}
	if err := c.tell(ctx, "reset", nil); err != nil {
		return err
	}
	if err := b.startProfile(ctx, "guestflow"); err != nil {
		return err
	}
	before, err := c.snapshot(ctx, c.service)
	if err != nil {
		return err
	}
	if err := pause(ctx, quietTime); err != nil {
		return err
	}
	after, err := c.snapshot(ctx, c.service)
	if err != nil {
		return err
	}
	if err := b.stopProfile(ctx, "guestflow", "waiting"); err != nil {
		return err
	}
	return b.reportWaiting(ctx, c, before, after)
}

func (b *bench) reportWaiting(ctx context.Context, c *crowd, before, after snapshot) error {
	stats, err := c.stats(ctx)
	if err != nil {
		return err
	}
	rss, err := c.service.memory("VmRSS")
	if err != nil {
		return err
	}
	metrics, err := c.metrics(ctx)
	if err != nil {
		return err
	}

	runs, seconds := float64(c.runs), after.at.Sub(before.at).Seconds()
	live := metrics["go_memstats_next_gc_bytes"] / 2 // the next collection is due when the live heap has doubled
	used, natsUsed := (after.cpu - before.cpu).Seconds(), (after.nats - before.nats).Seconds()
	b.printf("\nwaiting: %d runs, for %.0f s in which nothing happens\n\n", c.runs, seconds)
	b.printf("RSS %d MiB: %.1f KiB per run; live heap %.1f KiB per run; %.2f goroutines per run\n", rss/1024,
		float64(rss)/runs, live/1024/runs, metrics["go_goroutines"]/runs)
	b.printf("CPU: %.3f cores; nats-server's %.3f; JetStream API requests: %d\n", used/seconds, natsUsed/seconds,
		after.api-before.api)
	b.printf("calls to vCenter: %v\n", stats.Calls)
	return b.write(map[string]any{"Mode": "waiting", "Runs": c.runs, "RSSKiB": rss, "Seconds": seconds,
		"CPUSeconds": used, "APIRequests": after.api - before.api, "Calls": stats.Calls,
		"Goroutines": metrics["go_goroutines"]})
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

var metricLine = regexp.MustCompile(`(?m)^([a-z_]+) ([-+0-9.e]+)$`)

// metrics are those of the service that have no labels.
func (l *lab) metrics(ctx context.Context) (map[string]float64, error) {
	text, err := fetch(ctx, l.service+"/metrics")
	if err != nil {
		return nil, err
	}
	all := map[string]float64{}
	for _, m := range metricLine.FindAllSubmatch(text, -1) {
		if all[string(m[1])], err = strconv.ParseFloat(string(m[2]), 64); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// reaction measures how long after a Task's end the event that says so is stored, while the others wait.
func (b *bench) reaction(ctx context.Context) error {
	c, err := b.gather(ctx)
	if err != nil {
		return err
	}
	n := min(b.ends, c.runs-c.ended)
	if err := b.startProfile(ctx, "guestflow"); err != nil {
		return err
	}
	before, err := c.service.cpu()
	if err != nil {
		return err
	}
	if err := c.end(ctx, n, b.rate); err != nil {
		return err
	}
	c.ended += n
	if err := waitFor(ctx, "the runs whose Tasks have ended", 10*time.Minute, func() (bool, error) {
		left, err := c.left(ctx)
		return int(left) == c.runs-c.ended, err
	}); err != nil {
		return err
	}
	after, err := c.service.cpu()
	if err != nil {
		return err
	}
	if err := b.stopProfile(ctx, "guestflow", "reaction"); err != nil {
		return err
	}

	took, err := c.reactions(ctx)
	if err != nil {
		return err
	}
	if len(took) != n {
		return fmt.Errorf("%d Tasks were ended, %d events say so", n, len(took))
	}
	b.printf("\nreaction: %d Tasks end, %d a second (0: all at once), while %d runs wait\n\n",
		n, b.rate, c.runs-c.ended)
	b.printf("from a Task's end to its event in the stream: p50 %s, p99 %s, most %s; CPU %.2f ms per end\n",
		quantile(took, 0.5), quantile(took, 0.99), quantile(took, 1),
		float64(after-before)/float64(time.Millisecond)/float64(n))
	return b.write(map[string]any{"Mode": "reaction", "Waiting": c.runs - c.ended, "Ends": n, "Rate": b.rate,
		"P50ms": quantile(took, 0.5).Milliseconds(), "P99ms": quantile(took, 0.99).Milliseconds()})
}

// reactions are the times from the end of a Task to the event that says so, sorted.
func (c *crowd) reactions(ctx context.Context) (took []time.Duration, err error) {
	ends := map[string]time.Time{}
	if err := getJSON(ctx, c.vcAt.Control+"/ends", &ends); err != nil {
		return nil, err
	}
	err = c.each(ctx, events.EventSubject(vcenterName, "*", events.CustomizeCompleted), true,
		func(m jetstream.Msg, at time.Time) {
			if end, ok := ends[strings.Split(m.Subject(), ".")[3]]; ok {
				took = append(took, at.Sub(end))
			}
		})
	slices.Sort(took)
	return took, err
}

// quantile is that of sorted times.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[int(q*float64(len(sorted)-1))].Round(time.Millisecond)
}

// resume kills the service with SIGKILL and measures how long the next one takes to own all its runs.
func (b *bench) resume(ctx context.Context) error {
	c, err := b.gather(ctx)
	if err != nil {
		return err
	}
	left := c.runs - c.ended
	if left == 0 {
		return errors.New("no run is left")
	}
	if err := c.tell(ctx, "reset", nil); err != nil {
		return err
	}
	api, err := c.apiCalls(ctx)
	if err != nil {
		return err
	}
	stored, _, err := c.count(ctx, "")
	if err != nil {
		return err
	}
	killed := time.Now()
	c.service.kill()
	if c.service, err = c.startService(ctx, c.binary, "bench-2", b.profileEnv()...); err != nil {
		return err
	}
	if err := b.startProfile(ctx, "guestflow"); err != nil {
		return err
	}
	if err := waitFor(ctx, "all runs to be resumed", 10*time.Minute, func() (bool, error) {
		n, _, err := c.count(ctx, "") // while all wait, nothing else is stored
		return n >= stored+left, err
	}); err != nil {
		return err
	}
	if err := b.stopProfile(ctx, "guestflow", "resume"); err != nil {
		return err
	}
	now, err := c.apiCalls(ctx)
	if err != nil {
		return err
	}
	return b.reportResume(ctx, c, left, killed, now-api)
}

func (b *bench) reportResume(ctx context.Context, c *crowd, left int, killed time.Time, api int64) error {
	var first, last time.Time
	resumed := 0
	if err := c.each(ctx, events.EventSubject(vcenterName, "*", events.RunResumed), true,
		func(_ jetstream.Msg, at time.Time) {
			if first.IsZero() {
				first = at
			}
			last = at
			resumed++
		}); err != nil {
		return err
	}
	if resumed != left {
		return fmt.Errorf("%d of %d runs were resumed", resumed, left)
	}
	used, err := c.service.cpu()
	if err != nil {
		return err
	}
	stats, err := c.stats(ctx)
	if err != nil {
		return err
	}

	runs := float64(left)
	b.printf("\nresume: the service is killed with %d runs in flight, and started again (ack wait %s)\n\n",
		left, ackWait)
	b.printf("all resumed %.1f s after the kill, %.1f s after the first; CPU %.2f ms per run; "+
		"JetStream API requests %.2f per run\n", last.Sub(killed).Seconds(), last.Sub(first).Seconds(),
		float64(used)/float64(time.Millisecond)/runs, float64(api)/runs)
	b.printf("calls to vCenter: %v\n", stats.Calls)
	return b.write(map[string]any{"Mode": "resume", "Runs": left, "Seconds": last.Sub(killed).Seconds(),
		"FirstToLast": last.Sub(first).Seconds(), "Calls": stats.Calls})
}
