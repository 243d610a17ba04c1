package handler

import (
	"strconv"
	"strings"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// faultKind is what a fault of the guest customization manager means. It means the same as the answer of the call and
// as the end of its Task; but an answer proves that the call did nothing, while a Task may have come to any point.
type faultKind int

const (
	final     faultKind = iota // it will not change, and the guest was not touched
	passes                     // nothing was done, and it will pass: busy, say
	toolsLost                  // VMware Tools cannot be reached: how far a Task came nobody knows
	// The fault that the engine gives for anything, such as a lock left by a crash: the vendor's abort and repeat is
	// for it.
	engineBroken
	engineFailed // the engine's own word of what it could not do
	unknownEnd   // whether the guest was changed cannot be told by it
)

// mayHaveRun reports whether the guest may have been changed all the same, as is asked for: vCenter is known to give up
// on guests that go on and succeed.
func (k faultKind) mayHaveRun() bool { return k == toolsLost || k == engineBroken || k == unknownEnd }

// kindOf is the one table of faults for both channels.
func (s *step) kindOf(v *vcapi.Error) faultKind {
	o := s.outcome(v)
	switch {
	case strings.Contains(v.Message, noEngine):
		return final
	case engineSays(v):
		return engineFailed
	case v.Name == "CustomizationFault", v.Name == "UnexpectedCustomizationFault":
		return engineBroken
	}

	switch o.waiting {
	case events.WaitingTools:
		return toolsLost
	case events.WaitingResourceBusy, events.WaitingGuestLogin:
		return passes
	}

	switch o.code {
	case events.CodeUnavailable, events.CodeCanceled, events.Internal, events.CustomizationFailed:
		return unknownEnd
	}

	return final
}

// engineSays reports whether a fault holds a code with which the engine says what it could not do: 248 and above. The
// lower ones say that it could not begin, or not end, its work.
func engineSays(v *vcapi.Error) bool {
	found := engineCode.FindStringSubmatch(wordsOf(v))
	if found == nil {
		return false
	}
	code, _ := strconv.Atoi(found[1])
	return code >= 248 && code <= 255
}

// wordsOf is all text of a fault.
func wordsOf(v *vcapi.Error) string {
	words := []string{v.Message, v.LocalizedMessage, string(v.Data)}
	for _, m := range v.Messages {
		words = append(words, string(m))
	}
	return strings.Join(words, "\n")
}
