package vcsim

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// response is the HTTP response to a call.
type response struct {
	status      int
	contentType string
	header      http.Header
	body        []byte
	fault       string
}

func jsonResponse(status int, val any) response {
	body, err := json.Marshal(val)
	if err != nil {
		panic(err) // our own types
	}
	return response{status: status, contentType: "application/json", body: body}
}

// parsedCall is a call with how to carry it out, and how its protocol writes a fault.
type parsedCall struct {
	call  Call
	serve func() response
	fault func(types.BaseMethodFault) response
}

// maxBody is the largest request body that is read.
const maxBody = 16 << 20

// serveHTTP handles every request: it records it, asks the hooks and the rules, carries it out, and sends the response
// or not.
func (v *VCenter) serveHTTP(w http.ResponseWriter, r *http.Request) {
	if !v.startWork() {
		cutConnection(r)
	}
	defer v.wg.Done()

	arrived := time.Now()
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		cutConnection(r) // it did not arrive whole
	}

	x := v.checkPrivileges(v.parse(r, body), r, body)
	x.call.Time, x.call.Method = arrived, r.Method
	x.call.Path, x.call.Body = redactPath(r.URL.RequestURI()), redact(body)

	n, rules := v.rec.add(x.call)
	if v.rec.callHooks(x.call, Before) == Drop {
		cutConnection(r)
	}

	out := outcomeOf(rules, x)
	for _, rule := range rules {
		if rule.LoseCall || !v.pause(rule.Delay) {
			cutConnection(r)
		}
	}

	resp := out.serve()
	done := v.rec.recordResponse(n, resp.status, resp.fault)
	if v.rec.callHooks(done, After) == Drop || out.lose || !v.pause(out.delay) || v.closing() {
		cutConnection(r)
	}

	resp.send(w)
}

// outcome is what the rules make of a call.
type outcome struct {
	serve func() response // carries the call out, or gives the response in its place
	delay time.Duration   // of the response
	lose  bool            // the response
}

// outcomeOf applies the rules to a call: their delays add up, and the first response counts.
func outcomeOf(rules []Rule, x parsedCall) outcome {
	s := outcome{serve: x.serve}
	for _, rule := range slices.Backward(rules) { // backward, so that the first response is set last
		switch {
		case rule.HTTP != nil:
			s.serve = func() response {
				return response{
					status:      rule.HTTP.Status,
					contentType: rule.HTTP.ContentType,
					body:        []byte(rule.HTTP.Body),
				}
			}
		case rule.Fault != nil:
			s.serve = func() response { return x.fault(rule.Fault) }
		case rule.RESTError != "":
			s.serve = func() response {
				return restError(rule.RESTError, "com.vmware.api.scripted", "The operation failed as scripted.", nil)
			}
		}

		s.delay += rule.DelayResponse
		s.lose = s.lose || rule.LoseResponse
	}

	return s
}

func (resp response) send(w http.ResponseWriter) {
	h := w.Header()
	for name, values := range resp.header {
		h[name] = values
	}

	if resp.contentType != "" {
		h.Set("Content-Type", resp.contentType)
	}
	if resp.status != http.StatusNoContent {
		h.Set("Content-Length", strconv.Itoa(len(resp.body)))
	}

	w.WriteHeader(resp.status)
	_, _ = w.Write(resp.body)
}

// cutConnection cuts the connection of a request and ends its handler.
func cutConnection(r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(net.Conn); ok {
		reset(c)
	}
	panic(http.ErrAbortHandler)
}
