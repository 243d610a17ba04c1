package vcapi

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// The paths of guest processes in both forms, as the fake's keys.
const (
	apiList, restList = "POST /api/vcenter/vm/vm-1/guest/processes", "POST /rest/vcenter/vm/vm-1/guest/processes"
	apiGet, restGet   = apiList + "/7", restList + "/7"
)

// count is how many requests had a key, and where action is not "" that action.
func (f *fake) count(key, action string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.seen {
		if r.key == key && (action == "" || r.query == "action="+action) {
			n++
		}
	}
	return n
}

func (f *fake) wantCounts(t *testing.T, want map[string]int) {
	t.Helper()
	for what, n := range want {
		key, action, _ := strings.Cut(what, "?")
		if got := f.count(key, action); got != n {
			t.Errorf("%s was called %d times, want %d", what, got, n)
		}
	}
}

// answers is a handler that always sends the same response.
func answers(status int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

// notThere are the ways in which a vCenter, or the proxy before it, says that it does not offer an operation.
var notThere = map[string]http.HandlerFunc{
	"empty":      answers(404, "", ""),
	"html":       answers(404, "text/html", "<html><head><title>404 Not Found</title></head></html>"),
	"text":       answers(404, "text/plain", "404 page not found"),
	"other JSON": answers(404, "application/json", `{"message":"no route"}`),
	"vCenter 6.5": answers(
		404,
		"application/json",
		`{"name":"com.vmware.vapi.rest.httpNotFound","localizableMessages":[{"defaultMessage":"Not found.",`+
			`"id":"com.vmware.vapi.rest.httpNotFound"}],"majorErrorCode":404}`,
	),
	"httpNotFound": answers(
		404,
		"application/json",
		`{"error_type":"NOT_FOUND","messages":[{"args":[],"default_message":"Not found.",`+
			`"id":"com.vmware.vapi.rest.httpNotFound"}]}`,
	),
	"operationsForUrlNotFound": answers(
		404,
		"application/json",
		`{"type":"com.vmware.vapi.std.errors.not_found","value":{"error_type":"NOT_FOUND","messages":[`+
			`{"args":["/x"],"default_message":"Unable to find operations for URL: /x.",`+
			`"id":"com.vmware.vapi.rest.operationsForUrlNotFound"}]}}`,
	),
	"NOT_FOUND of nothing":       answers(404, "application/json", `{"error_type":"NOT_FOUND","messages":[]}`),
	"a REST error without words": answers(404, "application/json", `{"messages":[]}`),
	"OPERATION_NOT_FOUND":        answers(404, "application/json", restBody("OPERATION_NOT_FOUND")),
	"OPERATION_NOT_FOUND, 400":   answers(400, "application/json", restBody("OPERATION_NOT_FOUND")),
}

// onlyRest makes a fake offer guest processes under /rest alone.
func onlyRest(f *fake, absent http.HandlerFunc) {
	f.handle(apiList, absent)
	f.handle(apiGet, absent)
	f.handle(restList, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("action") == "create" {
			writeJSON(w, 200, `{"value":7}`)
			return
		}
		writeJSON(w, 200, `{"value":[{"pid":7,"name":"sh"}]}`)
	})

	f.handle(restGet, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("action") == "delete" {
			w.WriteHeader(http.StatusOK)
			return
		}
		writeJSON(w, 200, `{"value":{"name":"sh"}}`)
	})
}

// TestProcessesUnderREST: an operation that does not exist under /api is tried under /rest, once, and that form is
// kept, for effects too.
func TestProcessesUnderREST(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for name, absent := range notThere {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			onlyRest(f, absent)
			c := f.client(t)

			for range 3 {
				if p, err := c.Process(ctx, "vm-1", testAuth, 7); err != nil || p.Name != "sh" {
					t.Fatalf("got %+v, %v", p, err)
				}
			}

			if list, err := c.Processes(ctx, "vm-1", testAuth); err != nil || len(list) != 1 || list[0].PID != 7 {
				t.Errorf("got %+v, %v", list, err)
			}

			if pid, err := c.StartProcess(ctx, nil, "vm-1", testAuth, ProcessSpec{Path: "/bin/sh"}); err != nil ||
				pid != 7 {
				t.Errorf("got %d, %v", pid, err)
			}

			if err := c.DeleteProcess(ctx, nil, "vm-1", testAuth, 7); err != nil {
				t.Error(err)
			}

			f.wantCounts(
				t,
				map[string]int{
					apiGet:               1,
					apiList:              0,
					restGet + "?get":     3,
					restGet + "?delete":  1,
					restList + "?list":   1,
					restList + "?create": 1,
				},
			)
		})
	}
}

// TestEffectFindsProcessAPI: where the form is not known, an effect makes a read first, before its fence, and is sent
// only in the form that answered.
func TestEffectFindsProcessAPI(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	acts := map[string]struct {
		act  func(*Client, Fence) error
		asks map[string]int // before the fence
		all  map[string]int
	}{
		"create": {func(c *Client, fence Fence) error {
			_, err := c.StartProcess(ctx, fence, "vm-1", testAuth, ProcessSpec{Path: "/bin/sh"})
			return err
		}, map[string]int{apiList + "?list": 1, restList + "?list": 1, apiList: 1, restList: 1},
			map[string]int{apiList: 1, restList + "?create": 1, restList: 2}},
		"delete": {func(c *Client, fence Fence) error { return c.DeleteProcess(ctx, fence, "vm-1", testAuth, 7) },
			map[string]int{apiGet + "?get": 1, restGet + "?get": 1, apiGet: 1, restGet: 1},
			map[string]int{apiGet: 1, restGet + "?delete": 1, restGet: 2}},
	}

	for name, tt := range acts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			onlyRest(f, notThere["empty"])
			fenced := 0

			if err := tt.act(f.client(t), func(context.Context) error {
				fenced++
				f.wantCounts(t, tt.asks)
				return nil
			}); err != nil || fenced != 1 {
				t.Errorf("the fence was asked %d times, %v", fenced, err)
			}

			f.wantCounts(t, tt.all)
		})

		t.Run(name+", neither form", func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			for _, key := range []string{apiList, apiGet, restList, restGet} {
				f.handle(key, notThere["OPERATION_NOT_FOUND"])
			}

			err := tt.act(f.client(t), func(context.Context) error { t.Error("the fence was asked"); return nil })
			outcome{"OPERATION_NOT_FOUND", Permanent, NotSent}.check(t, asError(t, err))
			if e := asError(t, err); !strings.HasPrefix(e.Endpoint, "POST /api/") {
				t.Errorf("the error is of %s", e.Endpoint)
			}

			f.wantCounts(t, tt.asks)
		})

		for _, status := range []int{429, 500, 502, 503} {
			t.Run(name+", cannot tell", func(t *testing.T) {
				t.Parallel()
				f := newFake(t, "9.0.0.0")
				for _, key := range []string{apiList, apiGet} {
					f.handle(key, answers(status, "text/html", "<title>wait</title>"))
				}
				err := tt.act(f.client(t), func(context.Context) error { t.Error("the fence was asked"); return nil })
				outcome{"", Transient, NotSent}.check(t, asError(t, err))
				f.wantCounts(t, map[string]int{restList: 0, restGet: 0, apiList + "?create": 0, apiGet + "?delete": 0})
			})
		}
	}
}

// TestProcessesUnderRESTNotTried: an error of the operation itself, above all of a missing VM or pid, is no reason to
// try /rest, nor is a transient one. The first kind proves that /api has the operation, so that an effect needs no
// read.
func TestProcessesUnderRESTNotTried(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	tests := []struct {
		name   string
		status int
		body   string
		proof  bool
	}{
		{
			"VM",
			404,
			`{"error_type":"NOT_FOUND","messages":[{"id":"com.vmware.api.vcenter.vm.not_found",` +
				`"default_message":"Virtual machine with identifier ` +
				`'vm-1' does not exist.","args":["vm-1"]}]}`,
			true,
		},
		{
			"pid",
			404,
			`{"error_type":"NOT_FOUND","messages":[{"id":"x","default_message":"Process 7 was not found.",` +
				`"args":["7"]}],"data":{"pid":7}}`,
			true,
		},
		{"pid without words", 404, `{"error_type":"NOT_FOUND","messages":[],"data":{"pid":7}}`, true},
		{"VM without error_type", 404, `{"messages":[{"id":"x","default_message":"no VM","args":[]}]}`, true},
		{"VM, messages odd", 404, `{"error_type":"NOT_FOUND","messages":["vm-1"]}`, true},
		{"off", 400, restBody("NOT_ALLOWED_IN_CURRENT_STATE"), true},
		{"unsupported", 400, restBody("UNSUPPORTED"), true},
		{"guest login", 401, restBody("UNAUTHENTICATED"), true},
		{"privilege", 403, restBody("UNAUTHORIZED"), true},
		{"busy", 500, restBody("RESOURCE_BUSY"), false},
		{"tools", 503, restBody("SERVICE_UNAVAILABLE"), false},
		{"a fault with 404", 404, `{"_typeName":"ManagedObjectNotFound"}`, false},
		{"gone", 410, ``, false},
		{"forbidden page", 403, `<html>`, false},
		{"a success of another kind", 200, `<html>`, false},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			onlyRest(f, answers(tt.status, "application/json", tt.body)) // /rest would take it
			c := f.client(t)
			if _, err := c.Process(ctx, "vm-1", testAuth, 7); err == nil {
				t.Error("no error")
			}

			_, err := c.StartProcess(ctx, nil, "vm-1", testAuth, ProcessSpec{Path: "/bin/sh"})
			if err == nil {
				t.Error("no error of the act")
			}

			sent := 0
			if tt.proof {
				sent = 1
			}

			f.wantCounts(
				t, map[string]int{restGet: 0, restList: 0, apiList + "?create": sent, apiList + "?list": 1 - sent},
			)
		})
	}
}

// TestProcessesUnderRESTErrors: the errors of guest processes, as /rest writes them, mean what they mean under /api.
func TestProcessesUnderRESTErrors(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, tt := range []struct {
		status int
		kind   string
		want   outcome
	}{
		{400, "not_allowed_in_current_state", outcome{"NOT_ALLOWED_IN_CURRENT_STATE", Permanent, Refused}},
		{404, "not_found", outcome{"NOT_FOUND", Permanent, Refused}},
		{500, "resource_busy", outcome{"RESOURCE_BUSY", Transient, Refused}},
		{503, "service_unavailable", outcome{"SERVICE_UNAVAILABLE", Transient, Refused}},
		{401, "unauthenticated", outcome{"UNAUTHENTICATED", GuestCredentials, Refused}},
		{400, "unsupported", outcome{"UNSUPPORTED", Permanent, Refused}},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, "9.0.0.0")
			c := f.client(t)
			f.learnt(t, c, "/rest")
			body := `{"type":"com.vmware.vapi.std.errors.` + tt.kind + `","value":{"messages":[{"args":[],` +
				`"default_message":"In words.","id":"x"}]}}`
			f.reply(restGet, tt.status, body)
			f.reply(restList, tt.status, body)
			_, got := c.Process(ctx, "vm-1", testAuth, 7)
			_, listed := c.Processes(ctx, "vm-1", testAuth)
			_, started := c.StartProcess(ctx, nil, "vm-1", testAuth, ProcessSpec{Path: "/bin/sh"})
			deleted := c.DeleteProcess(ctx, nil, "vm-1", testAuth, 7)

			for _, err := range []error{got, listed, started, deleted} {
				tt.want.check(t, asError(t, err))
				if e := asError(t, err); e.Message != "In words." ||
					!strings.HasPrefix(e.Endpoint, "POST /rest/vcenter/vm/vm-1/guest/processes") {
					t.Errorf("%s: %s", e.Endpoint, e.Message)
				}
			}

			f.wantCounts(t, map[string]int{apiGet: 0, apiList: 0, restList + "?create": 1, restGet + "?delete": 1})
			f.wantCount(t, "Login", 1)
		})
	}
}

// TestProcessAPIForgotten: the form is found out again in the next session, and when it turns out to be gone.
func TestProcessAPIForgotten(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	f := newFake(t, "9.0.0.0")
	onlyRest(f, notThere["html"])
	c := f.client(t)
	get := func(api, rest int) {
		t.Helper()
		if _, err := c.Process(ctx, "vm-1", testAuth, 7); err != nil {
			t.Error(err)
		}
		f.wantCounts(t, map[string]int{apiGet: api, restGet: rest})
	}

	get(1, 1)
	get(1, 2)
	s, err := c.vimLogin.get(ctx)
	if err != nil {
		t.Fatal(err)
	}

	c.forgetSession(s, true)
	get(2, 3)

	// The vCenter was updated behind the session's back: /rest is gone, /api is there. An act that meets that is not
	// sent again, the next one asks.
	f.handle(apiList, answers(201, "application/json", `8`))
	f.handle(restList, notThere["OPERATION_NOT_FOUND"])
	_, err = c.StartProcess(ctx, nil, "vm-1", testAuth, ProcessSpec{Path: "/bin/sh"})
	outcome{"OPERATION_NOT_FOUND", Permanent, Refused}.check(t, asError(t, err))
	f.wantCounts(t, map[string]int{restList: 1, apiList: 0})
	if pid, err := c.StartProcess(ctx, nil, "vm-1", testAuth, ProcessSpec{Path: "/bin/sh"}); err != nil || pid != 8 {
		t.Errorf("got %d, %v", pid, err)
	}

	f.wantCounts(t, map[string]int{restList: 1, apiList + "?list": 1, apiList + "?create": 1})
	// And back, met by an ask.
	f.handle(apiGet, notThere["empty"])
	get(3, 4)
	get(3, 5)
}

// TestProcessAPIShared: many goroutines that do not know the form yet all get their response.
func TestProcessAPIShared(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	onlyRest(f, notThere["empty"])
	c := f.client(t)
	var wg sync.WaitGroup

	for range 20 {
		wg.Go(func() {
			if _, err := c.Process(context.Background(), "vm-1", testAuth, 7); err != nil {
				t.Error(err)
			}

			if _, err := c.StartProcess(context.Background(), nil, "vm-1", testAuth,
				ProcessSpec{Path: "/bin/sh"}); err != nil {
				t.Error(err)
			}
		})
	}

	wg.Wait()
	f.wantCounts(t, map[string]int{apiList + "?create": 0, restList + "?create": 20})
}

// noSessions takes /api/session from a fake and gives it that of /rest, whose sessions are alive while alive says so.
func noSessions(f *fake, alive *atomic.Bool) {
	for _, method := range []string{"GET", "POST", "DELETE"} {
		f.handle(method+" /api/session", notThere["httpNotFound"])
	}

	f.handle("POST "+oldSession, func(w http.ResponseWriter, r *http.Request) {
		switch user, password, ok := r.BasicAuth(); {
		case r.URL.RawQuery == "~action=get" && alive.Load():
			writeJSON(w, 200, `{"value":{"user":"svc"}}`)
		case r.URL.RawQuery == "" && ok && user == testUser && password == testPassword:
			alive.Store(true)
			writeJSON(w, 200, `{"value":"old-token"}`)
		default:
			writeJSON(
				w,
				401,
				`{"type":"com.vmware.vapi.std.errors.unauthenticated","value":{"messages":[{"id":"x",`+
					`"default_message":"no","args":[]}]}}`,
			)
		}
	})

	f.reply("DELETE "+oldSession, 200, "")
}

// TestOldSession: where /api has no sessions, those of /rest are opened, checked and ended.
func TestOldSession(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	var alive atomic.Bool
	f := newFake(t, "8.0.2.0")
	noSessions(f, &alive)
	onlyRest(f, notThere["httpNotFound"])
	c := f.client(t)
	get := func() {
		t.Helper()
		if _, err := c.Process(ctx, "vm-1", testAuth, 7); err != nil {
			t.Error(err)
		}
	}

	get()
	for _, r := range f.of("/processes/7") {
		if token := r.header.Get(sessionHeader); token != "old-token" {
			t.Errorf("%s was called with %q", r.key, token)
		}
	}

	f.wantCount(t, "POST "+oldSession, 1)

	// A 401 is the guest's while the session is alive, and the session's where it is not.
	right := f.on[restGet]
	refused := `{"type":"com.vmware.vapi.std.errors.unauthenticated","value":{"messages":[]}}`
	f.reply(restGet, 401, refused)
	_, err := c.Process(ctx, "vm-1", testAuth, 7)
	outcome{"UNAUTHENTICATED", GuestCredentials, Refused}.check(t, asError(t, err))
	f.wantCount(t, "POST "+oldSession, 2)
	alive.Store(false)
	f.handle(restGet, func(w http.ResponseWriter, r *http.Request) {
		if !alive.Load() {
			writeJSON(w, 401, refused)
			return
		}
		right(w, r)
	})

	get()
	f.wantCount(t, "POST "+oldSession, 4) // whether it is alive, and the login
	c.Close(ctx)
	f.wantCount(t, "DELETE "+oldSession, 1)
	f.wantCount(t, "DELETE /api/session", 0)
}

// TestOldSessionShared: where REST accepts the session of VI JSON, there is no login to REST, in either form; where it
// does not, there is.
func TestOldSessionShared(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, shared := range []bool{true, false} {
		f := newFake(t, "9.0.0.0")
		var alive atomic.Bool
		alive.Store(shared)
		noSessions(f, &alive)
		onlyRest(f, notThere["httpNotFound"])
		c := f.client(t)
		if _, err := c.Process(ctx, "vm-1", testAuth, 7); err != nil {
			t.Error(err)
		}

		want := "old-token"
		if shared {
			want = "vim-token-1"
		}

		if token := f.last("/processes/7").header.Get(sessionHeader); token != want {
			t.Errorf("called with %q, want %q", token, want)
		}
	}
}

// TestOldSessionRefused: a login that /rest refuses is not tried again with the same password.
func TestOldSessionRefused(t *testing.T) {
	t.Parallel()
	f := newFake(t, "8.0.2.0")
	noSessions(f, new(atomic.Bool))
	cfg := f.config()
	cfg.Password = func() (string, error) { return "wrong-password", nil }
	c := newClient(t, cfg)

	for range 2 {
		_, err := c.Processes(context.Background(), "vm-1", testAuth)
		outcome{"UNAUTHENTICATED", SessionLost, Refused}.check(t, asError(t, err))
		if strings.Contains(err.Error(), "wrong-password") {
			t.Error(err)
		}
	}

	f.wantCount(t, "POST "+oldSession, 1)
}

// TestSimulatedOnlyRest: a simulated vCenter that has only the older form, with one session for both protocols, and
// with two.
func TestSimulatedOnlyRest(t *testing.T) {
	t.Parallel()
	for _, apiVersion := range []string{"9.0.0.0", "8.0.1.0"} {
		t.Run(apiVersion, func(t *testing.T) {
			t.Parallel()
			v, c := start(t, vcsim.Options{APIVersion: apiVersion, OnlyRest: true, VMs: 1})
			ctx, vm := patience(t), v.VMs()[0]
			pid, err := c.StartProcess(
				ctx,
				nil,
				vm,
				simAuth,
				ProcessSpec{Path: "/bin/sh", Arguments: "-c 'exit 3'", Environment: map[string]string{"A": "b"}},
			)
			if err != nil {
				t.Fatal(err)
			}
			if p, err := c.Process(ctx, vm, simAuth, pid); err != nil || p.ExitCode == nil || *p.ExitCode != 3 {
				t.Errorf("got %+v, %v", p, err)
			}
			if list, err := c.Processes(ctx, vm, simAuth); err != nil || len(list) != 3 {
				t.Errorf("got %+v, %v", list, err)
			}

			long, err := c.StartProcess(ctx, nil, vm, simAuth, ProcessSpec{Path: "/bin/sleep", Arguments: "1000"})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.DeleteProcess(ctx, nil, vm, simAuth, long); err != nil {
				t.Error(err)
			}
			if e := v.VM(vm).Effects(); len(e.Processes) != 2 || len(e.Deleted) != 1 {
				t.Errorf("effects %+v", e)
			}

			_, err = c.Process(ctx, vm, simAuth, 999999)
			outcome{"NOT_FOUND", Permanent, Refused}.check(t, asError(t, err))
			_, err = c.Processes(ctx, "vm-404", simAuth)
			outcome{"NOT_FOUND", Permanent, Refused}.check(t, asError(t, err))
			_, err = c.Processes(ctx, vm, GuestAuth{Username: "root", Password: "wrong-guest-password"})
			outcome{"UNAUTHENTICATED", GuestCredentials, Refused}.check(t, asError(t, err))
			v.ExpireSessions()
			if _, err := c.Processes(ctx, vm, simAuth); err != nil {
				t.Error(err)
			}
		})
	}
}
