package vcsim_test

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// listView makes a list view of VMs and returns its path.
func (c *rest) listView(vms ...string) (id, path string) {
	c.t.Helper()
	const create = "/sdk/vim25/8.0.1.0/ViewManager/ViewManager/CreateListView"
	id = c.ref("ListView", create, `{"obj":[`+refs(vms...)+`]}`)
	return id, "/sdk/vim25/8.0.1.0/ListView/" + id + "/ModifyListView"
}

func refs(ids ...string) string {
	var all []string
	for _, id := range ids {
		kind := "VirtualMachine"
		if strings.HasPrefix(id, "task-") {
			kind = "Task"
		}
		all = append(all, `{"_typeName":"ManagedObjectReference","type":"`+kind+`","value":"`+id+`"}`)
	}
	return strings.Join(all, ",")
}

func viewFilter(view string) string {
	return `{"spec":{"propSet":[{"_typeName":"PropertySpec","type":"VirtualMachine","pathSet":["guest.hostName"]},
	 {"_typeName":"PropertySpec","type":"Task","pathSet":["info"]}],
	 "objectSet":[{"_typeName":"ObjectSpec","obj":{"_typeName":"ManagedObjectReference","type":"ListView",
	"value":"` + view + `"},
	 "selectSet":[{"_typeName":"TraversalSpec","type":"ListView","path":"view"}]}]},"partialUpdates":false}`
}

// background makes a call that waits, after it has arrived.
func (c *rest) background(method, path, body string) <-chan response {
	c.t.Helper()
	arrived := make(chan struct{})
	var once sync.Once
	c.v.OnCall(func(call vcsim.Call, p vcsim.Phase) vcsim.Action {
		if p == vcsim.Before && call.Op == "WaitForUpdatesEx" {
			once.Do(func() { close(arrived) })
		}
		return vcsim.Proceed
	})

	answered := make(chan response, 1)
	go func() {
		res, err := c.try(method, path, body)
		if err != nil {
			res.body = err.Error()
		}
		answered <- res
	}()

	<-arrived
	return answered
}

func TestViewChangesDuringWait(t *testing.T) {
	t.Parallel()
	v, c, _ := loggedIn(t, vcsim.Options{VMs: 3})
	vms := v.VMs()
	id, modify := c.listView(vms[0])
	p := c.poll(viewFilter(id))
	want := func(set []string, want ...string) {
		t.Helper()
		if !slices.Equal(set, want) {
			t.Fatalf("updates:\n%s\nwant\n%s", strings.Join(set, "\n"), strings.Join(want, "\n"))
		}
	}

	want(changes(p.next()), "enter "+vms[0]+` guest.hostName="template"`)

	wait := c.background("POST", p.path+"WaitForUpdatesEx", p.body("60"))
	c.want("POST", modify, `{"add":[`+refs(vms[1])+`]}`, http.StatusOK, `[]`)
	want(changes(p.read(<-wait)), "enter "+vms[1]+` guest.hostName="template"`)

	wait = c.background("POST", p.path+"WaitForUpdatesEx", p.body("60"))
	v.VM(vms[1]).SetHostName("web02")
	want(changes(p.read(<-wait)), "modify "+vms[1]+` guest.hostName="web02"`)

	wait = c.background("POST", p.path+"WaitForUpdatesEx", p.body("60"))
	c.do("POST", modify, `{"remove":[`+refs(vms[0])+`]}`)
	want(changes(p.read(<-wait)), "leave "+vms[0])

	v.VM(vms[0]).SetHostName("nobody sees it")
	if res := c.do("POST", p.path+"WaitForUpdatesEx", p.body("0")); res.status != http.StatusNoContent ||
		res.body != "" {
		t.Errorf("no change: %d %s", res.status, res.body)
	}

	// a second filter, made during a wait
	wait = c.background("POST", p.path+"WaitForUpdatesEx", p.body("60"))
	c.do("POST", p.path+"CreateFilter", filterOf("VirtualMachine", vms[2], "name"))
	want(changes(p.read(<-wait)), "enter "+vms[2]+` name="`+v.VM(vms[2]).Name()+`"`)

	wait = c.background("POST", p.path+"WaitForUpdatesEx", p.body("60"))
	for canceled := false; !canceled; { // one that comes before its wait has begun does nothing
		c.want("POST", p.path+"CancelWaitForUpdates", "", http.StatusNoContent, "")
		select {
		case res := <-wait:
			canceled = true
			mustContain(t, "canceled", res.body, "RequestCanceled")
		default:
		}
	}

	wait = c.background("POST", p.path+"WaitForUpdatesEx", p.body("60"))
	v.ExpireSessions()
	if res := <-wait; !strings.Contains(res.body, "NotAuthenticated") {
		t.Errorf("expired: %d %s", res.status, res.body)
	}
}

// TestVersionAskedAgain loses an answer of the long poll and asks for the same version again.
func TestVersionAskedAgain(t *testing.T) {
	t.Parallel()
	v, c, vm := loggedIn(t, vcsim.Options{})
	p := c.poll(filterOf("VirtualMachine", vm.ID(), "guest.hostName"))
	p.next()

	v.Script(vcsim.Rule{Op: "WaitForUpdatesEx", Times: 1, LoseResponse: true})
	vm.SetHostName("one")
	if _, err := c.try("POST", p.path+"WaitForUpdatesEx", p.body("60")); err == nil {
		t.Fatal("the answer was not lost")
	}
	if got := changes(p.next()); len(got) != 1 || !strings.HasSuffix(got[0], `"one"`) {
		t.Fatalf("asked again: %q", got)
	}

	wait := c.background("POST", p.path+"WaitForUpdatesEx", p.body("1"))
	v.CutConnections() // in the middle of a wait
	if res := <-wait; res.status != 0 {
		t.Fatalf("cut: %+v", res)
	}

	vm.SetHostName("two")
	if got := changes(p.next()); len(got) != 1 || !strings.HasSuffix(got[0], `"two"`) {
		t.Fatalf("after the cut: %q", got)
	}

	if res := c.do("POST", p.path+"WaitForUpdatesEx", `{"version":"99"}`); !strings.Contains(
		res.body, "InvalidCollectorVersion",
	) {
		t.Errorf("unknown version: %d %s", res.status, res.body)
	}

	p.version = ""
	if got := changes(p.next()); len(got) != 1 || !strings.HasPrefix(got[0], "enter ") {
		t.Errorf("from the beginning: %q", got)
	}
}

// TestManyUpdates gives more updates than one answer may have.
func TestManyUpdates(t *testing.T) {
	t.Parallel()
	v, c, _ := loggedIn(t, vcsim.Options{VMs: 5})
	id, _ := c.listView(v.VMs()...)
	p := c.poll(viewFilter(id))
	var seen []string

	for n, truncated := range []bool{true, true, false} {
		set := p.read(
			c.do(
				"POST",
				p.path+"WaitForUpdatesEx",
				`{"version":"`+p.version+`","options":{"maxObjectUpdates":2,"maxWaitSeconds":60}}`,
			),
		)

		if (set.Truncated != nil && *set.Truncated) != truncated {
			t.Errorf("answer %d: %+v", n, set)
		}

		seen = append(seen, changes(set)...)
	}

	if len(seen) != 5 {
		t.Errorf("updates: %q", seen)
	}
}

func TestTaskIsPushed(t *testing.T) {
	t.Parallel()
	v, c, vm := loggedIn(t, vcsim.Options{})
	id, modify := c.listView(vm.ID())
	p := c.poll(viewFilter(id))
	p.next()
	task := c.act("CustomizeGuest_Task", customizeBody(vm, "web01", "10.0.0.7"))
	c.do("POST", modify, `{"add":[`+refs(task)+`]}`)

	for got := ""; !strings.Contains(got, `"state":"success"`) || !strings.Contains(got, `"progress":100`); {
		got = strings.Join(changes(p.next()), " ")
	}

	v.ForgetTasks()
	if got := changes(p.next()); !slices.Equal(got, []string{"leave " + task}) {
		t.Errorf("forgotten: %q", got)
	}
}

// A vCenter that is busy shows nothing for a while, then all of it; a read by itself shows it at once.
func TestBlockedUpdates(t *testing.T) {
	t.Parallel()
	_, c, vm := loggedIn(t, vcsim.Options{})
	id, modify := c.listView(vm.ID())
	p := c.poll(viewFilter(id))
	p.next()
	vm.BlockUpdates()
	vm.SetHostName("unseen")
	task := c.act("CustomizeGuest_Task", customizeBody(vm, "web01", "10.0.0.7"))
	c.do("POST", modify, `{"add":[`+refs(task)+`]}`)
	if info := c.info(task); info.Key != task {
		t.Errorf("read by itself: %+v", info)
	}
	if res := c.do("POST", p.path+"WaitForUpdatesEx", p.body("0")); res.status != http.StatusNoContent {
		t.Errorf("while held back: %d %s", res.status, res.body)
	}

	vm.UnblockUpdates()
	seen := ""
	for !strings.Contains(seen, "unseen") || !strings.Contains(seen, `"state":"success"`) {
		seen += strings.Join(changes(p.next()), " ")
	}
}
