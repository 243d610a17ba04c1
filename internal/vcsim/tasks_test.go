package vcsim_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// recent is a VM's recentTask.
func (c *rest) recent(vm *vcsim.VM) []string {
	c.t.Helper()
	res := c.do("GET", "/sdk/vim25/8.0.1.0/VirtualMachine/"+vm.ID()+"/recentTask", "")
	if res.status == http.StatusNoContent {
		return nil
	}

	var refs []struct{ Value string }
	if err := json.Unmarshal([]byte(res.body), &refs); err != nil || res.status != http.StatusOK {
		c.t.Fatalf("recentTask: %d %s", res.status, res.body)
	}

	var ids []string
	for _, r := range refs {
		ids = append(ids, r.Value)
	}

	return ids
}

// history reads the task history with a filter; members are those of a TaskFilterSpec.
func (c *rest) history(members string) []types.TaskInfo {
	c.t.Helper()
	const create = "/sdk/vim25/8.0.1.0/TaskManager/TaskManager/CreateCollectorForTasks"
	id := c.ref("TaskHistoryCollector", create, `{"filter":{"_typeName":"TaskFilterSpec"`+members+`}}`)
	path := "/sdk/vim25/8.0.1.0/TaskHistoryCollector/" + id + "/"
	defer c.do("POST", path+"DestroyCollector", "")
	var all []types.TaskInfo
	for {
		res := c.do("POST", path+"ReadNextTasks", `{"maxCount":2}`)
		var page []types.TaskInfo
		if err := types.NewJSONDecoder(strings.NewReader(res.body)).
			Decode(&page); err != nil ||
			res.status != http.StatusOK {
			c.t.Fatalf("ReadNextTasks: %d %s: %v", res.status, res.body, err)
		}

		if res.body == "[]" {
			return all
		}

		all = append(all, page...)
	}
}

func entity(vm *vcsim.VM) string {
	return `,"entity":{"entity":{"type":"VirtualMachine","value":"` + vm.ID() + `"},"recursion":"self"}`
}

func queued(at time.Time, bound string) string {
	return `,"time":{"timeType":"queuedTime","` + bound + `":"` + at.UTC().Format(time.RFC3339Nano) + `"}`
}

func TestHistory(t *testing.T) {
	t.Parallel()
	v, c, _ := loggedIn(t, vcsim.Options{ClockOffset: -5 * time.Hour})
	one, two := first(v), v.VM(v.VMs()[1])
	var made []string // the VMs: a history that reaches back before the test

	for _, info := range c.history("") {
		if info.StartTime.Before(info.QueueTime) || info.StartTime.After(v.Now()) {
			t.Errorf("not by vCenter's clock: %+v", info)
		}
		made = append(made, info.Key)
	}

	if len(made) != 2 || len(c.recent(one)) != 0 {
		t.Fatalf("at the beginning: %q, recent %q", made, c.recent(one))
	}

	began := v.Now()
	a := c.act("StartGuestNetwork_Task", onVM(one))
	b := c.act("StartGuestNetwork_Task", onVM(two))
	c.end(a)
	c.end(b)
	v.Advance(time.Minute)
	d := c.act("AbortCustomization_Task", onVM(one))
	c.end(d)

	want := func(members string, ids ...string) {
		t.Helper()
		var got []string
		for _, info := range c.history(members) {
			got = append(got, info.Key)
		}
		if strings.Join(got, " ") != strings.Join(ids, " ") {
			t.Errorf("%s: %q, want %q", members, got, ids)
		}
	}

	want("", append(made, a, b, d)...)
	want(entity(one), a, d)
	want(entity(one)+queued(began, "beginTime"), a, d)
	want(entity(one)+queued(began.Add(30*time.Second), "beginTime"), d)
	want(queued(began.Add(30*time.Second), "endTime"), append(made, a, b)...)
	want(queued(began, "endTime"), made...)
	want(`,"state":["running"]`)
	want(`,"state":["success"],"userName":{"systemUser":false,"userList":["`+v.Username()+`"]}`, a, b, d)
	want(`,"userName":{"systemUser":true,"userList":["other"]}`)

	if got := strings.Join(c.recent(one), " "); got != a+" "+d {
		t.Errorf("recentTask: %s", got)
	}
	if n := v.Count("CreateCollectorForTasks", one.ID()); n != 3 {
		t.Errorf("counted %d", n)
	}

	v.Advance(10*time.Minute - 30*time.Second) // a is older than ten minutes now, d is not
	if got := strings.Join(c.recent(one), " "); got != d {
		t.Errorf("recentTask after ten minutes: %s", got)
	}

	v.ForgetTasks()
	if got := c.recent(one); len(got) != 0 {
		t.Errorf("recentTask after a restart: %q", got)
	}

	if res := c.do("GET", "/sdk/vim25/8.0.1.0/Task/"+d+"/info", ""); !strings.Contains(
		res.body, "ManagedObjectNotFound",
	) {
		t.Errorf("task after a restart: %d %s", res.status, res.body)
	}

	want(entity(one), a, d)
	v.ForgetHistory()
	want("")
	e := c.act("AbortCustomization_Task", onVM(one))
	want("", e)
	if e == a || e == b || e == d {
		t.Error("a task's ID was used again")
	}
}

// TestVisibilityLag hides a new Task from those who do not know its ID.
func TestVisibilityLag(t *testing.T) {
	t.Parallel()
	hidden := start(t, vcsim.Options{VisibilityLag: time.Hour})
	c := newREST(t, hidden)
	c.login()
	vm := first(hidden)
	task := c.act("StartGuestNetwork_Task", onVM(vm))
	if got := c.recent(vm); len(got) != 0 {
		t.Errorf("seen at once: %q", got)
	}
	if got := c.history(entity(vm)); len(got) != 0 {
		t.Errorf("in the history at once: %+v", got)
	}
	if info := c.end(task); info.Entity.Value != vm.ID() || info.State != types.TaskInfoStateSuccess {
		t.Errorf("info: %+v", info)
	}

	shown := start(t, vcsim.Options{VisibilityLag: time.Millisecond})
	c = newREST(t, shown)
	c.login()
	vm = first(shown)
	task = c.act("StartGuestNetwork_Task", onVM(vm))
	p := c.poll(filterOf("VirtualMachine", vm.ID(), "recentTask"))

	for len(c.recent(vm)) == 0 {
		p.next()
	}

	if got := c.history(entity(vm)); len(got) != 1 || got[0].Key != task {
		t.Errorf("in the history: %+v", got)
	}
}

func TestTooManyCollectors(t *testing.T) {
	t.Parallel()
	_, c, _ := loggedIn(t, vcsim.Options{})
	const path = "/sdk/vim25/8.0.1.0/TaskManager/TaskManager/CreateCollectorForTasks"

	for range 32 {
		if res := c.do("POST", path, `{"filter":{}}`); res.status != http.StatusOK {
			t.Fatalf("%d %s", res.status, res.body)
		}
	}

	if res := c.do("POST", path, `{"filter":{}}`); !strings.Contains(res.body, "InvalidState") {
		t.Errorf("one too many: %d %s", res.status, res.body)
	}

	c.token = ""
	c.login()
	if res := c.do("POST", path, `{"filter":{}}`); res.status != http.StatusOK {
		t.Errorf("another session: %d %s", res.status, res.body)
	}
}

// TestTwoSideBySide runs two vCenters with everything going on at once, for the race detector.
func TestTwoSideBySide(t *testing.T) {
	t.Parallel()
	for range 2 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			v := start(t, vcsim.Options{VMs: 6, VisibilityLag: time.Millisecond})
			watcher := newREST(t, v)
			watcher.login()
			id, _ := watcher.listView(v.VMs()...)
			p := watcher.poll(viewFilter(id))
			p.next()
			done := make(chan struct{})

			for i, moID := range v.VMs() {
				go func() {
					defer func() { done <- struct{}{} }()
					c := newREST(t, v)
					c.login()
					vm := v.VM(moID)
					host := "web0" + string(rune('1'+i))
					task := c.act("CustomizeGuest_Task", customizeBody(vm, host, "10.0.0.7"))

					for !strings.Contains(c.do("GET",
						"/sdk/vim25/8.0.1.0/Task/"+task+"/info", "").body, `"state":"success"`) {
						c.recent(vm)
						c.history(entity(vm))
					}

					c.act("StartGuestNetwork_Task", onVM(vm))
					c.do(
						"POST",
						"/api/vcenter/vm/"+moID+"/guest/processes?action=create",
						`{"credentials":`+credentials(vm)+`,"spec":{"path":"/bin/true"}}`,
					)
				}()
			}

			named := make(map[string]bool)
			for len(named) < 6 {
				for _, line := range changes(p.next()) {
					if strings.Contains(line, `guest.hostName="web0`) {
						named[strings.Fields(line)[1]] = true
					}
				}
			}

			for range v.VMs() {
				<-done
			}

			for _, moID := range v.VMs() {
				if e := v.VM(moID).Effects(); e.Customizations != 1 || e.NetworkStarts != 1 || len(e.Processes) != 1 {
					t.Errorf("%s: %+v", moID, e)
				}
			}
		})
	}
}
