package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/vcsim"
)

// hostile is what a guest, a vCenter or a publisher may write into any text that people read.
const hostile = "a\x1b[2J\x1b]0;title\x07b\r\x08\u009b31m\u202egnp.exe\u2066\x1b[8mhidden\x1b[31mred\x7f"

// moves is what in a text would mean something to a terminal, beside what the command itself writes.
func moves(text string) string {
	for _, own := range []string{"\r\x1b[K", "\x1b[K", "\r"} {
		text = strings.ReplaceAll(text, own, "")
	}
	for _, c := range paints {
		text = strings.ReplaceAll(text, "\x1b["+string(c)+"m", "")
	}
	return strings.Map(func(r rune) rune {
		if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
			return r
		}
		return -1
	}, text)
}

// Whatever others write, nothing of it reaches the terminal as a command: neither of an event of guestflow, nor of one
// that somebody else, or an older guestflow, published.
func TestOthersWordsMoveNoCursor(t *testing.T) {
	t.Parallel()
	s := newSite(t, vcsim.Options{}).serve()
	s.taken()
	vm := s.vc.VMs()[0]
	at := time.Now().Add(-time.Minute)
	ref := &events.RequestRef{Source: "/" + hostile, ID: hostile}
	guest, exit := &events.Guest{Status: hostile, Error: hostile}, int64(1)
	nics := []events.NIC{{MAC: hostile, Connected: true, Addresses: []string{hostile}}}
	remarks := []events.Remark{{Code: hostile, Message: hostile, Field: hostile}}
	run := events.Run{
		ID:         events.RunID("lab", vm, *ref),
		VCenter:    "lab",
		VM:         vm,
		VMName:     hostile,
		Request:    ref,
		Status:     events.StatusFailed,
		AcceptedAt: &at,
		FinishedAt: &at,
		Owner: &events.Owner{
			Instance:  hostile,
			Takeovers: 2,
		},
		Process:    hostile,
		CanceledBy: &events.CanceledBy{Source: hostile, ID: hostile, Reason: hostile},
		Check:      &events.Check{State: events.Failed, Status: hostile, Blockers: remarks, Warnings: remarks},
		Customize: &events.Customize{
			State:     events.Failed,
			Task:      hostile,
			DecidedBy: hostile,
			Guest:     guest,
			Reason:    hostile,
		},
		Network: &events.Network{State: events.Failed, Task: hostile, Reason: hostile},
		Verify:  &events.Verify{State: events.Failed, HostName: hostile, NICs: nics, Mismatches: []string{hostile}},
		Processes: []events.Process{
			{
				Name:        hostile,
				State:       events.Failed,
				PID:         7,
				Owner:       hostile,
				ProcessName: hostile,
				Command:     hostile,
				ExitCode:    &exit,
				Reason:      hostile,
			},
		},
		Observed: &events.Observed{
			PowerState:         hostile,
			ToolsRunningStatus: hostile,
			ToolsVersion:       hostile,
			HostName:           hostile,
			NICs:               nics,
			GuestLog:           []string{hostile},
		},
		Error: &events.Error{Step: hostile, Process: hostile, Code: hostile, Message: hostile, Field: hostile,
			VSphere: &events.VSphere{Name: hostile, HTTPStatus: 500, LocalizedMessage: hostile}},
	}
	for i, kind := range []events.Kind{
		events.RunAccepted, events.RunWaiting, events.CheckCompleted,
		events.CustomizeStarting, events.CustomizeStarted, events.CustomizeProgressed, events.CustomizeCompleted,
		events.NetworkCompleted, events.VerifyCompleted,
		events.ProcessStarting, events.ProcessStarted, events.ProcessExited, events.RunFailed,
	} {
		run.N, run.Waiting = i+1, events.Waiting(hostile)
		data, err := json.Marshal(
			map[string]any{
				"specversion": "1.0",
				"id":          "x",
				"source":      "/guestflow/lab",
				"type":        events.Type(kind),
				"subject":     vm,
				"time":        time.Now().Format(time.RFC3339Nano),
				"data":        run,
			},
		)
		if err != nil {
			t.Fatal(err)
		}
		s.publish(events.EventSubject("lab", vm, kind), "application/cloudevents+json", string(data))
	}
	for _, tty := range []bool{false, true} {
		for _, args := range [][]string{{"watch", vm, "--until-end", "--since", "1h"}, {"status", vm}, {"status"}} {
			r := s.begin(tty, append(args, "--text")...).end()
			if got := moves(r.out + r.err); got != "" || !strings.Contains(r.out, "gnp.exe") {
				t.Errorf("%v on a terminal %v: %q in\n%q", args, tty, got, r.out+r.err)
			}
		}
	}
}

// Colours of others are none, on a screen that has colours and on one that has not.
func TestShown(t *testing.T) {
	t.Parallel()
	s := &screen{colour: true}
	for in, want := range map[string][2]string{ // with colours, without
		"plain\nlines":                   {"plain\nlines", "plain\nlines"},
		s.paint(red, "red") + " \x1b[2J": {"\x1b[31mred\x1b[0m  [2J", " [31mred [0m  [2J"},
		"\x1b[8mhidden\x1b[38;5;9m":      {" [8mhidden [38;5;9m", " [8mhidden [38;5;9m"},
		"\u202eabc\u202c":                {"abc", "abc"},
	} {
		if got := [2]string{shown(in, true), shown(in, false)}; got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
}
