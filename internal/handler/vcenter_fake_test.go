package handler

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/guestflow/guestflow/internal/vcapi"
)

// latency is what every call of vCenter and of the journal takes, so that each has a time of its own.
const latency = time.Millisecond

// fakeVC is a vCenter in memory. It behaves as the real one does where the handler could notice: Tasks with durations,
// shown late and forgotten after ten minutes, guest processes with exit codes that are kept for five, sessions, a clock
// of its own.
type fakeVC struct {
	apiVersion  string
	offset      time.Duration // of its clock against ours
	guestOffset time.Duration // of the guests' clocks
	lag         time.Duration // V: how long what a call made is not shown
	lacks       []string      // privileges that the service does not have
	history     bool          // the task history can be read
	forever     []string      // Tasks of other VMs that the history reaches back to
	connects    time.Duration // what the connection of NICs takes
	aborts      time.Duration // what an abort takes
	watchLag    time.Duration // how long the long poll does not show a new Task
	instance    string        // its instance UUID
	stored      string        // which spec stands under every name now, where it was changed
	naming      func(method string) (name, description string)
	// rest and push are the precisions in which the guest's times come, by REST and by the long poll.
	rest, push func(time.Time) time.Time

	mu       sync.Mutex
	vms      map[string]*fakeVM
	tasks    []*fakeTask
	sessions map[string]bool
	lastID   int
	refusing bool  // refuses connections
	silent   bool  // takes calls and answers none
	page     bool  // a proxy answers every call with a page of its own, 503
	noReads  bool  // the same for reads alone: the long poll and the calls to the guest go through
	noPoll   bool  // the long poll alone is not answered
	pollErr  error // why the long poll alone is down
	refused  bool  // the service's own login is refused
	mute     bool  // the long poll waits in silence, and nobody has noticed yet
	restart  time.Time
	rules    []*rule
	effects  []fakeEffect
	changed  chan struct{} // closed at each change
	onEffect func(fakeEffect)
}

// fakeEffect is something that a call changed.
type fakeEffect struct {
	vm, act string // act: customize, network, abort, process <marker>
	at      time.Time
}

// rule is what the next calls of an operation meet.
type rule struct {
	op    string
	times int           // how many calls, 0: all
	err   *vcapi.Error  // refused with it
	delay time.Duration // how long the call travels before it lands
	lost  string        // "answer": it lands, the answer never comes; "call": it never lands
	task  *vcapi.Error  // the Task that it makes ends with it
	idle  bool          // that Task does nothing to the guest
	goes  bool          // the guest goes on and shows the spec, although that Task ends with an error
	hang  bool          // no answer comes
	fn    func()        // runs when the call lands
}

// changes reports whether the Task does something to the guest, however it ends: only one that was turned away by
// another Task surely does not.
func (r rule) changes() bool { return !r.idle && (r.task == nil || r.task.Name != "TaskInProgress") }

type fakeVM struct {
	id         string
	power      string
	tools      bool
	gone       bool
	password   string
	check      vcapi.Check
	guest      *vcapi.GuestCustomization // its own word
	moves      bool                      // a customization moves that word
	quiet      bool                      // its Tasks tell no progress
	lies       string                    // the word at the end, where it is another than the Task's
	log        string                    // of the customization engine
	saying     string                    // and its reason
	outlasts   time.Duration             // how much longer than its Task the guest takes
	hostName   string                    // what it shows
	nics       []vcapi.NIC               // what it shows
	cards      []vcapi.Card              // its hardware, in PCI slot order
	ignores    bool                      // a customization changes nothing of that
	faulty     int                       // how many of its next customizations end with the general fault
	customize  time.Duration
	network    time.Duration
	programs   map[string]program
	procs      []*fakeProc
	toolsPID   int64
	toolsSince time.Time
	uuid       string
	windows    bool // it is a Windows guest: no shell, and no pid 1
}

type program struct {
	takes time.Duration
	exit  int64
}

type fakeTask struct {
	id, name, vm string
	queued       time.Time // ours
	stamp        time.Time // vCenter's then
	takes        time.Duration
	err          *vcapi.Error
	canceled     time.Time
	aside        bool // no other Task minds it
}

type fakeProc struct {
	pid     int64
	name    string
	command string
	started time.Time
	program program
	killed  bool
}

func newFakeVC() *fakeVC {
	return &fakeVC{apiVersion: "9.0.0.0", history: true, connects: time.Second, aborts: 2 * time.Second,
		instance: "uuid-1",
		naming:   func(method string) (string, string) { return method, "" }, rest: cut(time.Millisecond),
		push: cut(time.Microsecond), forever: []string{"task-1"}, vms: map[string]*fakeVM{},
		sessions: map[string]bool{},
		lastID:   100, changed: make(chan struct{}), onEffect: func(fakeEffect) {}}
}

func cut(d time.Duration) func(time.Time) time.Time {
	return func(t time.Time) time.Time { return t.Truncate(d) }
}

func rounded(d time.Duration) func(time.Time) time.Time {
	return func(t time.Time) time.Time { return t.Round(d) }
}

// told is a guest's word with its times as a channel writes them.
func told(g vcapi.GuestCustomization, as func(time.Time) time.Time) vcapi.GuestCustomization {
	for _, t := range []**time.Time{&g.StartTime, &g.EndTime} {
		if *t != nil {
			at := as(**t)
			*t = &at
		}
	}

	return g
}

func (v *fakeVC) addVM(id string) *fakeVM {
	yes := true
	vm := &fakeVM{id: id, power: "poweredOn", tools: true, password: "guest-secret", moves: true, hostName: "template",
		uuid:      "5012",
		check:     vcapi.Check{Status: "SUPPORTED", SupportedGuestOS: &yes, SupportedPowerState: &yes},
		cards:     twoCards()[:1],
		customize: time.Minute, network: 10 * time.Second, toolsPID: 700, toolsSince: time.Now().Add(-time.Hour),
		programs: map[string]program{"/usr/bin/first": {takes: 3 * time.Second},
			"/usr/bin/second": {takes: 4 * time.Second}}}
	v.vms[id] = vm
	return vm
}

// twoCards are the NICs of a VM with two.
func twoCards() []vcapi.Card {
	return []vcapi.Card{{Key: 4000, MAC: "00:50:56:00:00:01", Slot: 160, Connected: true},
		{Key: 4001, MAC: "00:50:56:00:00:02", Slot: 192, Connected: true}}
}

// change runs fn and tells those who watch.
func (v *fakeVC) change(fn func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.changeLocked(fn)
}

func (v *fakeVC) changeLocked(fn func()) {
	fn()
	close(v.changed)
	v.changed = make(chan struct{})
}

func (v *fakeVC) on(r rule) { v.change(func() { v.rules = append(v.rules, &r) }) }

// rule takes the next rule for op.
func (v *fakeVC) rule(op string) rule {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i, r := range v.rules {
		if r.op == op {
			if r.times--; r.times == 0 {
				v.rules = append(v.rules[:i:i], v.rules[i+1:]...)
			}
			return *r
		}
	}

	return rule{}
}

func (v *fakeVC) expireSessions() { v.change(func() { v.sessions = map[string]bool{} }) }

// restartNow forgets what vCenter holds in memory only.
func (v *fakeVC) restartNow() {
	v.change(func() { v.sessions, v.restart = map[string]bool{}, time.Now() })
}

// restartGuest forgets the guest's processes.
func (v *fakeVC) restartGuest(vm *fakeVM) {
	v.change(func() { vm.procs, vm.toolsPID, vm.toolsSince = nil, vm.toolsPID+1000, time.Now() })
}

func (v *fakeVC) count(vm, act string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := 0
	for _, e := range v.effects {
		if e.vm == vm && e.act == act {
			n++
		}
	}
	return n
}

func vcError(name string, status int, class vcapi.Class) *vcapi.Error {
	return &vcapi.Error{Host: "vc", Status: status, Name: name, Message: "words of vCenter about " + name, Class: class,
		Sent: vcapi.Refused}
}

// generalFault is how a customization's Task ends when the guest's engine tells no reason.
func generalFault() *vcapi.Error {
	return &vcapi.Error{Name: "CustomizationFault", Message: "words of vCenter about CustomizationFault",
		Class: vcapi.Permanent, Sent: vcapi.Answered}
}

// opNames are vcapi's names of the calls that vCenter passes on to the guest.
var opNames = map[string]string{"Process": "guest/processes get", "Processes": "guest/processes list",
	"StartProcess":  "guest/processes create",
	"DeleteProcess": "guest/processes delete", "CustomizationStatus": "GET guest/customization",
	"CheckCustomization": "guest/customization check", "GuestFile": "InitiateFileTransferFromGuest",
	"CustomizeGuest":    "CustomizeGuest_Task",
	"StartGuestNetwork": "StartGuestNetwork_Task", "AbortCustomization": "AbortCustomization_Task"}

var actNames = map[string]bool{"StartProcess": true, "DeleteProcess": true, "CustomizeGuest": true,
	"StartGuestNetwork": true, "AbortCustomization": true,
	"ConnectNICs": true, "CancelTask": true}

// inProcess reports whether a call is one about a guest's processes or files.
func inProcess(op string) bool { return strings.Contains(op, "Process") || op == "GuestFile" }

// about names the call that an error of vCenter is about, as vcapi does.
func about(op string, err error) error {
	var v *vcapi.Error
	if !errors.As(err, &v) || v.Op != "" {
		return err
	}
	named := *v
	named.Op, named.Guest = cmp.Or(opNames[op], op), inProcess(op)
	return &named
}

var errNoAnswer = errors.New("connection reset by peer")

// noAnswer is an act whose answer never came.
func noAnswer(op string) *vcapi.Error {
	return &vcapi.Error{Op: cmp.Or(opNames[op], op), Guest: inProcess(op), Host: "vc", Message: errNoAnswer.Error(),
		Class: vcapi.Transient, Sent: vcapi.Unknown, Err: errNoAnswer}
}

// silence is a call that is taken and not answered. An act's own connection is not even made, so that nothing of it is
// under way.
func silence(ctx context.Context, op string) *vcapi.Error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("no answer within 30s")) // as vcapi has it
	defer cancel()
	<-ctx.Done()
	e := notSent(op, context.Cause(ctx))
	if _, act := actNames[op]; !act {
		e.Sent = vcapi.Unknown
	}
	return e
}

func notSent(op string, err error) *vcapi.Error {
	return &vcapi.Error{Op: cmp.Or(opNames[op], op), Guest: inProcess(op), Host: "vc", Message: err.Error(),
		Class: vcapi.Transient, Sent: vcapi.NotSent, Err: err}
}

// client is vCenter as one owner sees it.
type client struct {
	*fakeVC
	o *replica

	mu      sync.Mutex
	session string
}

func (c *client) now() time.Time { return time.Now().Add(c.offset) }

func spend(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// reach is the way of every ask: that of every call, with a login where there is no session.
func (c *client) reach(ctx context.Context, op string) error {
	if err := c.dial(ctx, op); err != nil {
		return err
	}
	c.fakeVC.mu.Lock()
	defer c.fakeVC.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.sessions[c.session] {
		c.login()
	}
	return nil
}

func (c *client) login() {
	c.lastID++
	c.session = fmt.Sprintf("session-%d", c.lastID)
	c.sessions[c.session] = true
}

// dial is the way of every call: the owner's incident, a round trip, vCenter's mood.
func (c *client) dial(ctx context.Context, op string) error {
	if err := c.o.at(op); err != nil {
		return notSent(op, err)
	}
	if err := spend(ctx, latency); err != nil {
		return notSent(op, err)
	}
	if r := c.rule(op); r.op != "" {
		if r.fn != nil {
			r.fn()
		}
		if r.err != nil {
			return about(op, r.err)
		}
		if r.hang {
			return silence(ctx, op)
		}
	}

	c.fakeVC.mu.Lock()
	refusing, silent, page, refused := c.refusing, c.silent, c.page ||
		c.noReads && !inProcess(op) && !actNames[op], c.refused
	c.fakeVC.mu.Unlock()
	if page {
		e := &vcapi.Error{Op: cmp.Or(opNames[op], op), Guest: inProcess(op), Host: "vc", Status: 503,
			Class: vcapi.Transient, Message: "Service Unavailable", Foreign: true}
		if actNames[op] { // it may be tried again: the proxy let nothing through
			e.Sent = vcapi.NotSent
		}
		return e
	}

	if refused {
		return &vcapi.Error{Op: "Login", Host: "vc", Status: 500, Name: "InvalidLogin", Class: vcapi.SessionLost,
			Sent: vcapi.NotSent, Message: "Cannot complete login"}
	}
	if silent {
		return silence(ctx, op)
	}
	if refusing {
		return notSent(op, errors.New("connection refused"))
	}
	return nil
}

// seen is what is there of a VM.
func (c *client) seen(vm string) (*fakeVM, error) {
	m := c.vms[vm]
	if m == nil || m.gone {
		return nil, vcError("ManagedObjectNotFound", 500, vcapi.Permanent)
	}
	return m, nil
}

// Hide counts what the owner hides and has not let go of.
func (c *client) Hide(secrets ...string) (forget func()) {
	c.o.hides.Add(int32(len(secrets)))
	return sync.OnceFunc(func() { c.o.hides.Add(-int32(len(secrets))) })
}

func (c *client) About(ctx context.Context) (vcapi.About, error) {
	return vcapi.About{Name: "fake", APIVersion: c.apiVersion, InstanceUUID: c.instance}, c.reach(ctx, "About")
}

func (c *client) Now(ctx context.Context) (time.Time, error) {
	err := c.reach(ctx, "Now")
	return c.now(), err
}

func (c *client) VM(ctx context.Context, vm string) (vcapi.VM, error) {
	if err := c.reach(ctx, "VM"); err != nil {
		return vcapi.VM{}, err
	}
	c.fakeVC.mu.Lock()
	defer c.fakeVC.mu.Unlock()
	m, err := c.seen(vm)
	if err != nil {
		return vcapi.VM{}, err
	}
	shown := c.view(m)
	shown.Cards = slices.Clone(m.cards) // which the long poll does not carry
	return shown, nil
}

func (v *fakeVC) view(m *fakeVM) vcapi.VM {
	vm := vcapi.VM{Name: "web-1", InstanceUUID: m.uuid, PowerState: m.power, ToolsRunningStatus: "guestToolsNotRunning",
		GuestFamily: "linuxGuest"}
	if m.windows {
		vm.GuestFamily = "windowsGuest"
	}
	ready := m.tools && m.power == "poweredOn"
	vm.GuestOperationsReady = &ready
	if ready {
		vm.ToolsRunningStatus = "guestToolsRunning"
	}
	if m.guest != nil {
		g := told(*m.guest, v.push)
		vm.Customization = &g
	}
	vm.HostName, vm.NICs = m.hostName, slices.Clone(m.nics)
	return vm
}

func (c *client) MissingPrivileges(ctx context.Context, vm string, wanted []string) ([]string, error) {
	if err := c.reach(ctx, "MissingPrivileges"); err != nil {
		return nil, err
	}
	c.fakeVC.mu.Lock()
	defer c.fakeVC.mu.Unlock()
	_, err := c.seen(vm)
	return slices.DeleteFunc(slices.Clone(wanted), func(p string) bool { return !slices.Contains(c.lacks, p) }), err
}

func (c *client) CheckCustomization(ctx context.Context, vm string) (vcapi.Check, error) {
	if err := c.reach(ctx, "CheckCustomization"); err != nil {
		return vcapi.Check{}, err
	}
	c.fakeVC.mu.Lock()
	defer c.fakeVC.mu.Unlock()
	m, err := c.seen(vm)
	if err != nil {
		return vcapi.Check{}, err
	}
	return m.check, nil
}

func (c *client) CustomizationStatus(ctx context.Context, vm string) (vcapi.GuestCustomization, error) {
	if err := c.reach(ctx, "CustomizationStatus"); err != nil {
		return vcapi.GuestCustomization{}, err
	}
	c.fakeVC.mu.Lock()
	defer c.fakeVC.mu.Unlock()
	m, err := c.seen(vm)
	if err != nil {
		return vcapi.GuestCustomization{}, err
	}
	if m.guest == nil {
		return vcapi.GuestCustomization{Status: "IDLE"}, nil
	}
	return told(*m.guest, c.rest), nil
}

// end is when a Task ends, by our clock.
func (t *fakeTask) end() time.Time {
	if !t.canceled.IsZero() {
		return t.canceled
	}
	return t.queued.Add(t.takes)
}

func (c *client) info(t *fakeTask) vcapi.Task {
	now := time.Now()
	if t.stamp.IsZero() {
		t.stamp = t.queued.Add(c.offset)
	}
	i := vcapi.Task{ID: t.id, Entity: t.vm, State: "running", QueueTime: t.stamp}
	i.Name, i.DescriptionID = c.naming(t.name)
	p := 100
	if now.Before(t.end()) {
		p = int(4*now.Sub(t.queued)/max(t.takes, 1)) * 25
		if !c.vms[t.vm].quiet {
			i.Progress = &p
		}
		return i
	}

	end := t.end().Add(c.offset)
	i.CompleteTime = &end
	switch {
	case !t.canceled.IsZero():
		i.State, i.Err = "error", &vcapi.Error{Name: "RequestCanceled", Message: "canceled", Sent: vcapi.Answered}
	case t.err != nil:
		i.State, i.Err = "error", t.err
	default:
		i.State, i.Progress = "success", &p
	}

	return i
}

// recent reports whether recentTask still has t.
func (c *client) recent(t *fakeTask) bool {
	return t.queued.After(c.restart) && time.Since(t.end()) < recentReach
}

func (c *client) Tasks(ctx context.Context, vm string, since time.Time) ([]vcapi.Task, bool, error) {
	if err := c.reach(ctx, "Tasks"); err != nil {
		return nil, false, err
	}
	c.fakeVC.mu.Lock()
	defer c.fakeVC.mu.Unlock()
	if _, err := c.seen(vm); err != nil {
		return nil, false, err
	}
	var shown []vcapi.Task
	for _, t := range c.tasks {
		if t.vm != vm || time.Since(t.queued) < c.lag {
			continue
		}
		if i := c.info(t); c.recent(t) || c.history && !i.QueueTime.Before(since) {
			shown = append(shown, i)
		}
	}

	return shown, c.history, nil
}

func (c *client) Task(ctx context.Context, id string) (vcapi.Task, error) {
	if err := c.reach(ctx, "Task"); err != nil {
		return vcapi.Task{}, err
	}
	c.fakeVC.mu.Lock()
	defer c.fakeVC.mu.Unlock()
	for _, t := range c.tasks {
		if t.id == id && c.recent(t) {
			return c.info(t), nil
		}
	}
	return vcapi.Task{}, vcError("ManagedObjectNotFound", 500, vcapi.Permanent)
}

func (c *client) AnyTaskBefore(ctx context.Context, t time.Time) (bool, error) {
	err := c.reach(ctx, "AnyTaskBefore")
	return err == nil && c.history && len(c.forever) > 0, err
}

func (c *client) Session(ctx context.Context) (vcapi.Session, error) {
	if err := c.reach(ctx, "Session"); err != nil {
		return vcapi.Session{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return vcapi.Session{Key: c.session, UserName: "svc"}, nil
}

func (c *client) SessionAlive(ctx context.Context, s vcapi.Session) (bool, error) {
	err := c.reach(ctx, "SessionAlive")
	c.fakeVC.mu.Lock()
	defer c.fakeVC.mu.Unlock()
	return c.sessions[s.Key], err
}

// guest is what every guest operation meets.
func (c *client) guest(vm string, auth vcapi.GuestAuth) (*fakeVM, error) {
	m, err := c.seen(vm)
	switch {
	case err != nil:
		return nil, err
	case m.power != "poweredOn":
		return nil, vcError("NOT_ALLOWED_IN_CURRENT_STATE", 400, vcapi.Permanent)
	case !m.tools:
		return nil, vcError("SERVICE_UNAVAILABLE", 503, vcapi.Transient)
	case auth.Password != m.password:
		return nil, vcError("UNAUTHENTICATED", 401, vcapi.GuestCredentials)
	}

	return m, nil
}

// exitKept is how long a guest's tools know an ended process.
const exitKept = 5 * time.Minute

func (p *fakeProc) end() time.Time { return p.started.Add(p.program.takes) }

func (p *fakeProc) known() bool { return time.Since(p.end()) < exitKept }

func (c *client) process(p *fakeProc) vcapi.Process {
	return vcapi.Process{PID: p.pid, Name: cmp.Or(p.name, "bash"), Owner: "root", Command: p.command,
		Started: p.started.Add(c.guestOffset)}
}

func (c *client) Processes(ctx context.Context, vm string, auth vcapi.GuestAuth) ([]vcapi.Process, error) {
	if err := c.reach(ctx, "Processes"); err != nil {
		return nil, err
	}
	c.fakeVC.mu.Lock()
	defer c.fakeVC.mu.Unlock()
	m, err := c.guest(vm, auth)
	if err != nil {
		return nil, about("Processes", err)
	}
	list := []vcapi.Process{{PID: 1, Name: "systemd", Started: m.toolsSince},
		{PID: m.toolsPID, Name: "vmtoolsd", Started: m.toolsSince}}
	if m.windows {
		list = []vcapi.Process{{PID: 4, Name: "System", Started: m.toolsSince},
			{PID: m.toolsPID, Name: "vmtoolsd.exe", Started: m.toolsSince}}
	}
	for _, p := range m.procs {
		if p.known() && time.Since(p.started) >= c.lag {
			list = append(list, c.process(p))
		}
	}
	return list, nil
}

func (c *client) Process(ctx context.Context, vm string, auth vcapi.GuestAuth, pid int64) (vcapi.Process, error) {
	if err := c.reach(ctx, "Process"); err != nil {
		return vcapi.Process{}, err
	}
	c.fakeVC.mu.Lock()
	defer c.fakeVC.mu.Unlock()
	m, err := c.guest(vm, auth)
	if err != nil {
		return vcapi.Process{}, about("Process", err)
	}
	for _, p := range m.procs {
		if p.pid != pid || !p.known() {
			continue
		}
		i := c.process(p)
		if end := p.end().Add(c.guestOffset); !time.Now().Before(p.end()) {
			code := p.program.exit
			i.Finished, i.ExitCode = &end, &code
		}
		return i, nil
	}

	return vcapi.Process{}, vcError("NOT_FOUND", 404, vcapi.Permanent)
}

// Watch shows each change at once, as the one long poll does.
func (c *client) Watch(ctx context.Context, vm, task string, fn func(vcapi.WatchState) bool) error {
	if err := c.o.at("Watch"); err != nil {
		return err
	}
	var before string
	for {
		c.fakeVC.mu.Lock()
		changed, next := c.changed, time.Hour
		w := vcapi.WatchState{Err: c.pollErr, Down: (c.refusing || c.silent || c.page || c.noPoll || c.refused ||
			c.pollErr != nil) && !c.mute}
		if c.mute { // nothing is heard
			c.fakeVC.mu.Unlock()
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}

		if m, err := c.seen(vm); err != nil {
			w.VMGone = true
		} else {
			w.VM = c.view(m)
		}
		if task != "" {
			w.TaskGone = true
		}
		for _, t := range c.tasks {
			if t.id == task && c.recent(t) && time.Since(t.queued) >= c.watchLag {
				i := c.info(t)
				w.Task, w.TaskGone = &i, false
				if i.CompleteTime == nil {
					quarter := max(t.takes/4, 1)
					next = quarter - time.Since(t.queued)%quarter
				}
			}
		}

		for _, t := range c.tasks {
			if left := c.watchLag - time.Since(t.queued); t.id == task && left > 0 {
				next = left
			}
		}
		c.fakeVC.mu.Unlock()
		state, _ := json.Marshal(w) //nolint:errchkjson // plain data
		if s := string(state); s != before && c.o.alive() {
			before = s
			if fn(w) {
				return nil
			}
		}

		select {
		case <-changed:
		case <-time.After(next):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// call is the way of every call that changes the guest: dial, gate, travel, land, answer. Each is a point at which the
// owner may die.
func call[T any](ctx context.Context, c *client, fence vcapi.Fence, op string, land func(r rule) (T, error)) (T,
	error) {
	var none T
	if err := c.dial(ctx, op); err != nil {
		return none, err
	}
	c.fakeVC.mu.Lock()
	c.mu.Lock()
	if c.session == "" { // it logs in before it dials; where its session has expired meanwhile it is told so
		c.login()
	}
	c.mu.Unlock()
	c.fakeVC.mu.Unlock()
	r := c.rule(op + " sent")
	if err := fence(ctx); err != nil {
		return none, notSent(op, err)
	}
	c.mu.Lock()
	session := c.session
	c.mu.Unlock()
	lost := func() { // the next call logs in
		c.mu.Lock()
		defer c.mu.Unlock()
		c.session = ""
	}
	type answer struct {
		v   T
		err error
	}
	landed := func() answer {
		if r.fn != nil {
			r.fn()
		}
		if r.err != nil {
			return answer{err: r.err}
		}
		c.fakeVC.mu.Lock()
		defer c.fakeVC.mu.Unlock()
		if !c.sessions[session] {
			lost()
			return answer{err: vcError("NotAuthenticated", 500, vcapi.SessionLost)}
		}
		v, err := land(r)
		return answer{v, err}
	}

	f := c.o.reached(op + " sent")
	if f.do == "late" { // the owner dies, its call travels on
		c.o.w.later(f.after, func() { landed() })
	}
	if c.o.meet(f) != nil {
		return none, noAnswer(op)
	}
	if r.lost == "call" {
		return none, noAnswer(op)
	}
	way := make(chan answer, 1)
	if r.delay > 0 {
		c.o.w.later(r.delay, func() { way <- landed() })
	} else {
		way <- landed()
	}
	if r.lost == "answer" {
		return none, noAnswer(op)
	}
	select {
	case a := <-way:
		if err := c.o.at(op + " landed"); err != nil {
			return none, noAnswer(op)
		}
		return a.v, about(op, a.err)
	case <-ctx.Done():
		return none, noAnswer(op)
	}
}

func (c *client) effect(vm, act string) {
	e := fakeEffect{vm: vm, act: act, at: time.Now()}
	c.effects = append(c.effects, e)
	c.onEffect(e)
}

func (c *client) makeTask(vm, method string, takes time.Duration, r rule) string {
	c.lastID++
	t := &fakeTask{id: fmt.Sprintf("task-%d", c.lastID), name: method, vm: vm, queued: time.Now(), stamp: c.now(),
		takes: takes, err: r.task}
	c.changeLocked(func() { c.tasks = append(c.tasks, t) })
	return t.id
}

// guestTask is what a method of the guest customization manager meets.
func (c *client) guestTask(vm string, auth vcapi.GuestAuth) (*fakeVM, error) {
	m, err := c.seen(vm)
	switch {
	case err != nil:
		return nil, err
	case m.power != "poweredOn":
		return nil, vcError("InvalidPowerState", 500, vcapi.Permanent)
	case !m.tools:
		return nil, vcError("InvalidState", 500, vcapi.Transient)
	case auth.Password != m.password:
		return nil, vcError("InvalidGuestLogin", 500, vcapi.GuestCredentials)
	}

	for _, t := range c.tasks {
		if t.vm == vm && !t.aside && time.Now().Before(t.end()) {
			return nil, vcError("TaskInProgress", 500, vcapi.Transient)
		}
	}
	return m, nil
}

// show makes a guest show what a spec fixes, its NICs not yet connected. It reads the spec on its own: a fake that used
// the handler's reading would share its mistakes.
func (m *fakeVM) show(spec json.RawMessage) {
	var s struct {
		Identity struct {
			HostName, UserData struct{ Name, Base string }
		}
		NICSettingMap []struct {
			MACAddress string
			Adapter    struct {
				IP       struct{ IPAddress string }
				IPv6Spec struct{ IP []struct{ IPAddress string } }
			}
		}
	}

	if err := json.Unmarshal(spec, &s); err != nil {
		panic(err) // specs of tests
	}
	m.hostName, m.nics = cmp.Or(s.Identity.HostName.Name, m.hostName), nil
	for i, n := range s.NICSettingMap {
		nic := vcapi.NIC{MAC: n.MACAddress, Device: m.cards[i].Key}
		if nic.MAC == "" {
			nic.MAC = m.cards[i].MAC
		}
		for _, a := range append(n.Adapter.IPv6Spec.IP, n.Adapter.IP) {
			if a.IPAddress != "" {
				nic.Addresses = append(nic.Addresses, a.IPAddress)
				nic.IPConfig = append(nic.IPConfig, vcapi.Address{IP: a.IPAddress, Prefix: 24, State: "preferred"})
			}
		}

		m.nics = append(m.nics, nic)
	}
}

func (c *client) CustomizeGuest(ctx context.Context, fence vcapi.Fence, vm string, auth vcapi.GuestAuth, spec,
	_ json.RawMessage) (task string, err error) {
	return call(ctx, c, fence, "CustomizeGuest", func(r rule) (string, error) {
		m, err := c.guestTask(vm, auth)
		if err != nil {
			return "", err
		}
		if m.faulty > 0 {
			m.faulty--
			r.task = generalFault()
		}
		if r.changes() {
			c.effect(vm, "customize")
		}
		if m.moves && (r.task == nil || r.goes) {
			started := time.Now()
			m.guest = &vcapi.GuestCustomization{Status: "RUNNING", StartTime: &started}
			c.o.w.later(m.customize+m.outlasts, func() {
				c.change(func() {
					end := time.Now()
					m.guest = &vcapi.GuestCustomization{Status: "SUCCEEDED", StartTime: &started, EndTime: &end}
					if m.lies != "" {
						m.guest.Status, m.guest.Error = m.lies, cmp.Or(m.saying, "the guest's words")
					}
				})
			})
		}

		if (r.task == nil || r.goes) && !m.ignores {
			c.o.w.later(m.customize+m.outlasts, func() { c.change(func() { m.show(spec) }) })
		}
		return c.makeTask(vm, "CustomizeGuest_Task", m.customize, r), nil
	})
}

func (c *client) StartGuestNetwork(ctx context.Context, fence vcapi.Fence, vm string,
	auth vcapi.GuestAuth) (task string,
	err error) {
	return call(ctx, c, fence, "StartGuestNetwork", func(r rule) (string, error) {
		m, err := c.guestTask(vm, auth)
		if err != nil {
			return "", err
		}
		if r.changes() {
			c.effect(vm, "network")
		}
		if r.task == nil && len(m.nics) > 0 {
			c.o.w.later(m.network, func() { c.change(m.connect) })
		}
		return c.makeTask(vm, "StartGuestNetwork_Task", m.network, r), nil
	})
}

// connect connects the guest's NICs.
func (m *fakeVM) connect() {
	for i := range m.nics {
		m.nics[i].Connected = true
	}
}

func (c *client) AbortCustomization(ctx context.Context, fence vcapi.Fence, vm string, _ vcapi.GuestAuth) (task string,
	err error) {
	return call(ctx, c, fence, "AbortCustomization", func(r rule) (string, error) {
		if _, err := c.seen(vm); err != nil {
			return "", err
		}
		c.effect(vm, "abort")
		for _, t := range c.tasks {
			if t.vm == vm && t.name == "CustomizeGuest_Task" && time.Now().Before(t.end()) {
				t.canceled = time.Now()
			}
		}
		return c.makeTask(vm, abortMethod, c.aborts, r), nil
	})
}

func (c *client) StartProcess(ctx context.Context, fence vcapi.Fence, vm string, auth vcapi.GuestAuth,
	p vcapi.ProcessSpec) (pid int64, err error) {
	return call(ctx, c, fence, "StartProcess", func(rule) (int64, error) {
		m, err := c.guest(vm, auth)
		if err != nil {
			return 0, err
		}
		what, ok := m.programs[p.Path]
		if !ok {
			e := vcError("NOT_FOUND", 404, vcapi.Permanent)
			e.Data = json.RawMessage(`{"reason":"FILE_NOT_FOUND"}`)
			return 0, e
		}
		c.lastID++
		made := &fakeProc{pid: int64(c.lastID), command: `"` + p.Path + `" ` + p.Arguments, started: time.Now(),
			program: what}
		name := p.Arguments[strings.LastIndex(p.Arguments, ".")+1:]
		if m.windows {
			name = p.Path[strings.LastIndex(p.Path, `\`)+1:]
			made.name = name
		}
		c.effect(vm, "process "+name)
		c.changeLocked(func() { m.procs = append(m.procs, made) })
		return made.pid, nil
	})
}

// GuestFile knows one file: the engine's log.
func (c *client) GuestFile(ctx context.Context, vm string, auth vcapi.GuestAuth, path string, most int) ([]byte,
	error) {
	if err := c.reach(ctx, "GuestFile"); err != nil {
		return nil, err
	}
	c.fakeVC.mu.Lock()
	defer c.fakeVC.mu.Unlock()
	m, err := c.guest(vm, auth)
	switch {
	case err != nil:
		return nil, err
	case path != engineLog || m.log == "":
		return nil, vcError("FileNotFound", 500, vcapi.Permanent)
	}

	return []byte(m.log[max(0, len(m.log)-most):]), nil
}

func (c *client) DeleteProcess(ctx context.Context, fence vcapi.Fence, vm string, auth vcapi.GuestAuth,
	pid int64) error {
	_, err := call(ctx, c, fence, "DeleteProcess", func(rule) (struct{}, error) {
		m, err := c.guest(vm, auth)
		if err != nil {
			return struct{}{}, err
		}
		for _, p := range m.procs {
			if p.pid == pid {
				c.effect(vm, "delete process")
				p.killed = true

				// The guest tells its end, as of every process.
				p.program.takes = min(p.program.takes, time.Since(p.started))
			}
		}

		return struct{}{}, nil
	})
	return err
}

func (c *client) CancelTask(ctx context.Context, fence vcapi.Fence, task string) error {
	_, err := call(ctx, c, fence, "CancelTask", func(rule) (struct{}, error) {
		for _, t := range c.tasks {
			if t.id == task && time.Now().Before(t.end()) {
				c.effect(t.vm, "cancel Task")
				c.changeLocked(func() { t.canceled = time.Now() })
				return struct{}{}, nil
			}
		}

		return struct{}{}, vcError("InvalidState", 500, vcapi.Transient)
	})
	return err
}
