package vcapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// inventory answers the long poll and reads from its objects, as many at a time as the client asks for.
type inventory struct {
	*pollServer
	mu      sync.Mutex
	objects map[string]map[string]string // by id: properties, JSON
	before  func()                       // each answer of the poll, but the one that waits
}

func newInventory(t *testing.T) *inventory {
	t.Helper()
	i := &inventory{pollServer: newPollServer(t), objects: make(map[string]map[string]string), before: func() {}}
	i.handle("WaitForUpdatesEx", i.updates)
	i.handle("RetrievePropertiesEx", i.read)
	return i
}

func (i *inventory) ids() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var ids []string
	for id := range i.objects {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// view is what was added to the newest list view and not removed.
func (i *inventory) view() map[string]bool {
	in := make(map[string]bool)
	i.pollServer.mu.Lock()
	defer i.pollServer.mu.Unlock()

	for _, r := range i.seen {
		if strings.HasSuffix(r.key, "/CreateListView") {
			clear(in)
		}

		if strings.HasSuffix(r.key, "/ModifyListView") {
			var params struct{ Add, Remove []moRef }
			_ = json.Unmarshal([]byte(r.body), &params)
			for _, ref := range params.Add {
				in[ref.Value] = true
			}
			for _, ref := range params.Remove {
				delete(in, ref.Value)
			}
		}
	}

	return in
}

func (i *inventory) updates(w http.ResponseWriter, r *http.Request) {
	var params struct {
		Version string
		Options struct{ MaxObjectUpdates int }
	}

	_ = json.NewDecoder(r.Body).Decode(&params)
	from, _ := strconv.Atoi(params.Version)
	view := i.view()
	all := slices.DeleteFunc(i.ids(), func(id string) bool { return !view[id] })

	if from >= len(all) {
		<-r.Context().Done()
		return
	}

	i.before()
	to := min(from+params.Options.MaxObjectUpdates, len(all))
	var objects []string
	for _, id := range all[from:to] {
		var changes []string
		for name, value := range i.objects[id] {
			changes = append(changes, change(name, value))
		}

		objects = append(
			objects,
			fmt.Sprintf(
				`{"kind":"enter","obj":{"type":"VirtualMachine","value":%q},"changeSet":[%s]}`,
				id,
				strings.Join(changes, ","),
			),
		)
	}

	writeJSON(
		w,
		200,
		fmt.Sprintf(
			`{"version":"%d","truncated":%t,"filterSet":[{"objectSet":[%s]}]}`,
			to,
			to < len(all),
			strings.Join(objects, ","),
		),
	)
}

func (i *inventory) read(w http.ResponseWriter, r *http.Request) {
	var params struct {
		SpecSet []filterSpec
	}
	_ = json.NewDecoder(r.Body).Decode(&params)
	var objects []string
	for _, o := range params.SpecSet[0].ObjectSet {
		var props []string
		for _, name := range params.SpecSet[0].PropSet[0].PathSet {
			if value, ok := i.objects[o.Obj.Value][name]; ok {
				props = append(props, fmt.Sprintf(`{"name":%q,"val":%s}`, name, value))
			}
		}

		objects = append(
			objects,
			fmt.Sprintf(
				`{"obj":{"type":%q,"value":%q},"propSet":[%s]}`, o.Obj.Type, o.Obj.Value, strings.Join(props, ","),
			),
		)
	}

	writeJSON(w, 200, fmt.Sprintf(`{"objects":[%s]}`, strings.Join(objects, ",")))
}

// smallBody is the largest response that the clients of these tests read.
const smallBody = 64 << 10

func limitBody(c *Client) { c.maxBody, c.poller.maxBytes = smallBody, smallBody }

// client is a client of i that reads small responses only.
func (i *inventory) client(t *testing.T) *Client {
	t.Helper()
	c := i.pollServer.client(t)
	limitBody(c)
	return c
}

// nets is a guest.net of about the given size.
func nets(size int) string {
	const address = `{"_typeName":"NetIpConfigInfoIpAddress",` +
		`"ipAddress":"fd00:1234:5678:9abc:def0:1234:5678:9abc","prefixLength":64,"state":"preferred"},`
	return `[{"_typeName":"GuestNicInfo","macAddress":"00:50:56:00:00:01","connected":true,"ipConfig":{"ipAddress":[` +
		strings.TrimSuffix(strings.Repeat(address, size/len(address)+1), ",") + `]}}]`
}

// long is a text.
func long(size int) string { return `"` + strings.Repeat("h", size) + `"` }

// TestLargePage: guests that together are too large for one response are shown on smaller pages.
func TestLargePage(t *testing.T) {
	t.Parallel()
	i := newInventory(t)
	i.objects["vm-42"] = map[string]string{"name": `"forty-two"`}
	for n := range 30 {
		i.objects[fmt.Sprintf("vm-%d", 100+n)] = map[string]string{"guest.hostName": long(smallBody / 8)}
	}

	c := i.client(t)
	watchedBefore(c, i.ids()...)
	var waits sync.WaitGroup
	for id := range i.objects {
		waits.Go(func() {
			until(t, c, id, "", func(s WatchState) bool {
				if s.Down {
					t.Errorf("%s: down: %v", id, s.Err)
				}
				return s.VM.Name == "forty-two" || s.VM.HostName != ""
			})
		})
	}

	run(t, c)
	waits.Wait()
	i.wantCount(t, "RetrievePropertiesEx", 0)
}

// watchedBefore adds VMs to the long poll of a client that is not running yet, so that its first response shows them
// all.
func watchedBefore(c *Client, ids ...string) {
	for _, id := range ids {
		c.poller.add(&watcher{vm: moRef{Type: virtualMachine, Value: id}, signal: make(chan struct{}, 1)})
	}
}

// TestLargePageUnasked: a server that ignores the page size is understood all the same.
func TestLargePageUnasked(t *testing.T) {
	t.Parallel()
	p := newPollServer(t)
	objects := []string{
		`{"kind":"enter","obj":{"type":"VirtualMachine","value":"vm-42"},"changeSet":[` + change(
			"name", `"forty-two"`,
		) + `]}`,
	}

	for n := range 10 {
		objects = append(
			objects,
			fmt.Sprintf(
				`{"kind":"enter","obj":{"type":"VirtualMachine","value":"vm-%d"},"changeSet":[%s]}`,
				100+n,
				change("guest.hostName", long(smallBody/4)),
			),
		)
	}

	page := `{"version":"1","filterSet":[{"objectSet":[` + strings.Join(objects, ",") + `]}]}`
	p.handle("WaitForUpdatesEx", func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(p.last("WaitForUpdatesEx").body, `"version"`) {
			<-r.Context().Done()
			return
		}
		writeJSON(w, 200, page)
	})

	until(t, p.polling(t, limitBody), "vm-42", "", named42)
}

// TestLargeObject: a VM that is too large by itself does not break the poll of the others. It is read by itself,
// without what is too large; where nothing of it can be read, its own watches see an error, and nobody else's.
func TestLargeObject(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		big  map[string]string
		want func(WatchState) bool
	}{
		"one property": {map[string]string{"name": `"big"`, "guest.net": nets(smallBody + 1)}, func(s WatchState) bool {
			return !s.Down && s.VM.Name == "big" && slices.Equal(s.VM.Unread, []string{"guest.net"})
		}},
		"together only": {map[string]string{
			"name": `"big"`, "guest.net": nets(smallBody / 2), "guest.hostName": long(smallBody / 2),
		},
			func(s WatchState) bool {
				return !s.Down && s.VM.Name == "big" && len(s.VM.NICs) == 1 && s.VM.Unread == nil
			}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := newInventory(t)
			i.objects["vm-42"] = map[string]string{"name": `"forty-two"`}
			i.objects["vm-666"] = tt.big
			c := i.client(t)
			run(t, c)
			until(t, c, "vm-42", "", named42)
			until(t, c, "vm-666", "", tt.want)
			s := until(t, c, "vm-42", "", named42)
			if s.Down || whyDown(c) != nil {
				t.Errorf("down: %v, %v", s.Err, whyDown(c))
			}
			if view := i.view(); view["vm-666"] || !view["vm-42"] {
				t.Errorf("in the view: %v", view)
			}

			vm, err := c.VM(t.Context(), "vm-666") // a read by itself is as good
			if err != nil || !tt.want(WatchState{VM: vm}) {
				t.Errorf("got %d NICs, unread %v, %v", len(vm.NICs), vm.Unread, err)
			}
		})
	}

	t.Run("all of it", func(t *testing.T) {
		t.Parallel()
		i := newInventory(t)
		i.objects["vm-42"] = map[string]string{"name": `"forty-two"`}
		i.objects["vm-666"] = map[string]string{"name": `"big"`}
		i.handle(
			"RetrievePropertiesEx",
			func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 200, strings.Repeat("x", smallBody+1)) },
		)

		i.objects["vm-666"]["guest.net"] = nets(smallBody + 1)
		c := i.client(t)
		run(t, c)
		s := until(t, c, "vm-666", "", func(s WatchState) bool { return s.Down && errors.Is(s.Err, ErrTooLarge) })
		if s.VM.Name != "" {
			t.Errorf("got %q", s.VM.Name)
		}
	})
}

// TestLargeTask: a Task that is too large is read member by member; the other Tasks of its VM are not affected.
func TestLargeTask(t *testing.T) {
	t.Parallel()
	i := newInventory(t)
	i.objects["vm-42"] = map[string]string{
		"name": `"forty-two"`,
		"recentTask": `{"_typeName":"ArrayOfManagedObjectReference","_value":[{"type":"Task",` +
			`"value":"task-1"},{"type":"Task","value":"task-2"}]}`,
	}

	i.objects["task-1"] = map[string]string{"info": `{"key":"task-1","state":"success","name":"A"}`}
	i.objects["task-2"] = map[string]string{
		"info":       `{"key":"task-2","state":"error","x":"` + strings.Repeat("x", smallBody) + `"}`,
		"info.key":   `"task-2"`,
		"info.state": `"error"`,
		"info.name":  `"B"`,
		"info.error": `"` + strings.Repeat("x", smallBody) + `"`,
	}

	i.reply("CreateCollectorForTasks", 500, `{"_typeName":"NoPermission"}`)
	tasks, _, err := i.client(t).Tasks(t.Context(), "vm-42", time.Time{})
	if err != nil || len(tasks) != 2 {
		t.Fatalf("%d tasks, %v", len(tasks), err)
	}
	if got := tasks[1]; got.ID != "task-2" || got.State != "error" || got.Name != "B" || got.Err == nil {
		t.Errorf("got %+v", got)
	}
}

// TestOddObject: an object with members of the wrong types affects only itself: it is read by itself, and where that
// cannot be decoded either, its own watches see which member it is.
func TestOddObject(t *testing.T) {
	t.Parallel()
	p := newPollServer(t)
	p.push(
		200,
		`{"version":"1","filterSet":[{"objectSet":[{"kind":7,"obj":{"type":"VirtualMachine","value":"vm-1"},
			"changeSet":[]},
		{"kind":"enter","obj":{"type":"VirtualMachine","value":"vm-2"},"changeSet":{"name":"x"}},
		{"kind":"enter","obj":{"type":"VirtualMachine","value":"vm-42"},"changeSet":[`+change(
			"name", `"forty-two"`,
		)+`]}]}]}`,
	)

	p.handle("RetrievePropertiesEx", func(w http.ResponseWriter, _ *http.Request) {
		if strings.Contains(p.last("RetrievePropertiesEx").body, `"vm-1"`) {
			writeJSON(
				w,
				200,
				`{"objects":[{"obj":{"type":"VirtualMachine","value":"vm-1"},"propSet":[{"name":"name",`+
					`"val":"one"}]}]}`,
			)
			return
		}

		writeJSON(w, 200,
			`{"objects":[{"obj":{"type":"VirtualMachine","value":"vm-2"},"propSet":[{"name":["name"],"val":"two"}]}]}`)
	})

	c := p.client(t)
	watchedBefore(c, "vm-1", "vm-2", "vm-42")
	var waits sync.WaitGroup
	waits.Go(func() { until(t, c, "vm-1", "", func(s WatchState) bool { return s.VM.Name == "one" && !s.Down }) })
	waits.Go(func() {
		s := until(t, c, "vm-2", "", func(s WatchState) bool { return s.Down })
		if !errors.Is(s.Err, ErrNotUnderstood) || !strings.Contains(s.Err.Error(), "name") {
			t.Errorf("told %v", s.Err)
		}
	})

	waits.Go(func() {
		until(t, c, "vm-42", "", func(s WatchState) bool {
			if s.Down {
				t.Errorf("down: %v", s.Err)
			}
			return named42(s)
		})
	})

	run(t, c)
	waits.Wait()
	p.wantCount(t, "CreateFilter", 1)
}

// TestSlowPages: where each page of the first response takes longer than showTimeout, the poll does not begin anew, and
// objects on later pages are not read by themselves.
func TestSlowPages(t *testing.T) {
	t.Parallel()
	i := newInventory(t)
	for n := range 250 {
		i.objects[fmt.Sprintf("vm-%d", n)] = map[string]string{"name": `"v"`}
	}

	i.objects["vm-zzz"] = map[string]string{"name": `"forty-two"`} // the last of the last page
	c := i.client(t)
	c.poller.showTimeout = 20 * time.Millisecond
	i.before = func() { <-time.After(100 * time.Millisecond) }
	watchedBefore(c, i.ids()...)
	var waits sync.WaitGroup

	for _, id := range i.ids() {
		waits.Go(func() { until(t, c, id, "", func(s WatchState) bool { return s.VM.Name != "" }) })
	}

	run(t, c)
	waits.Wait()
	i.wantCount(t, "CreateFilter", 1)
	i.wantCount(t, "RetrievePropertiesEx", 0)
}

// TestForgottenWithTheServer: what was found out about one server (missing properties, sessions that REST refuses, a
// poll that misses added objects, pages that are too large) does not count for the next.
func TestForgottenWithTheServer(t *testing.T) {
	t.Parallel()
	i := newInventory(t)
	i.objects["vm-42"] = map[string]string{"name": `"forty-two"`}
	old := true
	i.handle("RetrievePropertiesEx", func(w http.ResponseWriter, r *http.Request) {
		if old && strings.Contains(i.last("RetrievePropertiesEx").body, "guest.customizationInfo") {
			writeJSON(w, 500, `{"_typeName":"InvalidProperty","name":"guest.customizationInfo"}`)
			return
		}
		i.read(w, r)
	})

	i.handle("GET /api/session", func(w http.ResponseWriter, r *http.Request) {
		if old && strings.HasPrefix(r.Header.Get(sessionHeader), "vim-") {
			writeJSON(w, 401, `{"error_type":"UNAUTHENTICATED","messages":[]}`)
			return
		}
		writeJSON(w, 200, `{}`)
	})

	i.reply("customization", 200, `{"status":"IDLE"}`)
	c := i.client(t)
	read := func(info int, token string) {
		t.Helper()
		if _, err := c.VM(t.Context(), "vm-42"); err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(i.last("RetrievePropertiesEx").body, "guest.customizationInfo"); got != info {
			t.Errorf("guest.customizationInfo was asked for: %d", got)
		}
		if _, err := c.CustomizationStatus(t.Context(), "vm-42"); err != nil {
			t.Fatal(err)
		}
		if got := i.last("customization").header.Get(sessionHeader); got != token {
			t.Errorf("REST was called with %q, want %q", got, token)
		}
	}

	read(0, "rest-token")
	c.poller.missesAdded, c.poller.pageSize, c.poller.oversized = true, 1, map[moRef]bool{
		{Type: virtualMachine, Value: "vm-42"}: true,
	}

	old = false // it was updated
	i.reply(
		contentPath,
		200,
		`{"propertyCollector":{"type":"PropertyCollector","value":"propertyCollector"},
			"viewManager":{"type":"ViewManager","value":"ViewManager"},
		"about":{"name":"VMware vCenter Server","apiVersion":"9.0.0.0","build":"2",
		"instanceUuid":"11111111-2222-3333-4444-555555555555"},
		"sessionManager":{"type":"SessionManager","value":"SessionManager"}}`,
	)

	for _, l := range []*login{c.vimLogin, c.restLogin} {
		s, err := l.get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c.forgetSession(s, true)
	}

	read(1, "vim-token-3")
	run(t, c)
	until(t, c, "vm-42", "", named42)
	c.poller.mu.Lock()
	defer c.poller.mu.Unlock()

	if c.poller.missesAdded || c.poller.pageSize != maxPageSize || len(c.poller.oversized) != 0 {
		t.Errorf("blind %t, page %d, large %v", c.poller.missesAdded, c.poller.pageSize, c.poller.oversized)
	}
}
