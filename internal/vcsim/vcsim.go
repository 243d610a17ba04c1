// Package vcsim is a simulated vCenter, for tests and for the sandbox. It is govmomi's simulator (inventory, tasks,
// sessions, views) over TLS, with what that lacks added: VI JSON, the REST calls of sessions, guest customization and
// guest processes, the VirtualMachineGuestCustomizationManager with real tasks, guests whose host name, addresses and
// processes behave, and a property collector that survives cut connections. Every call is recorded, and faults, delays
// and lost answers can be scripted per VM and call.
//
// It imports nothing of this module on purpose: a simulator that shares the client's structs shares its mistakes.
package vcsim

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// What a VCenter and its guests accept where nothing else is configured.
const (
	DefaultUsername      = "svc-guestflow@vsphere.local"
	DefaultPassword      = "vcsim-vcenter-password"
	DefaultGuestUsername = "root"
	DefaultGuestPassword = "vcsim-guest-password"
)

// Options describe a simulated vCenter. The zero value is a vCenter 9.0 with eight running Linux VMs on a free port of
// the loopback interface.
type Options struct {
	// APIVersion is about.apiVersion, default "9.0.0.0". What came later is missing: before 9.0.0.0 the customization
	// check, before 8.0.3.0 the session that serves VI JSON and REST alike, before 8.0.2.0 hello. VI JSON came with
	// 8.0.1.0: older ones are refused.
	APIVersion string
	// Username and Password are the only login; others get InvalidLogin and 401. Defaults: DefaultUsername,
	// DefaultPassword.
	Username, Password string
	// Listen is the address to listen at, default "127.0.0.1:0". The certificate is for 127.0.0.1, ::1 and localhost.
	Listen string
	// VMs is how many ready-made VMs there are, default 8: powered on, VMware Tools running. NICs is how many connected
	// NICs each has, default 1.
	VMs, NICs int
	// ClockOffset is vCenter's clock minus ours; GuestClockOffset is the guests' clocks minus ours.
	ClockOffset, GuestClockOffset time.Duration
	// VisibilityLag is how long a new Task stays out of recentTask and of the history. Its own info can be read at once
	// by who knows its ID.
	VisibilityLag time.Duration
	// MissingNotAuthenticated makes RetrievePropertiesEx without a living session answer 200 with every property
	// missing for NotAuthenticated, as vCenter does over SOAP, instead of the NotAuthenticated fault.
	MissingNotAuthenticated bool
	// OnlyRest makes processes and sessions of REST be offered in the older form alone, under /rest: /api/session and
	// /api/…/guest/processes are not there, as on a vCenter that does not have them yet. Else both forms are offered.
	OnlyRest bool
	// Privileges are all that the login may do; nil is everything.
	Privileges *Privileges
}

// VCenter is a running simulated vCenter. All its methods may be called from any goroutine. Several can run in one
// process.
type VCenter struct {
	opts     Options
	api      apiVersion
	cert     certificate
	model    *simulator.Model
	svc      *simulator.Service
	reg      *simulator.Registry
	content  types.ServiceContent
	sessions *sessions
	changes  *changeLog
	tasks    *taskManager
	rec      *recorder
	inv      *inventory
	srv      *http.Server
	rest     *http.ServeMux
	rights   permissions

	transfers transfers

	done chan struct{}  // closed by Close: ends every wait and delay
	wg   sync.WaitGroup // requests and guests at work; added to under mu

	mu          sync.Mutex
	closed      bool
	skew        time.Duration // by Advance
	addr        *net.TCPAddr
	lis         net.Listener
	releasePort func() // keeps the port while stopped
	conns       map[net.Conn]struct{}
}

// buildMutex serializes the making of inventories: vcsim builds them through an in-process client, and that has one
// session for all simulators of a process.
var buildMutex sync.Mutex

// Start makes a simulated vCenter and lets it listen. It fails where the address is taken, the API version is not one
// of VI JSON's, or vcsim cannot build its inventory.
func Start(opts Options) (*VCenter, error) {
	opts.APIVersion = cmp.Or(opts.APIVersion, "9.0.0.0")
	opts.Username = cmp.Or(opts.Username, DefaultUsername)
	opts.Password = cmp.Or(opts.Password, DefaultPassword)
	opts.Listen = cmp.Or(opts.Listen, "127.0.0.1:0")
	opts.VMs = cmp.Or(opts.VMs, 8)
	opts.NICs = cmp.Or(opts.NICs, 1)

	api, err := parseAPIVersion(opts.APIVersion)
	if err != nil {
		return nil, err
	}

	if api.before("8.0.1.0") {
		return nil, fmt.Errorf(
			"vcsim: API version %s: VI JSON exists from 8.0.1.0 on; choose that or a newer one", opts.APIVersion,
		)
	}

	cert, err := newCertificate(time.Now())
	if err != nil {
		return nil, err
	}

	v := &VCenter{
		opts:     opts,
		api:      api,
		cert:     cert,
		sessions: newSessions(),
		changes:  newChangeLog(),
		rec:      &recorder{},
		inv:      &inventory{vms: make(map[string]*VM)},
		done:     make(chan struct{}),
		conns:    make(map[net.Conn]struct{}),
		rights:   permissions{held: opts.Privileges},
	}

	if err := v.build(); err != nil {
		return nil, err
	}

	v.rest = v.restRoutes()
	v.srv = v.newServer()
	lis, err := net.Listen("tcp", opts.Listen)
	if err != nil {
		v.model.Remove()
		return nil, fmt.Errorf("vcsim: listen at %s: %w", opts.Listen, err)
	}

	v.addr = lis.Addr().(*net.TCPAddr)
	v.serve(lis)
	return v, nil
}

// build makes the inventory and puts our own objects in the place of vcsim's.
func (v *VCenter) build() error {
	model := simulator.VPX()
	model.Host = 0
	model.ClusterHost = 1
	model.Machine = 0 // makeVMs is much faster
	about := &model.ServiceContent.About
	about.Version = v.api.product()
	about.Build = "24000000"
	about.ApiVersion = v.opts.APIVersion
	about.FullName = fmt.Sprintf("VMware vCenter Server %s build-%s", about.Version, about.Build)

	buildMutex.Lock()
	err := model.Create()
	buildMutex.Unlock()
	if err != nil {
		return fmt.Errorf("vcsim: build the inventory: %w", err)
	}

	v.model, v.svc, v.reg = model, model.Service, model.Map()
	v.svc.Listen = &url.URL{
		Scheme: "https",
		Host:   "localhost",
		User:   url.UserPassword(v.opts.Username, v.opts.Password),
	}

	v.svc.RegisterSDK(v.reg)

	v.installServiceInstance()
	v.installAuthorizationManager()
	v.installGuestCustomizationManager()
	v.installGuestFileManager()
	v.installTaskManager()
	v.reg.Put(newPropertyCollector(v))

	if err := v.makeVMs(); err != nil {
		v.model.Remove()
		return err
	}

	return nil
}

// panicWriter passes on only what a server says of a panic of ours, which may leave an object of vcsim locked for good;
// handshakes are broken on purpose by tests.
type panicWriter struct{ io.Writer }

func (p panicWriter) Write(line []byte) (int, error) {
	if bytes.HasPrefix(line, []byte("http: panic serving")) {
		return p.Writer.Write(line)
	}
	return len(line), nil
}

// Close ends everything at once: connections, calls in flight (WaitForUpdatesEx too), tasks and guests. It returns when
// all of them have ended.
func (v *VCenter) Close() {
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return
	}

	v.closed = true
	close(v.done)
	if v.releasePort != nil {
		v.releasePort()
		v.releasePort = nil
	}

	v.mu.Unlock()
	_ = v.srv.Close()
	v.CutConnections()
	v.wg.Wait()
	v.model.Remove()
}

// URL is https://host:port, without a path.
func (v *VCenter) URL() string { return "https://" + v.addr.String() }

// CAPEM is the certificate of the authority that signed the server's.
func (v *VCenter) CAPEM() []byte { return v.cert.caPEM }

// Thumbprint is the SHA-256 of the server's certificate in hexadecimal digits, without colons.
func (v *VCenter) Thumbprint() string { return v.cert.thumbprint }

// Username is the one that may log in.
func (v *VCenter) Username() string { return v.opts.Username }

// Password is the Username's.
func (v *VCenter) Password() string { return v.opts.Password }

// Now is vCenter's clock.
func (v *VCenter) Now() time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return time.Now().Add(v.opts.ClockOffset + v.skew).UTC()
}

// GuestNow is the clock of every guest.
func (v *VCenter) GuestNow() time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return time.Now().Add(v.opts.GuestClockOffset + v.skew).UTC()
}

// Advance lets vCenter's and the guests' clocks jump forward by d: exit records of processes expire, finished tasks
// leave recentTask. What is running goes on at its own pace, but for guest processes, which are older by d.
func (v *VCenter) Advance(d time.Duration) {
	v.mu.Lock()
	v.skew += d
	v.mu.Unlock()
	v.tasks.expireRecent()
}

// ExpireSessions ends all sessions at once, of VI JSON, SOAP and REST. Waits in flight answer NotAuthenticated.
func (v *VCenter) ExpireSessions() {
	v.sessions.clear()
	ctx := v.newContext()
	ctx.Session = v.svc.Context.Session
	m := v.reg.SessionManager()
	all, ok := ctx.Session.Get(m.Self).(*simulator.SessionManager)
	if !ok {
		return
	}

	for _, s := range all.SessionList {
		m.TerminateSession(ctx, &types.TerminateSession{This: m.Self, SessionId: []string{s.Key}})
	}

	v.changes.note(m.Self) // wakes the waits, which then look for their session
}

// ForgetTasks empties recentTask everywhere and forgets every Task object, as a restart of vCenter does: reading one by
// its ID answers ManagedObjectNotFound. What a guest is doing goes on. The history stays.
func (v *VCenter) ForgetTasks() { v.tasks.forgetTasks() }

// ForgetHistory empties the task history.
func (v *VCenter) ForgetHistory() { v.tasks.forgetHistory() }

// newContext is a context for calls into vcsim. Each goroutine needs one of its own: vcsim's locks belong to a context.
func (v *VCenter) newContext() *simulator.Context {
	return &simulator.Context{Context: context.Background(), Map: v.reg}
}

// startWork counts in a request or a guest at work, so that Close waits for v.wg.Done; after Close it is false.
func (v *VCenter) startWork() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return false
	}
	v.wg.Add(1)
	return true
}

// spawn runs f in a goroutine that Close waits for. f must end when v.done is closed.
func (v *VCenter) spawn(f func()) {
	if !v.startWork() {
		return
	}
	go func() {
		defer v.wg.Done()
		f()
	}()
}

// closing reports whether Close was called.
func (v *VCenter) closing() bool {
	select {
	case <-v.done:
		return true
	default:
		return false
	}
}

// pause waits for d, or until Close: then it is false.
func (v *VCenter) pause(d time.Duration) bool {
	if d <= 0 {
		return true
	}

	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-v.done:
		return false
	}
}

func (v *VCenter) newServer() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // a cut connection is one call then, not all that share it
	return &http.Server{
		Handler:           http.HandlerFunc(v.serveHTTP),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{v.cert.pair}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          log.New(panicWriter{os.Stderr}, "", 0),
		Protocols:         protocols,
		ConnState: func(c net.Conn, s http.ConnState) {
			v.mu.Lock()
			defer v.mu.Unlock()

			switch s {
			case http.StateNew:
				v.conns[c] = struct{}{}
			case http.StateClosed, http.StateHijacked:
				delete(v.conns, c)
			case http.StateActive, http.StateIdle:
			}
		},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
}

// connKey finds a request's connection in its context.
type connKey struct{}

func (v *VCenter) serve(lis net.Listener) {
	v.mu.Lock()
	v.lis = lis
	v.mu.Unlock()
	v.spawn(func() {
		// Ends with an error when the listener or the server is closed, which is how both end.
		_ = v.srv.ServeTLS(lis, "", "")
	})
}

// Stop refuses connections, after cutting those that are open, until Resume. Guests and tasks go on.
func (v *VCenter) Stop() {
	v.mu.Lock()
	if v.lis != nil {
		_ = v.lis.Close()
		v.lis = nil
		v.releasePort = reservePort(v.addr)
	}
	v.mu.Unlock()
	v.CutConnections()
}

// Resume listens again, at the same port. It panics where another program took the port in the meantime.
func (v *VCenter) Resume() {
	v.mu.Lock()
	if v.lis != nil || v.closed {
		v.mu.Unlock()
		return
	}

	if v.releasePort != nil {
		v.releasePort()
		v.releasePort = nil
	}

	v.mu.Unlock()
	lis, err := net.Listen("tcp", v.addr.String())
	if err != nil {
		panic(fmt.Sprintf("vcsim: listen again at %s: %v", v.addr, err))
	}

	v.serve(lis)
}

// CutConnections resets every open TCP connection. Calls in flight go on and take effect; their answers are lost.
func (v *VCenter) CutConnections() {
	v.mu.Lock()
	open := make([]net.Conn, 0, len(v.conns))
	for c := range v.conns {
		open = append(open, c)
	}

	v.mu.Unlock()
	for _, c := range open {
		reset(c)
	}
}

// reset closes a connection without a word: neither a TLS alert nor a TCP FIN, but a RST.
func reset(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// randomHex is n random hexadecimal digits.
func randomHex(n int) string {
	b := make([]byte, (n+1)/2)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)[:n]
}

// serviceInstance is vcsim's with vCenter's own clock.
type serviceInstance struct {
	*simulator.ServiceInstance
	now func() time.Time
}

// CurrentTime is vCenter's clock.
func (s *serviceInstance) CurrentTime(*types.CurrentTime) soap.HasFault {
	return &methods.CurrentTimeBody{Res: &types.CurrentTimeResponse{Returnval: s.now()}}
}

func (v *VCenter) installServiceInstance() {
	si := v.reg.Get(vim25.ServiceInstance).(*simulator.ServiceInstance)
	gcm := guestCustomizationManagerRef
	si.Content.GuestCustomizationManager = &gcm
	v.content = si.Content
	v.reg.Put(&serviceInstance{ServiceInstance: si, now: v.Now})
}
