package vcsim_test

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// TestScript loses, delays and forges answers, per VM and call.
func TestScript(t *testing.T) {
	t.Parallel()
	const check = "guest/customization check"
	v, c, _ := loggedIn(t, vcsim.Options{})
	one, two := first(v), v.VM(v.VMs()[1])
	path := func(vm *vcsim.VM) string { return "/api/vcenter/vm/" + vm.ID() + "/guest/customization?action=check" }
	status := func(vm *vcsim.VM) int {
		t.Helper()
		return c.do("POST", path(vm), "").status
	}

	v.Script(vcsim.Rule{VM: one.ID(), Op: check, Skip: 1, Times: 2, RESTError: "RESOURCE_BUSY"})
	for i, want := range []int{200, 500, 500, 200} {
		if got := status(one); got != want {
			t.Errorf("call %d: %d, want %d", i, got, want)
		}
	}

	if got := status(two); got != http.StatusOK {
		t.Errorf("the other VM: %d", got)
	}

	v.Script(
		vcsim.Rule{
			Op:    check,
			Times: 1,
			HTTP:  &vcsim.Response{Status: 503, ContentType: "text/html", Body: "<html>upstream</html>"},
		},
	)

	if res := c.do("POST", path(two), ""); res.status != 503 || res.body != "<html>upstream</html>" ||
		res.header.Get("Content-Type") != "text/html" {
		t.Errorf("page: %+v", res)
	}

	begin := func(vm *vcsim.VM) error {
		_, err := c.try("POST", gcmPath+"CustomizeGuest_Task", customizeBody(vm, "web01", "10.0.0.7"))
		return err
	}

	v.Script(vcsim.Rule{Op: "CustomizeGuest_Task", Times: 1, LoseCall: true})
	if err := begin(one); err == nil || one.Effects().Customizations != 0 {
		t.Errorf("lost call: %v, %+v", err, one.Effects())
	}

	v.Script(vcsim.Rule{Op: "CustomizeGuest_Task", Times: 1, LoseResponse: true})
	if err := begin(one); err == nil || one.Effects().Customizations != 1 {
		t.Errorf("lost answer: %v, %+v", err, one.Effects())
	}
	if n := v.Count("CustomizeGuest_Task", one.ID()); n != 2 {
		t.Errorf("counted %d", n)
	}

	v.Script(
		vcsim.Rule{
			Op:    "CustomizeGuest_Task",
			Times: 1,
			Fault: &types.TaskInProgress{Task: types.ManagedObjectReference{Type: "Task", Value: "task-7"}},
		},
	)

	res := c.do("POST", gcmPath+"CustomizeGuest_Task", customizeBody(two, "web01", "10.0.0.7"))
	mustContain(t, "fault", res.body, `"_typeName":"TaskInProgress"`, `"task-7"`, "Another task")
	if two.Effects().Customizations != 0 {
		t.Errorf("effects: %+v", two.Effects())
	}

	v.Script(vcsim.Rule{Op: check, RESTError: "ERROR"})
	v.ClearScript()
	if got := status(one); got != http.StatusOK {
		t.Errorf("after ClearScript: %d", got)
	}
}

// TestSOAPFault scripts a fault for a client that speaks SOAP.
func TestSOAPFault(t *testing.T) {
	t.Parallel()
	v := start(t, vcsim.Options{})
	v.Script(vcsim.Rule{Op: "RetrieveServiceContent", Fault: &types.SystemError{Reason: "restarting <soon>"}})
	c := newREST(t, v)
	res := c.do(
		"POST",
		"/sdk",
		`<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body><RetrieveServiceContent xmlns="urn:vim25">`+
			`<_this type="ServiceInstance">ServiceInstance</_this></RetrieveServiceContent></Body></Envelope>`,
	)

	mustContain(t, "fault", res.body, `xsi:type="SystemError"`, "restarting &lt;soon&gt;")
	if calls := v.Calls(); calls[0].Fault != "SystemError" || calls[0].Op != "RetrieveServiceContent" ||
		calls[0].Status != http.StatusInternalServerError {
		t.Errorf("recorded: %+v", calls[0])
	}
}

// TestHooks stops calls before and after their effect.
func TestHooks(t *testing.T) {
	t.Parallel()
	v, c, vm := loggedIn(t, vcsim.Options{})
	var mu sync.Mutex
	var seen []string
	drop := map[vcsim.Phase]bool{}
	v.OnCall(func(call vcsim.Call, p vcsim.Phase) vcsim.Action {
		mu.Lock()
		defer mu.Unlock()

		if call.Op != "StartGuestNetwork_Task" {
			return vcsim.Proceed
		}
		if call.VM != vm.ID() || call.Session == "" || call.Session == c.token {
			t.Errorf("hook: %+v", call)
		}
		seen = append(seen, strings.TrimSpace([]string{"before", "after"}[p]+" "+http.StatusText(call.Status)))
		if drop[p] {
			return vcsim.Drop
		}

		return vcsim.Proceed
	})

	for _, p := range []vcsim.Phase{vcsim.Before, vcsim.After} {
		mu.Lock()
		drop = map[vcsim.Phase]bool{p: true}
		mu.Unlock()
		if _, err := c.try("POST", gcmPath+"StartGuestNetwork_Task", onVM(vm)); err == nil {
			t.Errorf("phase %d: answered", p)
		}
		if n := vm.Effects().NetworkStarts; n != int(p) {
			t.Errorf("phase %d: %d effects", p, n)
		}
	}

	mu.Lock()
	defer mu.Unlock()

	if got := strings.Join(seen, ", "); got != "before, before, after OK" {
		t.Errorf("hooks: %s", got)
	}
}

// TestTravellingCall gives up on a call that takes effect later, all the same.
func TestTravellingCall(t *testing.T) {
	t.Parallel()
	v, c, vm := loggedIn(t, vcsim.Options{})
	arrived, cut, landed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	v.OnCall(func(call vcsim.Call, p vcsim.Phase) vcsim.Action {
		if call.Op == "AbortCustomization_Task" {
			if p == vcsim.Before {
				close(arrived)
				<-cut
			} else {
				close(landed)
			}
		}
		return vcsim.Proceed
	})

	v.Script(vcsim.Rule{Op: "AbortCustomization_Task", Delay: time.Millisecond})
	failed := make(chan error)
	go func() {
		_, err := c.try("POST", gcmPath+"AbortCustomization_Task", onVM(vm))
		failed <- err
	}()

	<-arrived
	v.CutConnections()
	if err := <-failed; err == nil {
		t.Error("the cut call was answered")
	}

	close(cut)
	<-landed
	if n := vm.Effects().Aborts; n != 1 {
		t.Errorf("effects: %d", n)
	}
}

// TestTravellingCallWithoutSession ends the session of a call that is on its way: it is refused when it lands.
func TestTravellingCallWithoutSession(t *testing.T) {
	t.Parallel()
	v, c, vm := loggedIn(t, vcsim.Options{})
	v.OnCall(func(call vcsim.Call, p vcsim.Phase) vcsim.Action {
		if call.VM == vm.ID() && p == vcsim.Before {
			v.ExpireSessions()
		}
		return vcsim.Proceed
	})

	mustContain(
		t,
		"fault",
		c.do("POST", gcmPath+"CustomizeGuest_Task", customizeBody(vm, "web01", "10.0.0.7")).body,
		"NotAuthenticated",
	)

	c.login()
	res := c.do(
		"POST",
		"/api/vcenter/vm/"+vm.ID()+"/guest/processes?action=create",
		`{"credentials":`+credentials(vm)+`,"spec":{"path":"/bin/true"}}`,
	)

	mustContain(t, "error", res.body, "UNAUTHENTICATED")
	if e := vm.Effects(); e.Customizations != 0 || len(e.Processes) != 0 {
		t.Errorf("effects: %+v", e)
	}
}

// TestSecretsAreRedacted looks at what is recorded of bodies that hold secrets in several places.
func TestSecretsAreRedacted(t *testing.T) {
	t.Parallel()
	v := start(t, vcsim.Options{})
	c := newREST(t, v)
	for _, body := range []string{
		`{"credentials":{"password":"hush","saml_token":"hush","user_name":"root"},"n":12345678901234567890}`,
		`{"spec":{"identity":{"guiUnattended":{"password":{"_typeName":"CustomizationPassword","value":"hush",` +
			`"plainText":true}}}}}`,
		`[{"auth":{"token":"hush"}}]`,
		`{"password":"hush"`,
		`<Login><userName>me</userName><password>hush</password></Login>`,
	} {
		c.do("POST", "/api/none", body)
	}

	for _, call := range v.Calls() {
		if strings.Contains(call.Body, "hush") || call.Body == "" {
			t.Errorf("recorded: %s", call.Body)
		}
	}

	mustContain(t, "the rest", v.Calls()[0].Body, `"user_name":"root"`, `12345678901234567890`)
}

func TestStopAndResume(t *testing.T) {
	t.Parallel()
	v, c, _ := loggedIn(t, vcsim.Options{})
	url := v.URL()

	for range 3 {
		v.Stop()
		v.Stop()
		if _, err := c.try("GET", "/api/session", ""); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Fatalf("stopped: %v", err)
		}

		v.Resume()
		v.Resume()
		if res := c.do("GET", "/api/session", ""); res.status != http.StatusOK || v.URL() != url {
			t.Fatalf("resumed: %d %s at %s", res.status, res.body, v.URL())
		}
	}

	v.Stop() // and Close while stopped
}

func TestCloseEndsWaits(t *testing.T) {
	t.Parallel()
	v, err := vcsim.Start(vcsim.Options{VMs: 1})
	if err != nil {
		t.Fatal(err)
	}

	c := newREST(t, v)
	c.login()
	p := c.poll(filterOf("VirtualMachine", v.VMs()[0], "name"))
	p.next()
	vm := first(v)
	vm.Configure(func(g *vcsim.Guest) { g.CustomizeTime = time.Hour })
	c.act("CustomizeGuest_Task", customizeBody(vm, "web01", "10.0.0.7"))
	v.Script(vcsim.Rule{Op: "CurrentTime", Delay: time.Hour})
	waiting := make(chan struct{}, 2)
	v.OnCall(func(call vcsim.Call, p vcsim.Phase) vcsim.Action {
		if p == vcsim.Before {
			waiting <- struct{}{}
		}
		return vcsim.Proceed
	})

	done := make(chan error)
	go func() {
		_, err := c.try("POST", p.path+"WaitForUpdatesEx", p.body("600"))
		done <- err
	}()

	go func() {
		_, err := c.try("POST", "/sdk/vim25/8.0.3.0/ServiceInstance/ServiceInstance/CurrentTime", "")
		done <- err
	}()

	<-waiting
	<-waiting
	v.Close()
	v.Close()

	for range 2 {
		if err := <-done; err == nil {
			t.Error("a wait was answered by a closed vCenter")
		}
	}

	if _, err := c.try("GET", "/api/session", ""); err == nil {
		t.Error("answered after Close")
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"7.0.3.0", "8.0", "8.0.x.0"} {
		if v, err := vcsim.Start(vcsim.Options{APIVersion: version}); err == nil {
			v.Close()
			t.Errorf("%s: started", version)
		}
	}

	v := start(t, vcsim.Options{Username: "me@vsphere.local", Password: "mine"})
	newREST(t, v).login()
	if v.VM("vm-0") != nil {
		t.Error("a VM that does not exist")
	}

	if taken, err := vcsim.Start(vcsim.Options{Listen: strings.TrimPrefix(v.URL(), "https://")}); err == nil {
		taken.Close()
		t.Error("two at one address")
	}
}
