package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/guestflow/guestflow/internal/client"
	"github.com/guestflow/guestflow/internal/events"
)

// progress is the line at the bottom of a terminal: the current runs, and how far they are.
type progress struct {
	screen *screen
	stop   func()

	mu   sync.Mutex
	on   bool                    // it is shown
	runs map[string]*runProgress // by vCenter and VM
	text string                  // while there is no run
	turn int
}

type runProgress struct {
	run   events.Run
	step  string
	since time.Time // ours: when the step began, as far as was seen
}

// startProgress shows progress until stop is called.
func (s *screen) startProgress(text string) *progress {
	p := &progress{screen: s, runs: map[string]*runProgress{}, text: text, stop: func() {}}
	if !s.live || s.json {
		return p
	}
	p.on = true
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			p.draw(time.Now())
			select {
			case <-tick.C:
			case <-quit:
				return
			}
		}
	}()
	p.stop = sync.OnceFunc(func() {
		close(quit)
		<-done
		p.mu.Lock()
		defer p.mu.Unlock()
		p.on = false
		s.setBottom("")
	})
	return p
}

// see updates the line after an event.
func (p *progress) see(e *client.Event) {
	defer p.draw(time.Now())
	p.mu.Lock()
	defer p.mu.Unlock()
	key := e.Run.VCenter + "/" + e.Run.VM
	if e.Last() || e.Kind == events.KindRejected {
		delete(p.runs, key)
		return
	}
	step := currentStep(&e.Run)
	h := p.runs[key]
	if h == nil || h.step != step {
		h = &runProgress{step: step, since: e.Time()}
		p.runs[key] = h
	}
	h.run = e.Run
}

func (p *progress) draw(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.on {
		p.screen.setBottom(p.line(now))
	}
}

var wheel = []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")

func (p *progress) line(now time.Time) string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(p.runs)) {
		h := p.runs[key]
		who := h.run.VMName
		if who == "" {
			who = h.run.VM
		}
		part := strings.TrimSpace(flat(who) + " " + h.step)
		if c := h.run.Customize; h.step == events.StepCustomize && c != nil && c.Progress != nil {
			if len(p.runs) == 1 {
				part += " " + bar(*c.Progress)
			}
			part += fmt.Sprintf(" %d %%", *c.Progress)
		}
		if h.run.Waiting != "" {
			part += ", waits: " + string(h.run.Waiting)
		}
		parts = append(parts, part+" "+shortDuration(now.Sub(h.since).Truncate(time.Second)))
	}
	text := strings.Join(parts, " · ")
	if len(parts) > 1 {
		text = fmt.Sprintf("%d runs: %s", len(parts), text)
	}
	if text == "" {
		text = p.text
	}
	if text == "" {
		return ""
	}
	p.turn++
	return fit(string(wheel[p.turn%len(wheel)])+" "+text, p.screen.columns()-1)
}

// bar draws a percentage.
func bar(percent int) string {
	const cells = 20
	full := min(max(percent, 0), 100) * cells / 100
	return strings.Repeat("█", full) + strings.Repeat("░", cells-full)
}

// currentStep is the step that a run is in; "" after the last one.
func currentStep(r *events.Run) string {
	for _, s := range r.Steps() {
		switch {
		case s.State.Ended():
		case s.Process != "":
			return s.Name + " " + flat(s.Process)
		default:
			return s.Name
		}
	}
	return ""
}
