package vcsim_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"go.uber.org/goleak"

	"github.com/guestflow/guestflow/internal/vcsim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start is a running simulator that ends with the test.
func start(t *testing.T, opts vcsim.Options) *vcsim.VCenter {
	t.Helper()
	if opts.VMs == 0 {
		opts.VMs = 2
	}
	v, err := vcsim.Start(opts)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(v.Close)
	return v
}

// first is the simulator's first VM.
func first(v *vcsim.VCenter) *vcsim.VM { return v.VM(v.VMs()[0]) }

// transport trusts the simulator; its connections end with the test.
func transport(t *testing.T, v *vcsim.VCenter) *http.Transport {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(v.CAPEM()) {
		t.Fatal("no certificate in CAPEM")
	}

	tr := &http.Transport{
		ForceAttemptHTTP2: true,
		TLSClientConfig:   &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
	}

	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// rest is a bare HTTP client: what goes over the wire, and nothing else.
type rest struct {
	t     *testing.T
	v     *vcsim.VCenter
	http  *http.Client
	token string
}

func newREST(t *testing.T, v *vcsim.VCenter) *rest {
	t.Helper()
	return &rest{t: t, v: v, http: &http.Client{Transport: transport(t, v)}}
}

// response is an HTTP answer, read.
type response struct {
	status int
	header http.Header
	body   string
}

// try sends a request; body may be "".
func (c *rest) try(method, path, body string) (response, error) {
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.v.URL()+path, strings.NewReader(body))
	if err != nil {
		return response{}, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("vmware-api-session-id", c.token)
	}

	res, err := c.http.Do(req)
	if err != nil {
		return response{}, err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	return response{res.StatusCode, res.Header, string(b)}, err
}

func (c *rest) do(method, path, body string) response {
	c.t.Helper()
	res, err := c.try(method, path, body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return res
}

// loggedIn is a running simulator, a client with a session of VI JSON, and the first VM.
func loggedIn(t *testing.T, opts vcsim.Options) (*vcsim.VCenter, *rest, *vcsim.VM) {
	t.Helper()
	v := start(t, opts)
	c := newREST(t, v)
	c.login()
	return v, c, first(v)
}

// want checks an answer; the body is compared as JSON, "" is no body.
func (c *rest) want(method, path, body string, status int, want string) response {
	c.t.Helper()
	res := c.do(method, path, body)
	if res.status != status {
		c.t.Fatalf("%s %s: status %d, want %d: %s", method, path, res.status, status, res.body)
	}
	if got := canonical(c.t, res.body); got != canonical(c.t, want) {
		c.t.Fatalf("%s %s:\n got %s\nwant %s", method, path, got, canonical(c.t, want))
	}
	return res
}

func canonical(t *testing.T, s string) string {
	t.Helper()
	if s == "" {
		return ""
	}

	dec := json.NewDecoder(strings.NewReader(s))
	dec.UseNumber()
	var val any
	if err := dec.Decode(&val); err != nil {
		t.Fatalf("not JSON: %q: %v", s, err)
	}

	out, err := json.Marshal(val)
	if err != nil {
		t.Fatal(err)
	}

	return string(out)
}

// login opens a session by VI JSON and keeps its token.
func (c *rest) login() response {
	c.t.Helper()
	body := `{"userName":"` + c.v.Username() + `","password":"` + c.v.Password() + `","locale":"en_US"}`
	res := c.do("POST", "/sdk/vim25/8.0.1.0/SessionManager/SessionManager/Login", body)
	if res.status != http.StatusOK {
		c.t.Fatalf("login: %d %s", res.status, res.body)
	}
	c.token = res.header.Get("vmware-api-session-id")
	return res
}

// loginREST opens a session by REST and keeps its token.
func (c *rest) loginREST() {
	c.t.Helper()
	c.loginAt("/api/session", http.StatusCreated, &c.token)
}

// loginAt opens a session of REST with the user's password; its answer is decoded into into.
func (c *rest) loginAt(path string, status int, into any) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.v.URL()+path, nil)
	if err != nil {
		c.t.Fatal(err)
	}

	req.SetBasicAuth(c.v.Username(), c.v.Password())
	res, err := c.http.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != status {
		c.t.Fatalf("POST %s: %d", path, res.StatusCode)
	}
	if err := json.NewDecoder(res.Body).Decode(into); err != nil {
		c.t.Fatal(err)
	}
}

const gcmPath = "/sdk/vim25/8.0.1.0/VirtualMachineGuestCustomizationManager/GuestCustomizationManager/"

// auth is the guest's account as VI JSON takes it.
func auth(vm *vcsim.VM) string {
	user, password := vm.Credentials()
	return `{"_typeName":"NamePasswordAuthentication","interactiveSession":false,` +
		`"username":"` + user + `","password":"` + password + `"}`
}

// credentials is the guest's account as REST takes it.
func credentials(vm *vcsim.VM) string {
	user, password := vm.Credentials()
	return `{"type":"USERNAME_PASSWORD","interactive_session":false,` +
		`"user_name":"` + user + `","password":"` + password + `"}`
}

// customizeBody is a CustomizeGuest_Task for a Linux guest with one NIC.
func customizeBody(vm *vcsim.VM, host, address string) string {
	others := ""
	for i, mac := range vm.MACs()[1:] {
		others += `,{"macAddress":"` + mac + `","adapter":{"ip":{"_typeName":"CustomizationFixedIp",` +
			`"ipAddress":"10.0.` + strconv.Itoa(i+1) + `.9"},"subnetMask":"255.255.255.0"}}`
	}

	return `{"_typeName":"CustomizeGuest_Task","vm":{"_typeName":"ManagedObjectReference",` +
		`"type":"VirtualMachine","value":"` + vm.ID() + `"},
	 "auth":` + auth(vm) + `,
	 "spec":{"_typeName":"CustomizationSpec",
	  "identity":{"_typeName":"CustomizationLinuxPrep","hostName":{"_typeName":"CustomizationFixedName",` +
		`"name":"` + host + `"},
	    "domain":"example.test","timeZone":"Europe/Berlin","hwClockUTC":true},
	  "globalIPSettings":{"_typeName":"CustomizationGlobalIPSettings","dnsServerList":["10.0.0.2"]},
	  "nicSettingMap":[{"_typeName":"CustomizationAdapterMapping","macAddress":"` + vm.MACs()[0] + `",
	    "adapter":{"_typeName":"CustomizationIPSettings","ip":{"_typeName":"CustomizationFixedIp",` +
		`"ipAddress":"` + address + `"},"subnetMask":"255.255.255.0"}}` + others + `]},
	 "configParams":[{"_typeName":"OptionValue","key":"k1","value":{"_typeName":"string","_value":"v1"}},
	                 {"_typeName":"OptionValue","key":"k2","value":{"_typeName":"int","_value":5}}]}`
}

// onVM is the body of the two methods without a spec.
func onVM(vm *vcsim.VM) string {
	return `{"vm":{"type":"VirtualMachine","value":"` + vm.ID() + `"},"auth":` + auth(vm) + `}`
}

// act calls a method of the guest customization manager and returns its Task.
func (c *rest) act(method, body string) string {
	c.t.Helper()
	return c.ref("Task", gcmPath+method, body)
}

// ref calls a method that answers with an object of a kind, and returns the object's ID.
func (c *rest) ref(kind, path, body string) string {
	c.t.Helper()
	res := c.do("POST", path, body)
	var ref struct{ Type, Value string }
	if err := json.Unmarshal([]byte(res.body), &ref); err != nil || res.status != http.StatusOK || ref.Type != kind {
		c.t.Fatalf("%s: %d %s (%v)", path, res.status, res.body, err)
	}
	return ref.Value
}

// info reads a Task's info.
func (c *rest) info(task string) types.TaskInfo {
	c.t.Helper()
	res := c.do("GET", "/sdk/vim25/8.0.1.0/Task/"+task+"/info", "")
	if res.status != http.StatusOK {
		c.t.Fatalf("task %s: %d %s", task, res.status, res.body)
	}
	var info types.TaskInfo
	if err := types.NewJSONDecoder(strings.NewReader(res.body)).Decode(&info); err != nil {
		c.t.Fatalf("task %s: %v: %s", task, err, res.body)
	}
	return info
}

// end waits for a Task by WaitForUpdatesEx, as a client does.
func (c *rest) end(task string) types.TaskInfo {
	c.t.Helper()
	p := c.poll(filterOf("Task", task, "info.state"))
	defer p.close()
	for {
		if info := c.info(task); info.State == types.TaskInfoStateSuccess || info.State == types.TaskInfoStateError {
			return info
		}
		p.next()
	}
}

func filterOf(kind, id, property string) string {
	return `{"spec":{"propSet":[{"_typeName":"PropertySpec","type":"` + kind + `","pathSet":["` + property + `"]}],
	 "objectSet":[{"_typeName":"ObjectSpec","obj":{"_typeName":"ManagedObjectReference",
	"type":"` + kind + `","value":"` + id + `"}}]},"partialUpdates":false}`
}

// poll is a property collector of its own with one filter.
type poll struct {
	c       *rest
	path    string
	version string
}

func (c *rest) poll(filter string) *poll {
	c.t.Helper()
	const create = "/sdk/vim25/8.0.1.0/PropertyCollector/propertyCollector/CreatePropertyCollector"
	id := c.ref("PropertyCollector", create, "")
	p := &poll{c: c, path: "/sdk/vim25/8.0.1.0/PropertyCollector/" + url.PathEscape(id) + "/"}
	if res := c.do("POST", p.path+"CreateFilter", filter); res.status != http.StatusOK {
		c.t.Fatalf("CreateFilter: %d %s", res.status, res.body)
	}
	return p
}

func (p *poll) body(seconds string) string {
	return `{"version":"` + p.version + `","options":{"_typeName":"WaitOptions","maxWaitSeconds":` + seconds + `}}`
}

// next waits for the next update and keeps its version.
func (p *poll) next() types.UpdateSet {
	p.c.t.Helper()
	return p.read(p.c.do("POST", p.path+"WaitForUpdatesEx", p.body("60")))
}

func (p *poll) read(res response) types.UpdateSet {
	p.c.t.Helper()
	if res.status != http.StatusOK {
		p.c.t.Fatalf("WaitForUpdatesEx: %d %s", res.status, res.body)
	}
	var set types.UpdateSet
	if err := types.NewJSONDecoder(strings.NewReader(res.body)).Decode(&set); err != nil {
		p.c.t.Fatalf("WaitForUpdatesEx: %v: %s", err, res.body)
	}

	p.version = set.Version
	return set
}

func (p *poll) close() { p.c.do("POST", p.path+"DestroyPropertyCollector", "") }

// changes are all changes of an update set, in words.
func changes(set types.UpdateSet) []string {
	var all []string
	for _, f := range set.FilterSet {
		for _, o := range f.ObjectSet {
			line := string(o.Kind) + " " + o.Obj.Value
			for _, c := range o.ChangeSet {
				b, _ := json.Marshal(c.Val)
				line += " " + c.Name + "=" + string(b)
			}
			all = append(all, line)
		}
	}
	return all
}

// vimSession is a running simulator and govmomi's client, logged in.
func vimSession(t *testing.T, useJSON bool) (*vcsim.VCenter, *vim25.Client) {
	t.Helper()
	v := start(t, vcsim.Options{})
	c := vimClient(t, v, useJSON)
	user := url.UserPassword(v.Username(), v.Password())
	if err := session.NewManager(c).Login(within(t), user); err != nil {
		t.Fatal(err)
	}
	return v, c
}

// vimClient is govmomi's client, without a session.
func vimClient(t *testing.T, v *vcsim.VCenter, useJSON bool) *vim25.Client {
	t.Helper()
	u, err := soap.ParseURL(v.URL() + "/sdk")
	if err != nil {
		t.Fatal(err)
	}

	sc := soap.NewClient(u, false)
	sc.DefaultTransport().TLSClientConfig.RootCAs = transport(t, v).TLSClientConfig.RootCAs
	t.Cleanup(sc.CloseIdleConnections)
	sc.UseJSON(useJSON)
	if useJSON {
		sc.Version = "8.0.3.0"
	}

	c, err := vim25.NewClient(t.Context(), sc)
	if err != nil {
		t.Fatal(err)
	}

	return c
}

// within gives a test's own waits an end.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func mustContain(t *testing.T, what, s string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(s, p) {
			t.Errorf("%s: no %q in %s", what, p, s)
		}
	}
}
