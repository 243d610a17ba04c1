package vcsim

import (
	"slices"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// Call is one HTTP request that reached the simulated vCenter, in the order of arrival.
type Call struct {
	// Time is when it arrived, by our clock.
	Time time.Time
	// Op is what it asks for: a method of VI JSON or SOAP ("CustomizeGuest_Task", "WaitForUpdatesEx", "Login"), a
	// property ("GET Task/info"), or a REST operation ("GET guest/customization", "guest/customization check",
	// "guest/processes create", "GET guest/operations", "POST /api/session", "system hello"), or "GET guest file". For
	// what is not known it is method and path.
	Op string
	// VM is the managed object ID of the VM that it is about, also by way of a Task, where that can be seen.
	VM string
	// Method and Path are those of HTTP; the path has its query, with a file's token blanked.
	Method, Path string
	// Body is the request's, with passwords and tokens blanked.
	Body string
	// Session is the UserSession's key of the session that the call was made with; for a session of REST alone its
	// token; "" for none.
	Session string
	// Status is the answer's, 0 while there is none. Fault is the answer's fault (_typeName) or error_type, "" for
	// none.
	Status int
	Fault  string
}

// Phase is when a hook is called.
type Phase int

const (
	// Before is when the call has arrived and nothing has happened yet.
	Before Phase = iota
	// After is when it has taken effect and is not answered yet; Status and Fault are known.
	After
)

// Action is what a hook wants to happen.
type Action int

const (
	// Proceed goes on.
	Proceed Action = iota
	// Drop cuts the connection: Before, nothing happens; After, the answer is lost.
	Drop
)

// Rule scripts what happens to calls. All rules that match a call apply, in the order in which they were added: their
// delays add up, and the first response counts.
type Rule struct {
	// VM and Op select the calls; "" is any.
	VM, Op string
	// Skip is how many matching calls pass before the rule begins, Times how many it then applies to; 0 is all.
	Skip, Times int
	// Delay holds the call back before it takes effect, also when the client has given up: a call that travels long.
	// DelayResponse holds its answer back.
	Delay, DelayResponse time.Duration
	// Fault is answered in the place of the call's effect, over VI JSON and SOAP.
	Fault types.BaseMethodFault
	// RESTError is an error_type that is answered in the place of the call's effect, over REST.
	RESTError string
	// HTTP is answered in the place of the call's effect, as it is.
	HTTP *Response
	// LoseCall cuts the connection before the call takes effect, LoseResponse after it.
	LoseCall, LoseResponse bool
}

// Response is a raw HTTP response, such as a proxy's page.
type Response struct {
	Status      int
	ContentType string
	Body        string
}

// recorder keeps the calls, the rules and the hooks.
type recorder struct {
	mu    sync.Mutex
	calls []Call
	rules []*activeRule
	hooks []func(Call, Phase) Action
}

type activeRule struct {
	Rule
	seen int
}

// Calls are all calls so far, in the order of their arrival.
func (v *VCenter) Calls() []Call {
	v.rec.mu.Lock()
	defer v.rec.mu.Unlock()
	return slices.Clone(v.rec.calls)
}

// Count is how many calls of an operation arrived for a VM, answered or not; "" is any. How often they took effect is
// VM.Effects.
func (v *VCenter) Count(op, vm string) int {
	v.rec.mu.Lock()
	defer v.rec.mu.Unlock()

	n := 0
	for _, c := range v.rec.calls {
		if (op == "" || c.Op == op) && (vm == "" || c.VM == vm) {
			n++
		}
	}
	return n
}

// OnCall adds a hook that is called before and after each call, from the call's own goroutine and without a lock, so it
// may wait and may call everything here but Close. Where several hooks are set, one Drop is enough.
func (v *VCenter) OnCall(hook func(Call, Phase) Action) {
	v.rec.mu.Lock()
	defer v.rec.mu.Unlock()
	v.rec.hooks = append(v.rec.hooks, hook)
}

// Script adds a rule.
func (v *VCenter) Script(r Rule) {
	v.rec.mu.Lock()
	defer v.rec.mu.Unlock()
	v.rec.rules = append(v.rec.rules, &activeRule{Rule: r})
}

// ClearScript removes all rules. Hooks stay.
func (v *VCenter) ClearScript() {
	v.rec.mu.Lock()
	defer v.rec.mu.Unlock()
	v.rec.rules = nil
}

// add records a call and returns the rules that apply to it.
func (r *recorder) add(c Call) (n int, apply []Rule) {
	r.mu.Lock()
	defer r.mu.Unlock()

	r.calls = append(r.calls, c)
	for _, rule := range r.rules {
		if rule.VM != "" && rule.VM != c.VM || rule.Op != "" && rule.Op != c.Op {
			continue
		}
		rule.seen++
		if rule.seen > rule.Skip && (rule.Times == 0 || rule.seen <= rule.Skip+rule.Times) {
			apply = append(apply, rule.Rule)
		}
	}

	return len(r.calls) - 1, apply
}

func (r *recorder) recordResponse(n, status int, fault string) Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls[n].Status, r.calls[n].Fault = status, fault
	return r.calls[n]
}

func (r *recorder) callHooks(c Call, p Phase) Action {
	r.mu.Lock()
	hooks := slices.Clone(r.hooks)
	r.mu.Unlock()
	action := Proceed

	for _, hook := range hooks {
		if hook(c, p) == Drop {
			action = Drop
		}
	}
	return action
}

// clearScriptOf removes the rules of one VM.
func (v *VCenter) clearScriptOf(id string) {
	v.rec.mu.Lock()
	defer v.rec.mu.Unlock()
	v.rec.rules = slices.DeleteFunc(v.rec.rules, func(r *activeRule) bool { return r.VM == id })
}
