package handler

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/guestflow/guestflow/internal/events"
)

// checkpointVersion is the shape of checkpoint that this build writes; oldestCheckpoint is the oldest one that it
// reads. An owner that meets another one hands the run back untouched. Version 2 only adds members: one of version 1
// has no evidence from before its calls but the Tasks and the start of the guest's own status, and what is absent
// proves nothing.
const (
	checkpointVersion = 2
	oldestCheckpoint  = 1
)

// remembered is how many of a VM's last runs its journal can still name.
const remembered = 32

// tasksRemembered bounds what it names of one run: one that is turned away for hours makes a Task with each attempt.
const tasksRemembered = 64

// olderTasks bounds what it names of the runs before the last one: all of them are in every event. The last Tasks
// count: vCenter shows one late by the visibility lag, and from the sixth on they are 15 seconds apart at least.
const olderTasks = 16

// checkpoint is what a run must know after a takeover beyond what its subscribers read. It travels in every event, so
// the VM's last event alone is enough to go on.
type checkpoint struct {
	Version int `json:"version"`
	// Seq, Stream and At are the request's place in the requests stream: a sequence alone may be used again. Version 1
	// has no more than that.
	Seq    uint64     `json:"seq"`
	Stream *time.Time `json:"stream,omitempty"` // when that stream was made
	At     *time.Time `json:"at,omitempty"`     // when it stored the request
	Digest string     `json:"digest"`           // of the request's data
	// Accepted is the sequence of the run's run.accepted in the events stream, in the events behind it.
	Accepted uint64 `json:"accepted,omitempty"`
	// Lost says that the run may have had events before its run.accepted, which are gone, until its first call knows
	// better.
	Lost *lost `json:"lost,omitempty"`
	// Baseline are the Tasks on this VM that vCenter showed before the run made any: a Task among them is not this
	// run's.
	Baseline []string `json:"baseline,omitempty"`
	// By vCenter's clock; absent: vCenter was silent, there is no baseline yet.
	BaselineAt *time.Time `json:"baselineAt,omitempty"`
	// Recent says that the baseline is vCenter's recent Tasks alone: its history could not be read, and may show older
	// ones later.
	Recent bool `json:"recent,omitempty"`
	// BaselineNewest is when the newest of the baseline was queued; BaselineOurs is our clock's time at BaselineAt: it
	// only reports whether vCenter's was set back since.
	BaselineNewest *time.Time `json:"baselineNewest,omitempty"`
	BaselineOurs   *time.Time `json:"baselineOurs,omitempty"`
	// Instance is the instance UUID of the vCenter that Baseline and Tasks are of: another vCenter's Tasks have the
	// same IDs.
	Instance string `json:"vcenter,omitempty"`
	// Tasks are the ones that this run made, see taskMark. Past holds those of earlier runs: vCenter may have shown
	// them too late for the baseline.
	Tasks  []string  `json:"tasks,omitempty"`
	Past   []pastRun `json:"past,omitempty"` // oldest first
	Intent *intent   `json:"intent,omitempty"`
	before           // what there was of the guest before the last call
	// Spec is the digest of the customization specification that is stored in vCenter, as the check read it.
	Spec string `json:"spec,omitempty"`
	// Failed is why the customization failed that was aborted, and is to be repeated: it is told where no repeat comes
	// to its end.
	Failed *events.Error `json:"failed,omitempty"`
	// Step and StepSince are the step that the run is in and since when (our clock): its time goes on across takeovers.
	Step      string     `json:"step,omitempty"`
	StepSince *time.Time `json:"stepSince,omitempty"`
	// Of the steps' clock, which stands still while vCenter is away: how long it had stood still when that step, or the
	// wait for VMware Tools before it, began; how long up to this event; and since when it stands still now, if it
	// does.
	StepStood time.Duration `json:"stepStood,omitempty"`
	Ready     *phase        `json:"ready,omitempty"`
	Stood     time.Duration `json:"stood,omitempty"`
	Still     *time.Time    `json:"still,omitempty"`
	Released  *release      `json:"released,omitempty"`
	// In the last event: the effects that may or may not have been made.
	Doubt   []string `json:"doubt,omitempty"`
	Aborted bool     `json:"aborted,omitempty"` // the customization was aborted and begun again once
	Abort   bool     `json:"abort,omitempty"`   // the customization must be aborted before the next attempt
	// The effect that is made again although it may have taken effect, as the request asks (effect.key).
	Repeat   string   `json:"repeat,omitempty"`
	Unmarked []string `json:"unmarked,omitempty"` // the processes that were started without our marker, by name
	Aborting string   `json:"aborting,omitempty"` // the Task of an abort that is not known to have ended
}

// pastRun is an ended run of the same VM.
type pastRun struct {
	Run      string   `json:"run"`
	Digest   string   `json:"digest"`
	Tasks    []string `json:"tasks,omitempty"`
	Instance string   `json:"vcenter,omitempty"` // the instance UUID of the vCenter that they are of
	// Asked names what it made the guest show, where it customized it, and Until is how long the guest may not show
	// that yet.
	Asked string     `json:"asked,omitempty"`
	Until *time.Time `json:"until,omitempty"`
	// Doubt names the effects of which this run ended without knowing whether they took effect: their Task may still
	// appear, and is nobody's to adopt.
	Doubt []string `json:"doubt,omitempty"`
	// Canceled names the cancel that ended it: delivered again, that one has done what it asks for.
	Canceled *events.RequestRef `json:"canceled,omitempty"`
}

// intent is the declaration that a call is about to be made. It is open until the fact, or the proof that nothing
// happened, is stored.
type intent struct {
	Act     string    `json:"act"`               // customize, abort, network, process
	Process string    `json:"process,omitempty"` // in a process effect: which one
	At      time.Time `json:"at"`                // vCenter's clock
	Newest  string    `json:"newest,omitempty"`  // the newest Task on the VM that vCenter showed at that time
	// Key (public, not its secret ID) of a vCenter session that was alive then: while it lives, vCenter was not
	// restarted.
	Session string `json:"session,omitempty"`
	Guest   string `json:"guest,omitempty"` // in a process effect: who vmtoolsd and pid 1 were
	// In a process effect without a marker: the processes of the same program that were there, by pid and start time.
	Alike []string `json:"alike,omitempty"`
}

// phase is the wait for VMware Tools before a step.
type phase struct {
	Step  string        `json:"step"`
	Since time.Time     `json:"since"`
	Stood time.Duration `json:"stood,omitempty"`
}

// release marks the one delivery that may trust that no call is outstanding: number Delivered + 1 of the request at
// that place.
type release struct {
	Seq       uint64     `json:"seq"`
	At        *time.Time `json:"at,omitempty"`
	Delivered uint64     `json:"delivered"`
}

// followedBy reports whether a delivery is the very next one of the same request.
func (r *release) followedBy(req *events.Request) bool {
	return r != nil && r.Seq == req.Seq && (r.At == nil || r.At.Equal(req.At)) && r.Delivered+1 == req.Delivered
}

// stands notes where the run's request is.
func (c *checkpoint) stands(p events.Place) {
	c.Seq, c.Stream, c.At = p.Seq, moment(p.Stream), moment(p.At)
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// place is where the request of the run stood whose event last is. A checkpoint of version 1 has its sequence only: it
// was stored before that event.
func (c *checkpoint) place(last *events.Entry) events.Place {
	p := events.Place{Seq: c.Seq, At: last.At}
	if c.Stream != nil {
		p.Stream = *c.Stream
	}
	if c.At != nil {
		p.At = *c.At
	}
	return p
}

// isOf reports whether the run stands on this very message.
func (c *checkpoint) isOf(req *events.Request) bool {
	return c.Seq == req.Seq && (c.At == nil || c.At.Equal(req.At))
}

// readCheckpoint decodes the checkpoint of a VM's last event. What it gives is of this build's version, for that is
// what it is written as.
func readCheckpoint(e *events.Entry) (checkpoint, error) {
	var c checkpoint
	if err := json.Unmarshal(e.Run.Checkpoint, &c); err != nil {
		return c, fmt.Errorf("event %s.%d: checkpoint: %w", e.Run.ID, e.Run.N, err)
	}
	if c.Version < oldestCheckpoint || c.Version > checkpointVersion {
		return c, fmt.Errorf("event %s.%d: checkpoint version %d, this build knows %d to %d", e.Run.ID, e.Run.N,
			c.Version, oldestCheckpoint, checkpointVersion)
	}

	c.Version = checkpointVersion
	return c, nil
}

// past finds an ended run by its ID.
func (c *checkpoint) past(run string) (pastRun, bool) {
	i := slices.IndexFunc(c.Past, func(p pastRun) bool { return p.Run == run })
	if i < 0 {
		return pastRun{}, false
	}
	return c.Past[i], true
}

// ended is the memory that the next run of this VM begins with: that of this run, and this run itself.
func (c *checkpoint) ended(run *events.Run) []pastRun {
	tasks := c.Tasks
	if over := len(tasks) - tasksRemembered; over > 0 {
		tasks = tasks[over:] // the older ones ended long before the next run's baseline
	}
	this := pastRun{Run: run.ID, Digest: c.Digest, Tasks: tasks, Instance: c.Instance, Doubt: c.Doubt}
	if done := run.Customize; done != nil && done.State == events.Succeeded && done.FinishedAt != nil {
		until := done.FinishedAt.Add(reportedWithin)
		this.Asked, this.Until = c.Asked, &until
	}

	if by := run.CanceledBy; by != nil {
		this.Canceled = &events.RequestRef{Source: by.Source, ID: by.ID}
	}
	past := append(slices.Clone(c.Past), this)
	if over := len(past) - remembered; over > 0 {
		past = past[over:]
	}
	for i := range len(past) - 1 { // between each of them and the next run that calls stands one more run at least
		if over := len(past[i].Tasks) - olderTasks; over > 0 {
			past[i].Tasks = past[i].Tasks[over:]
		}
	}

	return past
}

// doubted reports whether the last run of the VM that came as far as an effect ended without knowing whether it took
// effect.
func (c *checkpoint) doubted(effect string) bool {
	for _, p := range slices.Backward(c.Past) {
		if slices.Contains(p.Doubt, effect) {
			return true
		}
		if len(p.Tasks) > 0 {
			return false
		}
	}
	return false
}
