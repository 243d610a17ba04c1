package events

import "time"

// The names of the steps, as events, errors and metrics have them.
const (
	StepCheck     = "check"
	StepCustomize = "customize"
	StepNetwork   = "network"
	StepVerify    = "verify"
	StepProcess   = "process"
)

// Step is one step of a run: its name, in a process step also the process's, and where it stands.
type Step struct {
	Name    string
	Process string
	State   *State // in the run

	FinishedAt **time.Time // in the run; of a process by the guest's clock
}

// Plan puts the steps that a request asks for into the run, each of them pending. What is absent is not done.
func (r *Run) Plan(asked *RequestSpec) {
	r.Check = &Check{State: Pending}
	if asked.Customize != nil {
		r.Customize = &Customize{State: Pending}
	}
	if asked.Network != nil {
		r.Network = &Network{State: Pending}
	}
	if asked.verifies() {
		r.Verify = &Verify{State: Pending}
	}
	for _, p := range asked.Processes {
		r.Processes = append(r.Processes, Process{Name: p.Name, State: Pending})
	}
}

// verifies reports whether what the guest shows is compared with the request: where it is asked for, and after a
// customization unless the request turns it off.
func (a *RequestSpec) verifies() bool {
	if a.Verify == nil {
		return a.Customize != nil
	}
	return !a.Verify.Off
}

// Steps are the run's steps in the order in which they are done; none before Plan.
func (r *Run) Steps() []Step {
	var all []Step
	if r.Check != nil {
		all = append(all, Step{Name: StepCheck, State: &r.Check.State, FinishedAt: &r.Check.FinishedAt})
	}
	if r.Customize != nil {
		all = append(all, Step{Name: StepCustomize, State: &r.Customize.State, FinishedAt: &r.Customize.FinishedAt})
	}
	if r.Network != nil {
		all = append(all, Step{Name: StepNetwork, State: &r.Network.State, FinishedAt: &r.Network.FinishedAt})
	}
	if r.Verify != nil {
		all = append(all, Step{Name: StepVerify, State: &r.Verify.State, FinishedAt: &r.Verify.FinishedAt})
	}
	for i := range r.Processes {
		p := &r.Processes[i]
		all = append(all, Step{Name: StepProcess, Process: p.Name, State: &p.State, FinishedAt: &p.FinishedAt})
	}
	return all
}
