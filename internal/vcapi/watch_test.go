package vcapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// pollServer is a fake whose long poll the test answers: each response is used once, and without one the poll hangs
// until the client gives up.
type pollServer struct {
	*fake
	answers chan func(w http.ResponseWriter, r *http.Request)
}

func newPollServer(t *testing.T) *pollServer {
	t.Helper()
	p := &pollServer{fake: newFake(t, "9.0.0.0"), answers: make(chan func(http.ResponseWriter, *http.Request), 100)}
	p.reply("CreatePropertyCollector", 200, `{"type":"PropertyCollector","value":"session[52ab]52cd"}`)
	p.reply("CreateListView", 200, `{"type":"ListView","value":"session[52ab]view"}`)
	p.reply("CreateFilter", 200, `{"type":"PropertyFilter","value":"session[52ab]filter"}`)

	for _, void := range []string{
		"ModifyListView", "DestroyView", "DestroyPropertyCollector", "DestroyPropertyFilter",
	} {
		p.reply(void, 204, "")
	}

	p.handle("WaitForUpdatesEx", func(w http.ResponseWriter, r *http.Request) {
		select {
		case answer := <-p.answers:
			answer(w, r)
		case <-r.Context().Done():
		}
	})

	return p
}

// push sets the response to the next poll.
func (p *pollServer) push(status int, body string) {
	p.answers <- func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, status, body) }
}

// updateOf is an UpdateSet with one change of one object.
func updateOf(version, kind, object, id, changes string) string {
	return fmt.Sprintf(
		`{"_typeName":"UpdateSet","version":%q,"filterSet":[{"_typeName":"PropertyFilterUpdate",
			"filter":{"type":"PropertyFilter","value":"f"},
		"objectSet":[{"_typeName":"ObjectUpdate","kind":%q,"obj":{"_typeName":"ManagedObjectReference",
		"type":%q,"value":%q},"changeSet":[%s]}]}]}`,
		version,
		kind,
		object,
		id,
		changes,
	)
}

// updateOf42 is an UpdateSet with the name of vm-42.
func updateOf42(version, kind, name string) string {
	return updateOf(version, kind, virtualMachine, "vm-42", change("name", quote(name)))
}

// read42 is a read of vm-42 by itself.
const read42 = `{"objects":[{"obj":{"type":"VirtualMachine","value":"vm-42"},` +
	`"propSet":[{"name":"name","val":"forty-two"}]}]}`

func change(name, val string) string {
	return fmt.Sprintf(`{"_typeName":"PropertyChange","name":%q,"op":"assign","val":%s}`, name, val)
}

// polling returns a client of p whose Run is running.
func (p *pollServer) polling(t *testing.T, change func(*Client)) *Client {
	t.Helper()
	c := p.client(t)
	if change != nil {
		change(c)
	}
	run(t, c)
	return c
}

func named42(s WatchState) bool { return s.VM.Name == "forty-two" }

// TestPollNothing: null, 204 and an empty body mean that nothing changed, also chunked; each request has the version of
// the response before.
func TestPollNothing(t *testing.T) {
	t.Parallel()
	p := newPollServer(t)
	p.push(200, `null`)
	p.push(204, ``)
	p.push(200, ``)
	p.push(200, updateOf42("7", "enter", "old"))
	p.push(200, ` null `)
	p.answers <- func(w http.ResponseWriter, _ *http.Request) { _ = http.NewResponseController(w).Flush() }
	p.push(
		200,
		updateOf(
			"8", "modify", "VirtualMachine", "vm-42", change("name", `{"_typeName":"string","_value":"forty-two"}`),
		),
	)

	c := p.polling(t, nil)
	until(t, c, "vm-42", "", named42)
	var versions []string
	for _, r := range p.of("WaitForUpdatesEx")[:7] {
		var params struct {
			Version *string
			Options struct{ MaxWaitSeconds int }
		}

		if err := json.Unmarshal([]byte(r.body), &params); err != nil || params.Options.MaxWaitSeconds != 30 {
			t.Errorf("%s: %v", r.body, err)
		}

		version := "none"
		if params.Version != nil {
			version = *params.Version
		}

		versions = append(versions, version)
		if !strings.Contains(r.key, "/PropertyCollector/session[52ab]52cd/") {
			t.Errorf("polled at %s", r.key)
		}
	}

	if got := strings.Join(versions, " "); got != "none none none none 7 7 7" {
		t.Errorf("versions %s", got)
	}

	p.wantCount(t, "CreateFilter", 1)
	if body := p.of("CreateFilter")[0].body; !strings.Contains(body, `"partialUpdates":false`) ||
		!strings.Contains(body, `"type":"ListView","path":"view"`) {
		t.Errorf("filter %s", body)
	}
}

// TestPollParts: values that come member by member, and unknown types and kinds of changes.
func TestPollParts(t *testing.T) {
	t.Parallel()
	p := newPollServer(t)
	for _, update := range []string{
		updateOf("1", "enter", "VirtualMachine", "vm-42",
			change("name", `"x"`)+`,`+change("guest.hostName", `"h"`)+`,`+change("guest.net", `{"_typeName":"Odd"}`)),
		updateOf("2", "enter", "Task", "task-1",
			change("info", `{"_typeName":"TaskInfo","key":"task-1","state":"queued","name":"N"}`)),
		updateOf("3", "modify", "Task", "task-1",
			change("info.state", `{"_typeName":"TaskInfoState","_value":"running"}`)+`,`+
				change("info.progress", `{"_typeName":"int","_value":40}`)),
		updateOf("4", "modify", "VirtualMachine", "vm-42",
			`{"name":"guest.hostName","op":"indirectRemove"},`+
				change("future.property", `{"_typeName":"NeverHeardOf","x":[]}`)),
		updateOf("5", "modify", "Host", "host-1", change("name", `"not watched"`)),
		updateOf("6", "modify", "Task", "task-1",
			change("info", `{"_typeName":"TaskInfo","key":"task-1","state":"error","name":"N",`+
				`"error":{"fault":{"_typeName":"InvalidState"},"localizedMessage":"no"}}`)),
	} {
		p.push(200, update)
	}

	var states []string
	c := p.polling(t, nil)
	if err := c.Watch(patience(t), "vm-42", "task-1", func(s WatchState) bool {
		progress := -1
		if s.Task.Progress != nil {
			progress = *s.Task.Progress
		}
		states = append(states, fmt.Sprintf("%s %d %s", s.Task.State, progress, s.VM.HostName))
		if s.Task.Err != nil {
			outcome{"InvalidState", Transient, Answered}.check(t, s.Task.Err)
		}
		return s.Task.State == "error"
	}); err != nil {
		t.Fatal(err)
	}

	if got := strings.Join(states, ", "); got != "queued -1 h, running 40 h, running 40 , error -1 " {
		t.Errorf("states %q", got)
	}
}

// TestWatchersShare: two watches of one VM share its place in the view until the last one ends; each gets the state.
func TestWatchersShare(t *testing.T) {
	t.Parallel()
	p := newPollServer(t)
	p.push(200, `null`)
	c := p.polling(t, func(c *Client) { c.poller.lingerTime = time.Nanosecond })
	var known, over sync.WaitGroup
	known.Add(2)
	ctx, stop := context.WithCancel(patience(t))

	for range 2 {
		over.Go(func() {
			_ = c.Watch(ctx, "vm-42", "", func(s WatchState) bool {
				if named42(s) {
					known.Done()
				}
				return false
			})
		})
	}

	p.push(200, updateOf42("1", "enter", "forty-two"))
	known.Wait()
	until(t, c, "vm-42", "", named42) // known already: at once
	removed := make(chan struct{})
	p.handle("ModifyListView", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNoContent)
		close(removed)
	})

	stop()
	over.Wait()
	<-removed
	var bodies []string

	for _, r := range p.of("ModifyListView") {
		bodies = append(bodies, r.body)
	}

	want := `{"add":[{"_typeName":"ManagedObjectReference","type":"VirtualMachine",` +
		`"value":"vm-42"}]} {"remove":[{"_typeName":"ManagedObjectReference",` +
		`"type":"VirtualMachine","value":"vm-42"}]}`
	if got := strings.Join(bodies, " "); got != want {
		t.Errorf("view changes\n%s\nwant\n%s", got, want)
	}
}

// TestPollMissesAdded: where a server does not show what is added during a poll, the poll begins anew, once for each
// object.
func TestPollMissesAdded(t *testing.T) {
	t.Parallel()
	p := newPollServer(t)
	waiting := make(chan struct{}, 1)
	p.handle("WaitForUpdatesEx", func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(p.last("WaitForUpdatesEx").body, `"version"`) ||
			len(p.of("ModifyListView")) == 0 {
			wake(waiting)
			<-r.Context().Done()
			return
		}

		writeJSON(w, 200, updateOf42("1", "enter", "forty-two"))
	})

	c := p.polling(t, func(c *Client) { c.poller.showTimeout = 20 * time.Millisecond })
	<-waiting // the first generation waits, over an empty view
	s := until(t, c, "vm-42", "", func(s WatchState) bool {
		if s.Down {
			t.Error("a poll that was begun anew was told as an absence")
		}
		return named42(s)
	})

	p.wantCount(t, "CreateFilter", 2)
	p.wantCount(t, "DestroyPropertyCollector", 1)
	p.wantCount(t, "DestroyView", 1)
	if s.VMGone {
		t.Error("gone")
	}
}

// TestPollNeverShows: an object that even a new generation does not show is read by itself.
func TestPollNeverShows(t *testing.T) {
	t.Parallel()
	p := newPollServer(t)
	p.handle("WaitForUpdatesEx", func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(p.last("WaitForUpdatesEx").body, `"version"`) {
			writeJSON(w, 200, `{"version":"1"}`)
			return
		}
		<-r.Context().Done()
	})

	p.reply("RetrievePropertiesEx", 200, read42)

	c := p.polling(t, func(c *Client) { c.poller.showTimeout = 20 * time.Millisecond })
	until(t, c, "vm-42", "", named42)
	p.reply("RetrievePropertiesEx", 500,
		`{"_typeName":"ManagedObjectNotFound","obj":{"type":"VirtualMachine","value":"vm-43"}}`)

	until(t, c, "vm-43", "", func(s WatchState) bool { return s.VMGone })
}

// TestPollStaleRead: the result of a read does not replace what the poll showed since.
func TestPollStaleRead(t *testing.T) {
	t.Parallel()
	p := newPollServer(t)
	applied := make(chan struct{}, 1)
	p.handle("WaitForUpdatesEx", func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(p.last("WaitForUpdatesEx").body, `"version":"3"`) {
			wake(applied)
		}
		select {
		case answer := <-p.answers:
			answer(w, r)
		case <-r.Context().Done():
		}
	})

	p.push(200, updateOf42("1", "enter", "first"))
	p.push(200, updateOf("2", "leave", "VirtualMachine", "vm-42", ""))
	p.handle("RetrievePropertiesEx", func(w http.ResponseWriter, _ *http.Request) {
		p.push(200, updateOf42("3", "enter", "forty-two"))
		<-applied
		writeJSON(w, 200,
			`{"objects":[{"obj":{"type":"VirtualMachine","value":"vm-42"},"propSet":[{"name":"name","val":"old"}]}]}`)
		p.push(200, updateOf("4", "modify", "VirtualMachine", "vm-42", change("guest.hostName", `"end"`)))
	})

	c := p.polling(t, nil)
	s := until(t, c, "vm-42", "", func(s WatchState) bool {
		if s.VM.Name == "old" {
			t.Error("an old state came after a new one")
		}
		return s.VM.HostName == "end"
	})

	if s.VM.Name != "forty-two" {
		t.Errorf("it ends as %q", s.VM.Name)
	}
}

// TestPollPart: a change of an object that is not known yet makes the client read the whole object.
func TestPollPart(t *testing.T) {
	t.Parallel()
	p := newPollServer(t)
	p.push(200, updateOf("1", "modify", "VirtualMachine", "vm-42", change("guest.hostName", `"h"`)))
	p.reply("RetrievePropertiesEx", 200, read42)

	until(t, p.polling(t, nil), "vm-42", "", func(s WatchState) bool {
		if !named42(s) {
			t.Errorf("half a state was told: %+v", s.VM)
		}
		return true
	})
}

// TestPollSlowRead: objects that vCenter is slow to read delay neither the others that are read by themselves, nor
// those that are added.
func TestPollSlowRead(t *testing.T) {
	t.Parallel()
	p := newPollServer(t)
	over, asked := make(chan struct{}), make(chan struct{}, 10)
	defer close(over)
	p.push(
		200,
		updateOf("1", "modify", "VirtualMachine", "vm-1", change("guest.hostName", `"a part of what is not known"`)),
	)

	p.handle("RetrievePropertiesEx", func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-over:
		case <-r.Context().Done():
		}
	})

	c := p.client(t)
	watchedBefore(c, "vm-1")
	run(t, c)
	within(t, "the read of vm-1", asked)
	p.handle("ModifyListView", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNoContent)
		p.push(200, updateOf42("2", "enter", "forty-two"))
	})

	until(t, c, "vm-42", "", named42)
}

// TestPollLeave: an object that leaves the view is gone only where a read confirms it.
func TestPollLeave(t *testing.T) {
	t.Parallel()
	p := newPollServer(t)
	p.push(200, updateOf42("1", "enter", "x"))
	p.push(200, updateOf("2", "leave", "VirtualMachine", "vm-42", ""))
	p.reply("RetrievePropertiesEx", 200, read42)

	c := p.polling(t, nil)
	gone := false
	s := until(t, c, "vm-42", "", func(s WatchState) bool {
		if named42(s) && !gone {
			gone = true
			p.reply("RetrievePropertiesEx", 200, `null`)
			p.push(200, updateOf("3", "leave", "VirtualMachine", "vm-42", ""))
		}
		return s.VMGone
	})

	if !gone || s.VM.Name != "forty-two" {
		t.Errorf("gone at %+v", s)
	}
}

// TestPollUnresolved: objects that cannot be added to the view are reported as gone, whether the server names them or
// refuses the call.
func TestPollUnresolved(t *testing.T) {
	t.Parallel()
	for name, modify := range map[string]http.HandlerFunc{
		"named": func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, 200, `[{"_typeName":"ManagedObjectReference","type":"Task","value":"task-1"}]`)
		},
		"refused": func(w http.ResponseWriter, r *http.Request) {
			var params struct{ Add []moRef }
			_ = json.NewDecoder(r.Body).Decode(&params)
			for _, ref := range params.Add {
				if ref.Value == "task-1" {
					writeJSON(w, 500, `{"_typeName":"ManagedObjectNotFound",`+
						`"obj":{"_typeName":"ManagedObjectReference","type":"Task","value":"task-1"}}`)
					return
				}
			}

			w.WriteHeader(http.StatusNoContent)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPollServer(t)
			p.handle("ModifyListView", modify)
			p.reply("RetrievePropertiesEx", 500, `{"_typeName":"ManagedObjectNotFound"}`)
			p.push(200, updateOf42("1", "enter", "forty-two"))
			s := until(
				t,
				p.polling(t, nil),
				"vm-42",
				"task-1",
				func(s WatchState) bool { return s.TaskGone && named42(s) },
			)

			if s.VMGone {
				t.Error("the VM is gone too")
			}
		})
	}
}

// TestPollOldServer: properties that this vCenter does not have are left out, and the session's own collector is
// enough.
func TestPollOldServer(t *testing.T) {
	t.Parallel()
	p := newPollServer(t)
	p.reply("CreatePropertyCollector", 500, `{"_typeName":"NotSupported"}`)
	p.handle("CreateFilter", func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(p.last("CreateFilter").body, "guest.customizationInfo") {
			writeJSON(w, 500, `{"_typeName":"InvalidProperty","name":"guest.customizationInfo"}`)
			return
		}
		writeJSON(w, 200, `{"type":"PropertyFilter","value":"f"}`)
	})

	p.push(200, updateOf42("1", "enter", "forty-two"))
	c := p.client(t)
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error)
	go func() { over <- c.Run(ctx) }()
	until(t, c, "vm-42", "", named42)
	stop()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Errorf("Run returned %v", err)
	}

	p.wantCount(t, "CreateFilter", 2)
	p.wantCount(t, "/propertyCollector/WaitForUpdatesEx", len(p.of("WaitForUpdatesEx")))
	p.wantCount(t, "DestroyPropertyFilter", 1)
	p.wantCount(t, "DestroyPropertyCollector", 0)
}

// TestPollNewGeneration: whatever ends a poll, the next one reads everything again; only an absence is reported.
func TestPollNewGeneration(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		end  func(w http.ResponseWriter, r *http.Request)
		down bool // it must be told
	}{
		{"version not known any more", func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, 500, `{"_typeName":"InvalidCollectorVersion"}`)
		}, false},
		{
			"session expired",
			func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 500, `{"_typeName":"NotAuthenticated"}`) },
			false,
		},
		{"session expired, said inside", func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(
				w,
				200,
				`{"version":"2","filterSet":[{"objectSet":[{"kind":"modify","obj":{"type":"VirtualMachine",
					"value":"vm-42"},"changeSet":[],
				"missingSet":[{"path":"name","fault":{"_typeName":"LocalizedMethodFault",
				"fault":{"_typeName":"NotAuthenticated"}}}]}]}]}`,
			)
		}, false},
		{"cut", func(w http.ResponseWriter, _ *http.Request) { cut(w) }, false},
		{
			"proxy's page",
			func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", http.StatusServiceUnavailable) },
			false,
		},
		{
			"not understood",
			func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 200, `{"filterSet":[{}]}`) },
			false,
		},
		{"silence", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, true},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPollServer(t)
			p.handle("WaitForUpdatesEx", func(w http.ResponseWriter, r *http.Request) {
				all := p.of("WaitForUpdatesEx")
				switch n := len(all); {
				case n == 1:
					writeJSON(w, 200, updateOf42("1", "enter", "first"))
				case n == 2:
					tt.end(w, r)
				case !strings.Contains(all[n-1].body, `"version"`):
					writeJSON(w, 200, updateOf42("1", "enter", "forty-two"))
				default:
					<-r.Context().Done()
				}
			})

			c := p.polling(t, func(c *Client) {
				if tt.down {
					c.cfg.PollWait, c.cfg.PollGrace = time.Second, time.Millisecond
				}
			})

			told := false
			until(t, c, "vm-42", "", func(s WatchState) bool {
				told = told || s.Down
				return named42(s) && !s.Down
			})

			if told != tt.down {
				t.Errorf("told of an absence: %t", told)
			}

			begun := 0
			for _, r := range p.of("WaitForUpdatesEx") {
				if !strings.Contains(r.body, `"version"`) {
					begun++
				}
			}

			if begun < 2 {
				t.Error("the poll went on with its old version")
			}
		})
	}
}

// TestPollNotUnderstood: a long poll whose responses have the wrong types, at once or after the first one, is down, and
// the watches and OnAnswer learn which field it was, once; it is up again when its responses are right.
func TestPollNotUnderstood(t *testing.T) {
	t.Parallel()
	good := updateOf42("1", "enter", "forty-two")
	tests := []struct {
		name, first, later, want string
	}{
		{"version", `{"version":7,"filterSet":[]}`, "", "version"},
		{"filterSet", `{"version":"1","filterSet":{"objectSet":[]}}`, "", "filterSet"},
		{"no JSON", `<html><title>Portal</title>`, "", "invalid character"},
		{"an array", `[]`, "", "array"},
		{"no version", `{"filterSet":[{}]}`, "", "updates without a version"},
		{"after a good answer", good, `{"version":"2","filterSet":"none"}`, "filterSet"},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPollServer(t)
			p.handle("WaitForUpdatesEx", func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(p.last("WaitForUpdatesEx").body, `"version"`) {
					writeJSON(w, 200, tt.later)
					return
				}
				writeJSON(w, 200, tt.first)
			})

			begun := make(chan struct{}, 100)
			p.handle("CreateFilter", func(w http.ResponseWriter, _ *http.Request) {
				begun <- struct{}{}
				writeJSON(w, 200, `{"type":"PropertyFilter","value":"f"}`)
			})

			told := make(chan error, 100)
			cfg := p.config()
			cfg.OnAnswer = func(why error) { told <- why }
			c := newClient(t, cfg)
			watchedBefore(c, "vm-42")
			run(t, c)
			s := until(t, c, "vm-42", "", func(s WatchState) bool { return s.Down })

			if e := asError(t, s.Err); !errors.Is(s.Err, ErrNotUnderstood) || !strings.Contains(e.Message, tt.want) ||
				e.Op != "WaitForUpdatesEx" {
				t.Errorf("told %v, want %q in it", s.Err, tt.want)
			}

			if !c.Up() || !errors.Is(whyDown(c), ErrNotUnderstood) { // calls are answered
				t.Errorf("up %t, why %v", c.Up(), whyDown(c))
			}
			if _, err := c.Session(t.Context()); err != nil { // a call that is answered does not make it well
				t.Error(err)
			}

			for range len(begun) + 3 { // nor does a first answer that is understood, as long as the later ones are not
				within(t, "another try", begun)
			}

			p.handle("WaitForUpdatesEx", func(w http.ResponseWriter, r *http.Request) {
				if body := p.last("WaitForUpdatesEx").body; strings.Contains(body, `"version":"2"`) {
					<-r.Context().Done()
				} else if strings.Contains(body, `"version":"1"`) {
					writeJSON(
						w, 200, updateOf("2", "modify", "VirtualMachine", "vm-42", change("guest.hostName", `"h"`)),
					)
				} else {
					writeJSON(w, 200, good)
				}
			})

			until(t, c, "vm-42", "", func(s WatchState) bool { return !s.Down && s.Err == nil && s.VM.HostName == "h" })
			if !c.Up() || whyDown(c) != nil {
				t.Errorf("up %t, why %v", c.Up(), whyDown(c))
			}

			c.Close(context.Background())
			close(told)
			var all []string
			for why := range told {
				all = append(all, fmt.Sprint(errors.Is(why, ErrNotUnderstood)))
			}

			if got := strings.Join(all, " "); got != "false true false" {
				t.Errorf("OnAnswer: not understood %s", got)
			}
		})
	}
}

// TestWatchEnds: a watch ends by fn, or by ctx with its cause; while the poll is down it says so.
func TestWatchEnds(t *testing.T) {
	t.Parallel()
	p := newPollServer(t)
	p.srv.Close()
	c := p.polling(t, nil)
	s := until(t, c, "vm-42", "task-1", func(s WatchState) bool { return s.Down })
	if s.VM.Name != "" || s.Task != nil || s.VMGone || c.Up() {
		t.Errorf("got %+v, up %t", s, c.Up())
	}

	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("enough")
	cancel(cause)
	if err := c.Watch(ctx, "vm-42", "", func(WatchState) bool { return false }); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
}

// TestTaskHistory: the history is read page by page; where it is refused, only recentTask counts.
func TestTaskHistory(t *testing.T) {
	t.Parallel()
	const recent = `{"objects":[{"obj":{"type":"VirtualMachine","value":"vm-1"},"propSet":[{"name":"recentTask",` +
		`"val":{"_typeName":"ArrayOfManagedObjectReference","_value":[{"type":"Task",` +
		`"value":"task-3"},{"type":"Task","value":"task-4"}]}}]}]}`
	info := func(n int, state string) string {
		return fmt.Sprintf(
			`{"_typeName":"TaskInfo","key":"task-%d","task":{"type":"Task","value":"task-%d"},"state":%q,`+
				`"queueTime":"2026-11-20T10:00:%02dZ"}`,
			n,
			n,
			state,
			n,
		)
	}

	infos := func(f *fake) { // task-4 vanished meanwhile
		f.handle("RetrievePropertiesEx", func(w http.ResponseWriter, _ *http.Request) {
			switch body := f.last("RetrievePropertiesEx").body; {
			case strings.Contains(body, "recentTask"):
				writeJSON(w, 200, recent)
			case strings.Contains(body, "task-4"):
				writeJSON(w, 500, `{"_typeName":"ManagedObjectNotFound","obj":{"type":"Task","value":"task-4"}}`)
			default:
				writeJSON(
					w,
					200,
					`{"objects":[{"obj":{"type":"Task","value":"task-3"},"propSet":[{"name":"info","val":`+info(
						3, "running",
					)+`}]}]}`,
				)
			}
		})
	}

	pages := func(f *fake) {
		f.reply("CreateCollectorForTasks", 200, `{"type":"TaskHistoryCollector","value":"session[1]2"}`)
		f.reply("DestroyCollector", 204, "")
		f.handle("ReadNextTasks", func(w http.ResponseWriter, _ *http.Request) {
			switch len(f.of("ReadNextTasks")) {
			case 1:
				writeJSON(w, 200, `[`+info(1, "success")+`,`+info(2, "error")+`]`)
			case 2:
				writeJSON(w, 200, `{"_typeName":"ArrayOfTaskInfo","_value":[`+info(3, "queued")+`]}`)
			default:
				writeJSON(w, 200, `[]`)
			}
		})
	}

	tests := []struct {
		name    string
		prepare func(f *fake)
		want    string
		history bool
		fails   bool
	}{
		{"both", pages, "task-1 success, task-2 error, task-3 running", true, false},
		{"no privilege", func(f *fake) {
			f.reply("CreateCollectorForTasks", 500, `{"_typeName":"NoPermission"}`)
		}, "task-3 running", false, false},
		{"too many collectors", func(f *fake) {
			f.reply("CreateCollectorForTasks", 500, `{"_typeName":"InvalidState"}`)
		}, "task-3 running", false, false},
		{
			"no such method",
			func(f *fake) { f.reply("CreateCollectorForTasks", 404, ``) },
			"task-3 running",
			false,
			false,
		},
		{"session expired", func(f *fake) {
			pages(f)
			f.handle("CreateCollectorForTasks", func(w http.ResponseWriter, _ *http.Request) {
				if len(f.of("CreateCollectorForTasks")) == 1 {
					writeJSON(w, 500, `{"_typeName":"NotAuthenticated"}`)
					return
				}
				writeJSON(w, 200, `{"type":"TaskHistoryCollector","value":"c"}`)
			})
		}, "task-1 success, task-2 error, task-3 running", true, false},
		{"a proxy's answer", func(f *fake) { f.reply("CreateCollectorForTasks", 503, `<html>`) }, "", false, true},
		{"cut", func(f *fake) {
			f.handle("CreateCollectorForTasks", func(w http.ResponseWriter, _ *http.Request) { cut(w) })
		}, "", false, true},
		{"a page that repeats", func(f *fake) {
			pages(f)
			f.reply("ReadNextTasks", 200, `[`+info(1, "success")+`]`)
		}, "task-1 success, task-3 running", true, false},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			infos(f)
			tt.prepare(f)
			c := f.client(t)
			tasks, history, err := c.Tasks(context.Background(), "vm-1", at2026(10, 0, 0))
			if (err != nil) != tt.fails || history != tt.history {
				t.Fatalf("history %t, %v", history, err)
			}

			var got []string
			for _, task := range tasks {
				got = append(got, task.ID+" "+task.State)
			}

			if strings.Join(got, ", ") != tt.want {
				t.Errorf("got %s, want %s", strings.Join(got, ", "), tt.want)
			}

			older, err := c.AnyTaskBefore(context.Background(), at2026(11, 0, 0))
			if !tt.history && err == nil {
				t.Errorf("a history that cannot be read says %t", older)
			}
			if n, m := len(f.of("ReadNextTasks")), len(f.of("DestroyCollector")); n > 0 && m != 2 {
				t.Errorf("%d pages, %d collectors destroyed", n, m)
			}

			if tt.name == "both" {
				want := `{"filter":{"_typeName":"TaskFilterSpec",` +
					`"entity":{"_typeName":"TaskFilterSpecByEntity","entity":{"_typeName":"ManagedObjectReference",` +
					`"type":"VirtualMachine","value":"vm-1"},"recursion":"self"},` +
					`"time":{"_typeName":"TaskFilterSpecByTime","beginTime":"2026-11-20T10:00:00Z",` +
					`"timeType":"queuedTime"}}}`
				if got := f.of("CreateCollectorForTasks")[0].body; got != want {
					t.Errorf("filter\n%s\nwant\n%s", got, want)
				}
			}
		})
	}
}

func FuzzUpdateSet(f *testing.F) {
	for _, seed := range []string{
		updateOf("1", "enter", "VirtualMachine", "vm-1",
			change("guest.net", `{"_typeName":"ArrayOfGuestNicInfo","_value":[{"macAddress":"m",`+
				`"ipConfig":{"ipAddress":[{"ipAddress":"1.2.3.4"}]}}]}`)),
		updateOf("1", "modify", "Task", "task-1",
			change("info", `{"state":"error","error":{"fault":{"_typeName":"InvalidState"}},"progress":5}`)),
		updateOf("1", "modify", "Task", "task-1", change("info.state", `"success"`)),
		updateOf("1", "modify", "VirtualMachine", "vm-1",
			change("config.extraConfig", `[{"key":"guestinfo.userdata","value":"x"}]`)+`,`+
				change("guest.customizationInfo",
					`{"customizationStatus":"TOOLSDEPLOYPKG_RUNNING","startTime":"x"}`)),
		`null`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var set updateSet
		if json.Unmarshal(body, &set) != nil {
			return
		}

		_ = sessionLostIn(body, redactor{})
		p := newPoller(&Client{})
		w := &watcher{
			vm:     moRef{Type: virtualMachine, Value: "vm-1"},
			task:   moRef{Type: "Task", Value: "task-1"},
			signal: make(chan struct{}, 1),
		}

		p.add(w)
		p.apply(set, true, true)
		if state, ok := p.state(w); ok && state.Task == nil && !p.objects[w.task].known {
			t.Errorf("told %+v before it was known", state)
		}

		p.remove(w)
	})
}

// FuzzProperties: whatever vCenter sends as the properties of a VM or a Task, or as the devices of a VM, there is no
// panic, and what is shown is well-formed.
func FuzzProperties(f *testing.F) {
	for _, seed := range []string{
		`{"info":{"_typeName":"TaskInfo","key":"task-1","name":"CustomizeGuest_Task","state":"error",` +
			`"progress":5,"queueTime":"2026-01-02T03:04:05Z",` +
			`"error":{"_typeName":"LocalizedMethodFault","fault":{"_typeName":"InvalidGuestLogin"},` +
			`"localizedMessage":"no"}}}`,
		`{"name":"web-1","runtime.powerState":"poweredOn","guest.net":{"_typeName":"ArrayOfGuestNicInfo",` +
			`"_value":[{"macAddress":"m","connected":true}]},` +
			`"guest.customizationInfo":{"customizationStatus":"TOOLSDEPLOYPKG_FAILED","errorMsg":"x",` +
			`"startTime":"2026-01-02T03:04:05Z"},"recentTask":[{"value":"task-1"}]}`,
		`{"config.extraConfig":[{"key":"guestinfo.userdata"}],"info.state":{"_typeName":"TaskInfoState",` +
			`"_value":"success"}}`,
		`{"guest.ipStack":[{"dnsConfig":{"ipAddress":["10.0.0.2"]},` +
			`"ipRouteConfig":{"ipRoute":[{"network":"0.0.0.0","prefixLength":0,` +
			`"gateway":{"ipAddress":"10.0.0.1"}}]}}],` +
			`"config.hardware.device":[{"key":4000,"macAddress":"m","connectable":{"connected":true},` +
			`"slotInfo":{"pciSlotNumber":160}}],"guest.net":[{"deviceConfigId":-1,` +
			`"ipConfig":{"ipAddress":[{"ipAddress":"10.0.0.7","prefixLength":24,"state":"duplicate"}]}}]}`,
		`{"macAddress":"m","connectable":{"connected":false,"startConnected":false}}`,
	} {
		f.Add([]byte(seed))
	}

	f.Fuzz(func(t *testing.T, body []byte) {
		if on, err := connected(body); err == nil && !json.Valid(on) {
			t.Errorf("the device became %s", on)
		}

		var p properties
		if json.Unmarshal(body, &p) != nil {
			return
		}

		task, ok := decodeTask(p, secrets{"canary"}.redactor())
		if ok && task.State == "" || task.State == "error" && task.Err == nil {
			t.Errorf("task %+v", task)
		}
		if task.Err != nil && task.Err.Error() == "" {
			t.Error("an error without words")
		}

		for _, n := range decodeVM(p, redactor{}).NICs {
			if slices.Contains(n.Addresses, "") {
				t.Errorf("NIC %+v", n)
			}
		}
	})
}
