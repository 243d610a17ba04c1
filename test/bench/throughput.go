package main

import (
	"context"
	"fmt"
	"time"

	"github.com/guestflow/guestflow/test/bench/fakevc"
)

// check measures runs that only check; full those that do everything.
func (b *bench) check(ctx context.Context) error {
	return b.throughput(ctx, job{mode: "check", data: checkRequest})
}

func (b *bench) full(ctx context.Context) error {
	return b.throughput(ctx, job{mode: "full", data: fullRequest,
		want: fakevc.Effects{Customized: 1, NetworkStarted: 1, Processes: 1}})
}

// throughput lets each contender make so many runs, one contender after the other, round by round.
func (b *bench) throughput(ctx context.Context, j job) error {
	script, err := record(ctx, b.services[0], j.data)
	if err != nil {
		return fmt.Errorf("record a run: %w", err)
	}
	contenders := b.contenders(script)
	rounds := make([][]*figures, len(contenders))
	for round := range b.rounds {
		for i, c := range contenders {
			f, err := b.round(ctx, c, j)
			if err != nil {
				return fmt.Errorf("round %d, %s: %w", round+1, c.name, err)
			}
			f.Mode, f.Name, f.Round = j.mode, c.name, round+1
			rounds[i] = append(rounds[i], f)
			if err := b.write(f); err != nil {
				return err
			}
		}
	}
	b.printf("\n%s: %d rounds of %d runs, %d in flight\n\n", j.mode, b.rounds, b.runs, b.inFlight)
	report(b.say, rounds)
	return nil
}

// figures are what one contender did in one round. What has no unit in its name is per run.
type figures struct {
	Mode, Name    string
	Round, Runs   int
	Seconds       float64 // from the first request to the last event
	RunsPerSecond float64
	CPUms         float64 // of the process that is measured
	NATSCPUms     float64
	VCenterCPUms  float64
	Events        float64
	Calls         float64
	CallsBy       map[string]float64 // by operation
	Handshakes    float64            // of TLS
	Resumed       float64            // of these
	APIRequests   float64            // to JetStream's API: reads of streams, mostly
	PeakRSSMiB    float64
}

// round is one round of one contender.
func (b *bench) round(ctx context.Context, c contender, j job) (*figures, error) {
	l, err := newLab(ctx, b.inFlight)
	if err != nil {
		return nil, err
	}
	defer l.close()
	p, err := c.start(ctx, l)
	if err != nil {
		return nil, err
	}
	defer p.kill()

	if err := l.tell(ctx, "reset", nil); err != nil { // what the contender did to get ready is of no run
		return nil, err
	}
	if err := b.startProfile(ctx, c.name); err != nil {
		return nil, err
	}
	before, err := l.snapshot(ctx, p)
	if err != nil {
		return nil, err
	}
	if err := l.publish(ctx, j.data, 0, b.runs); err != nil {
		return nil, err
	}
	if err := l.ended(ctx, p, time.Hour); err != nil {
		return nil, err
	}
	after, err := l.snapshot(ctx, p)
	if err != nil {
		return nil, err
	}
	if err := b.stopProfile(ctx, c.name, j.mode); err != nil {
		return nil, err
	}

	f, err := l.figures(ctx, b.runs, before, after)
	if err != nil {
		return nil, err
	}
	peak, err := p.memory("VmHWM")
	if err != nil {
		return nil, err
	}
	f.PeakRSSMiB = float64(peak) / 1024
	return f, l.once(ctx, b.runs, j.want)
}

// snapshot is what the processes have used so far.
type snapshot struct {
	at                 time.Time
	cpu, nats, vcenter time.Duration
	api                int64
}

func (l *lab) snapshot(ctx context.Context, p *child) (s snapshot, err error) {
	s.at = time.Now()
	if s.cpu, err = p.cpu(); err != nil {
		return s, err
	}
	if s.nats, err = l.nats.cpu(); err != nil {
		return s, err
	}
	if s.vcenter, err = l.vcenter.cpu(); err != nil {
		return s, err
	}
	s.api, err = l.apiCalls(ctx)
	return s, err
}

// figures are those of so many runs between two snapshots.
func (l *lab) figures(ctx context.Context, runs int, before, after snapshot) (*figures, error) {
	stats, err := l.stats(ctx)
	if err != nil {
		return nil, err
	}
	stored, last, err := l.count(ctx, "")
	if err != nil {
		return nil, err
	}
	n := float64(runs)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) / n }
	f := &figures{
		Runs:         runs,
		Seconds:      last.Sub(before.at).Seconds(),
		CPUms:        ms(after.cpu - before.cpu),
		NATSCPUms:    ms(after.nats - before.nats),
		VCenterCPUms: ms(after.vcenter - before.vcenter),
		Events:       float64(stored) / n,
		CallsBy:      map[string]float64{},
		Handshakes:   float64(stats.Handshakes) / n,
		Resumed:      float64(stats.Resumed) / n,
		APIRequests:  float64(after.api-before.api) / n,
	}
	f.RunsPerSecond = n / f.Seconds
	for op, count := range stats.Calls {
		f.CallsBy[op] = float64(count) / n
		f.Calls += f.CallsBy[op]
	}
	return f, nil
}

// once checks that each of so many runs succeeded, and that just what was wanted was done to its VM.
func (l *lab) once(ctx context.Context, runs int, want fakevc.Effects) error {
	succeeded, _, err := l.count(ctx, "run.succeeded")
	if err != nil {
		return err
	}
	if succeeded != runs {
		return fmt.Errorf("%d of %d runs succeeded", succeeded, runs)
	}
	stats, err := l.stats(ctx)
	if err != nil {
		return err
	}
	for i := range runs {
		if vm := vmID(i); stats.VMs[vm] != want {
			return fmt.Errorf("%s: done %+v, want %+v: something was done twice, or not at all",
				vm, stats.VMs[vm], want)
		}
	}
	return nil
}
