package handler

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/guestflow/guestflow/internal/backoff"
	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// askPause is the first pause before a repeat; each one is twice as long, up to longestPause, with jitter.
const (
	askPause     = 500 * time.Millisecond
	longestPause = 30 * time.Second
)

// newPause makes the pauses between repeats.
func newPause(first time.Duration) *backoff.Backoff { return backoff.New(first, longestPause) }

// paceOf is the pause of a run that has made so many Tasks, each of which was turned away: each event names them all,
// since none of them may be taken for another call's. Beyond tasksRemembered they double with each half of that number,
// so that a run of a month makes some four hundred, and waits a thirtieth of the time for which it has waited at most.
func paceOf(tasks int) time.Duration {
	over := float64(tasks-tasksRemembered) / (tasksRemembered / 2)
	if over <= 0 {
		return 0
	}
	return time.Duration(float64(longestPause) * math.Exp2(min(over, 16)))
}

// sleepUntil waits until t, or fails when ctx ends before.
func sleepUntil(ctx context.Context, t time.Time) error {
	left := time.Until(t)
	if t.IsZero() || left <= 0 {
		return ctx.Err()
	}
	return backoff.Sleep(ctx, left)
}

// outcome is what an answer of vCenter means for the run.
type outcome struct {
	code    events.Code
	waiting events.Waiting // it will pass: try again, telling this reason; empty: it will not
}

// byName is the one table from vCenter's names, VI JSON faults and REST error types, to ours.
var byName = map[string]outcome{
	"TaskInProgress":                {events.Busy, events.WaitingResourceBusy},
	"CustomizationPending":          {events.Busy, events.WaitingResourceBusy},
	"RESOURCE_BUSY":                 {events.Busy, events.WaitingResourceBusy},
	"RESOURCE_IN_USE":               {events.Busy, events.WaitingResourceBusy},
	"CONCURRENT_CHANGE":             {events.Busy, events.WaitingResourceBusy},
	"ConcurrentAccess":              {events.Busy, events.WaitingResourceBusy},
	"TooManyGuestLogons":            {events.Busy, events.WaitingResourceBusy},
	"InvalidPowerState":             {events.PowerState, ""},
	"NOT_ALLOWED_IN_CURRENT_STATE":  {events.PowerState, ""},
	"InvalidState":                  {events.InvalidState, events.WaitingTools},
	"GuestOperationsUnavailable":    {events.ToolsNotRunning, events.WaitingTools},
	"ToolsUnavailable":              {events.ToolsNotRunning, events.WaitingTools},
	"GuestComponentsOutOfDate":      {events.Unsupported, ""},
	"OperationNotSupportedByGuest":  {events.Unsupported, ""},
	"OperationDisabledByGuest":      {events.Unsupported, ""},
	"NotSupported":                  {events.Unsupported, ""},
	"UNSUPPORTED":                   {events.Unsupported, ""},
	"OPERATION_NOT_FOUND":           {events.Unsupported, ""},
	"MethodNotFound":                {events.Unsupported, ""},
	"InvalidGuestLogin":             {events.GuestLoginRefused, ""},
	"GuestAuthenticationChallenge":  {events.GuestLoginRefused, ""},
	"GuestPermissionDenied":         {events.GuestPermissionDenied, ""},
	"GuestMultipleMappings":         {events.GuestLoginRefused, ""},
	"UncustomizableGuest":           {events.NotCustomizable, ""},
	"ManagedObjectNotFound":         {events.NotFound, ""},
	"NOT_FOUND":                     {events.NotFound, ""},
	"NotFound":                      {events.NotFound, ""},
	"NoPermission":                  {events.Unauthorized, ""},
	"UNAUTHORIZED":                  {events.Unauthorized, ""},
	"NotAuthenticated":              {events.Unauthenticated, events.WaitingVCenterUnavailable},
	"InvalidLogin":                  {events.Unauthenticated, events.WaitingVCenterUnavailable},
	"UNAUTHENTICATED":               {events.Unauthenticated, events.WaitingVCenterUnavailable},
	"UNVERIFIED_PEER":               {events.Unauthenticated, ""},
	"InvalidArgument":               {events.InvalidRequest, ""},
	"InvalidRequest":                {events.InvalidRequest, ""},
	"InvalidType":                   {events.InvalidRequest, ""},
	"INVALID_ARGUMENT":              {events.InvalidRequest, ""},
	"INVALID_REQUEST":               {events.InvalidRequest, ""},
	"UNEXPECTED_INPUT":              {events.InvalidRequest, ""},
	"INVALID_ELEMENT_TYPE":          {events.InvalidRequest, ""},
	"INVALID_ELEMENT_CONFIGURATION": {events.InvalidRequest, ""},
	"RequestCanceled":               {events.CodeCanceled, ""},
	"CANCELED":                      {events.CodeCanceled, ""},
}

// outcome is what an answer means in a step.
func (s *step) outcome(v *vcapi.Error) outcome {
	o := s.outcomeInAny(v)
	if s.answer != nil {
		o = s.answer(v, o)
	}
	return o
}

// outcomeInAny is what an answer means in any step.
func (s *step) outcomeInAny(v *vcapi.Error) outcome {
	o, named := byName[v.Name]
	switch {
	case v.Class == vcapi.GuestCredentials:
		if o.code != events.GuestPermissionDenied {
			o = outcome{code: events.GuestLoginRefused}
			if s.passwordMayChange() {
				o.waiting = events.WaitingGuestLogin
			}
		}
	case v.Name == "CustomizationFault", v.Name == "UnexpectedCustomizationFault":
		o = outcome{code: cmp.Or(s.fallback, events.Internal)}
	case named:
	case v.InvalidState():
		o = outcome{code: events.InvalidState}
		if v.Class == vcapi.Transient {
			o.waiting = events.WaitingTools
		}
	case v.Class == vcapi.Transient, v.Class == vcapi.SessionLost:
		o = outcome{events.CodeUnavailable, events.WaitingVCenterUnavailable}
	default:
		o = outcome{code: cmp.Or(s.fallback, events.Internal)}
	}

	return o
}

// loginRefused reports whether vCenter refuses the service's own login.
func loginRefused(err error) bool {
	var v *vcapi.Error
	return errors.As(err, &v) && v.Name == "InvalidLogin"
}

// passwordMayChange reports whether the guest may be changing the very password that it refuses: right after a
// customization.
func (s *step) passwordMayChange() bool {
	r := s.run
	c := r.state.Customize
	return s.name != events.StepCustomize && c != nil && c.FinishedAt != nil && time.Since(*c.FinishedAt) < time.Minute
}

// permanent reports whether an answer will not change when the call is repeated.
func permanent(err error) bool {
	var v *vcapi.Error
	return errors.As(err, &v) && v.Class != vcapi.Transient && v.Class != vcapi.SessionLost
}

// isFinal reports whether an answer ends the step: it will not change when the call is repeated, and means nothing that
// passes.
func (s *step) isFinal(err error) bool {
	var v *vcapi.Error
	return permanent(err) && errors.As(err, &v) && s.outcome(v).waiting == ""
}

// failure is the end of a run that err makes in step s.
func (s *step) failure(err error) *stepError {
	var known *stepError
	if errors.As(err, &known) {
		return known
	}
	f := &stepError{step: s.name, process: s.process, code: events.Internal, message: err.Error(), err: err}
	var v *vcapi.Error
	if errors.As(err, &v) {
		o := s.outcome(v)
		f.code, f.retryable = o.code, o.waiting != "" || v.Class == vcapi.Transient
		cure := cureOf(s.name, f.code, v)
		if lacks := missingPrivilege(v); lacks != "" {
			cure = "give the service's vCenter role the privilege " + lacks
		}
		if strings.Contains(v.Message, noEngine) {
			f.retryable = false
			cure = "the guest customization engine is not installed in the guest; install it in the template that " +
				"the VM was made from"
		}
		if words, retryable := engineWords(strings.Join([]string{v.Message, v.LocalizedMessage, string(v.Data)},
			"\n")); words != "" {
			cure, f.retryable = words, retryable
		}

		if cure != "" {
			f.message = strings.TrimSuffix(f.message, ".") + ": " + cure
		}
	}

	return f
}

// missingPrivilege is the one that a NoPermission names; "" where none is named. (VI JSON: NoPermission.)
func missingPrivilege(v *vcapi.Error) string {
	var fault struct {
		PrivilegeID string `json:"privilegeId"`
		Missing     []struct {
			PrivilegeIDs []string `json:"privilegeIds"`
		} `json:"missingPrivileges"`
	}

	if v.Name != "NoPermission" || json.Unmarshal(v.Data, &fault) != nil {
		return ""
	}
	all := []string{}
	for _, m := range fault.Missing {
		all = append(all, m.PrivilegeIDs...)
	}
	if len(all) == 0 && fault.PrivilegeID != "" {
		all = append(all, fault.PrivilegeID)
	}
	return strings.Join(all, ", ")
}

// noEngine is how VMware Tools say that the guest customization engine is missing.
const noEngine = "does not support Guest Customization"

// timeError is the end of a run whose time, or whose step's time, is over. Where it was waiting for something that did
// not pass, that is the reason.
func (s *step) timeError(code events.Code, message string) *stepError {
	r := s.run
	f := &stepError{step: s.name, process: s.process, code: code, message: message, retryable: true}
	if r.state.Waiting == "" {
		return f
	}
	f.waiting = r.state.Waiting
	f.message += fmt.Sprintf(", waiting for %s", r.state.Waiting)
	if v := new(vcapi.Error); code == events.StepTimeout && *s.state != events.Running &&
		f.waiting != events.WaitingCallsInFlight &&
		errors.As(r.blocked.by, &v) && v.Class != vcapi.SessionLost {
		// It was turned away all the time; a session that is lost is renewed, and tells nothing.
		f.code = s.outcome(v).code
	}

	if loginRefused(r.blocked.by) {
		f.code, f.retryable = events.Unauthenticated, false
	}
	if r.blocked.by != nil {
		f.message += ": " + r.blocked.by.Error()
		f.err = r.blocked.by
	}

	if f.waiting == events.WaitingTools {
		f.message += ": see that VMware Tools run in the guest"
	}
	return f
}

// errorOf is what the events show of a failed step.
func (r *run) errorOf(f *stepError) *events.Error {
	if f.stored != nil {
		return f.stored
	}
	e := &events.Error{Step: f.step, Process: f.process, Code: f.code, Message: f.message, Retryable: f.retryable,
		Waiting: f.waiting}
	var v *vcapi.Error
	if errors.As(f.err, &v) {
		e.VSphere = vsphereOf(v)
	}
	return e
}

func vsphereOf(v *vcapi.Error) *events.VSphere {
	o := &events.VSphere{Name: v.Name, HTTPStatus: v.Status, LocalizedMessage: v.LocalizedMessage,
		Challenge: v.Challenge, Messages: v.Messages}
	if json.Valid(v.Data) {
		o.Data = v.Data
	}
	if v.Cause != nil {
		o.Cause = vsphereOf(v.Cause)
	}
	if o.Name == "" && o.HTTPStatus == 0 && len(o.Messages) == 0 && o.LocalizedMessage == "" {
		return nil // vCenter said nothing
	}
	return o
}

// isTimeOver reports whether an error only says that a time has ended: a failure that is known is not dropped for that.
func isTimeOver(err error) bool {
	return errors.Is(err, errLooked) || errors.Is(err, errStepTime) || errors.Is(err, errDeadline)
}
