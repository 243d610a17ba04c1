package vcsim

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
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

// Phase tells a hook when it is called.
type Phase int

const (
	// Before is when the call has arrived and nothing has happened yet.
	Before Phase = iota
	// After is when it has taken effect and is not answered yet; Status and Fault are known.
	After
)

// Action is what a hook wants.
type Action int

const (
	// Proceed goes on.
	Proceed Action = iota
	// Drop cuts the connection: Before, nothing happens; After, the answer is lost.
	Drop
)

// Rule scripts what happens to calls. All rules that match a call apply, in the order of their making: their delays add
// up, the first answer counts.
type Rule struct {
	// VM and Op select the calls; "" is any.
	VM, Op string
	// Skip is how many matching calls pass before the rule begins, Times how many it then applies to; 0 is all.
	Skip, Times int
	// Delay holds the call back before it takes effect, also when the client has given up: a call that travels long.
	// DelayAnswer holds its answer back.
	Delay, DelayAnswer time.Duration
	// Fault is answered in the place of the call's effect, over VI JSON and SOAP.
	Fault types.BaseMethodFault
	// RESTError is an error_type that is answered in the place of the call's effect, over REST.
	RESTError string
	// HTTP is answered in the place of the call's effect, as it is.
	HTTP *Answer
	// LoseCall cuts the connection before the call takes effect, LoseAnswer after it.
	LoseCall, LoseAnswer bool
}

// Answer is a raw HTTP answer, such as a proxy's page.
type Answer struct {
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

// ClearScript takes all rules away. Hooks stay.
func (v *VCenter) ClearScript() {
	v.rec.mu.Lock()
	defer v.rec.mu.Unlock()
	v.rec.rules = nil
}

// add records a call and takes the rules that apply to it.
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

func (r *recorder) answered(n, status int, fault string) Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls[n].Status, r.calls[n].Fault = status, fault
	return r.calls[n]
}

func (r *recorder) ask(c Call, p Phase) Action {
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

// answer is what goes back for a call.
type answer struct {
	status      int
	contentType string
	header      http.Header
	body        []byte
	fault       string
}

func jsonAnswer(status int, val any) answer {
	body, err := json.Marshal(val)
	if err != nil {
		panic(err) // our own types
	}
	return answer{status: status, contentType: "application/json", body: body}
}

// exchange is a call that was understood: how to carry it out, and how a fault is written in its protocol.
type exchange struct {
	call  Call
	serve func() answer
	fault func(types.BaseMethodFault) answer
}

// maxBody is more than any request has.
const maxBody = 16 << 20

// serveHTTP takes every request: it records it, asks the hooks and the rules, carries it out, and answers it or not.
func (v *VCenter) serveHTTP(w http.ResponseWriter, r *http.Request) {
	if !v.begin() {
		drop(r)
	}
	defer v.wg.Done()
	arrived := time.Now()
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		drop(r) // it never arrived whole
	}

	x := v.permit(v.understand(r, body), r, body)
	x.call.Time, x.call.Method, x.call.Path, x.call.Body = arrived, r.Method, redactPath(
		r.URL.RequestURI(),
	), redact(
		body,
	)

	n, rules := v.rec.add(x.call)
	if v.rec.ask(x.call, Before) == Drop {
		drop(r)
	}

	serve, late, lose := x.serve, time.Duration(0), false
	for i, rule := range slices.Backward(rules) { // backward: the first answer is set last
		switch {
		case rule.HTTP != nil:
			a := answer{status: rule.HTTP.Status, contentType: rule.HTTP.ContentType, body: []byte(rule.HTTP.Body)}
			serve = func() answer { return a }
		case rule.Fault != nil:
			serve = func() answer { return x.fault(rules[i].Fault) }
		case rule.RESTError != "":
			serve = func() answer {
				return restError(
					rules[i].RESTError,
					"com.vmware.api.scripted",
					"The operation failed as scripted.",
					nil,
				)
			}
		}

		late, lose = late+rule.DelayAnswer, lose || rule.LoseAnswer
	}

	for _, rule := range rules {
		if rule.LoseCall || !v.pause(rule.Delay) {
			drop(r)
		}
	}

	a := serve()
	done := v.rec.answered(n, a.status, a.fault)
	if v.rec.ask(done, After) == Drop || lose || !v.pause(late) || v.ending() {
		drop(r)
	}

	h := w.Header()
	for name, values := range a.header {
		h[name] = values
	}

	if a.contentType != "" {
		h.Set("Content-Type", a.contentType)
	}
	if a.status != http.StatusNoContent {
		h.Set("Content-Length", strconv.Itoa(len(a.body)))
	}

	w.WriteHeader(a.status)
	_, _ = w.Write(a.body)
}

// drop cuts a request's connection and ends its handler.
func drop(r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(net.Conn); ok {
		reset(c)
	}
	panic(http.ErrAbortHandler)
}

const blanked = "***"

var xmlSecrets = regexp.MustCompile(
	`(?s)(<(?:\w+:)?(password|token|samlToken)\b[^>]*>)(.*?)(</(?:\w+:)?(?:password|token|samlToken)>)`,
)

// redact is a body without its passwords and tokens.
func redact(body []byte) string {
	body = bytes.TrimSpace(body)
	if len(body) == 0 {
		return ""
	}
	if body[0] == '<' {
		return xmlSecrets.ReplaceAllString(string(body), "${1}"+blanked+"${4}")
	}
	if !json.Valid(body) {
		return "(" + strconv.Itoa(len(body)) + " bytes that are not JSON)" // where the secrets are cannot be told
	}

	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var val any
	if err := dec.Decode(&val); err != nil || !blank(val) {
		return string(body)
	}

	out, err := json.Marshal(val)
	if err != nil {
		panic(err) // it was JSON
	}

	return string(out)
}

// blank blanks secrets in a JSON value and reports whether there were any.
func blank(val any) bool {
	found := false
	switch x := val.(type) {
	case map[string]any:
		isPassword := x["_typeName"] == "CustomizationPassword"
		for key, member := range x {
			_, isText := member.(string)
			if isText && (key == "password" || key == "saml_token" || key == "token" || isPassword && key == "value") {
				x[key] = blanked
				found = true
				continue
			}
			found = blank(member) || found
		}
	case []any:
		for _, member := range x {
			found = blank(member) || found
		}
	}

	return found
}
