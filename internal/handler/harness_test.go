package handler

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/events/stream/memstore"
	"github.com/guestflow/guestflow/schemas"
)

const (
	vcenter = "lab"
	vmID    = "vm-42"
	ackWait = 30 * time.Second
)

// long is longer than everything that a run may take.
const long = 3 * time.Hour

// settings of the handlers: the contract's defaults.
var settings = Settings{VCenter: vcenter, SendWindow: 5 * time.Second, TravelTime: 10 * time.Second,
	VisibilityLag: 30 * time.Second, Drain: 25 * time.Second}

// whole is a request for every step.
const whole = `{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},"customize":` + named + `,` +
	`"network":{},"processes":[{"name":"first","run":{"path":"/usr/bin/first","arguments":"-a"}},{"name":"second",` +
	`"run":{"path":"/usr/bin/second"}}]}`

// spec is a customization that asks for nothing that can be compared: vCenter's own program makes the host name.
const spec = `{"spec":{"identity":{"_typeName":"CustomizationLinuxPrep","hostName":` +
	`{"_typeName":"CustomizationCustomName"}},` + anyNIC + `}}`

// anyNIC is the settings of one adapter whose address cannot be compared either.
const anyNIC = `"nicSettingMap":[{"adapter":{"ip":{"_typeName":"CustomizationCustomIpGenerator"}}}]`

// named is a customization that gives the guest a host name and an address.
const named = `{"spec":{"identity":{"_typeName":"CustomizationLinuxPrep","hostName":` +
	`{"_typeName":"CustomizationFixedName","name":"web-7"}},` +
	`"nicSettingMap":[{"macAddress":"00:50:56:00:00:01","adapter":{"ip":{"_typeName":"CustomizationFixedIp",` +
	`"ipAddress":"10.0.0.7"}}}]}}`

// brief is a request for one step of each kind, whose guest says nothing of its progress: for tests of many histories.
const brief = `{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},"customize":` + spec +
	`,"network":{},` +
	`"processes":[{"name":"first","run":{"path":"/usr/bin/first"}}]}`

// harness is everything around the handlers: a journal, a vCenter, the requests stream, and the deliveries of it.
type harness struct {
	t        *testing.T
	settings Settings
	secrets  Secrets
	store    *memstore.Store
	journal  *memstore.Client
	vc       *fakeVC
	vm       *fakeVM
	line     *memstore.Queue
	over     chan struct{} // closed at the end of the test: what is dead may return
	owners   []*replica
	rejected []*events.RejectError
	tail     int // how many of the newest events each crash drops
	// What a dead owner held is delivered again at once, not after the ack wait.
	atOnce          bool
	noWake          bool          // no signal of the line is heard
	cancelReadDelay time.Duration // what a look for cancels takes
	// The journal was made anew: its first event is not the first of its run.
	anew        bool
	allowRepeat bool // an act may take effect again, as the request asks
	// What befalls the appends, where they are not at a incident's point.
	slow   func(n int, m stream.Message) memstore.Fault
	known  func([]stepKind) []stepKind // the steps that the handlers know, where they are others
	strict bool                        // every event is checked against its schema
}

// secretsDir makes the folder of secrets; it is made outside of the bubbles, once for all runs of a test.
func secretsDir(t *testing.T) Secrets {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "linux-root"), 0o700); err != nil {
		t.Fatal(err)
	}
	for key, v := range map[string]string{"username": "root\n", "password": "guest-secret\n"} {
		if err := os.WriteFile(filepath.Join(dir, "linux-root", key), []byte(v), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Secrets(dir)
}

// withHarness runs fn in a bubble with a harness of its own and checks, at the end, what must hold for every history,
// and every event against its schema.
func withHarness(t *testing.T, secrets Secrets, fn func(w *harness)) {
	t.Helper()
	inBubble(t, secrets, func(w *harness) {
		w.strict = true
		fn(w)
	})
}

// inBriefHarness is withHarness for histories of which there are many: with a guest that tells no progress, and without
// the schema.
func inBriefHarness(t *testing.T, secrets Secrets, fn func(w *harness)) {
	t.Helper()
	inBubble(t, secrets, func(w *harness) {
		w.vm.moves, w.vm.quiet = false, true
		fn(w)
	})
}

func inBubble(t *testing.T, secrets Secrets, fn func(w *harness)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newHarness(t, secrets)
		fn(w)
		w.finish()
		for _, problem := range w.problems() {
			t.Error(problem)
		}
		if t.Failed() {
			t.Log(w.history())
		}
	})
}

// problemsOf is what is wrong with a history that is meant to go wrong.
func problemsOf(t *testing.T, secrets Secrets, fn func(w *harness)) (found []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newHarness(t, secrets)
		fn(w)
		w.finish()
		found = w.problems()
	})

	return found
}

func newHarness(t *testing.T, secrets Secrets) *harness {
	w := &harness{t: t, settings: settings, secrets: secrets, vc: newFakeVC(), over: make(chan struct{})}
	w.replicate(1)
	w.vm = w.vc.addVM(vmID)
	return w
}

// replicate begins with an empty journal of so many replicas.
func (w *harness) replicate(n int) { w.begin(memstore.Options{Replicas: n}) }

// begin begins with an empty journal.
func (w *harness) begin(o memstore.Options) {
	w.store = memstore.New(o)
	w.journal = w.store.Client()
	w.line = w.store.Queue(vcenter, ackWait)
}

// request puts a request into the stream, as a publisher does.
func (w *harness) request(id, data string) *events.Request {
	w.t.Helper()
	req := &events.Request{VCenter: vcenter, VM: vmID, Ref: events.RequestRef{Source: "/test", ID: id}}
	req.RunID = events.RunID(vcenter, vmID, req.Ref)
	var err error
	if req.Seq, err = w.line.Publish(events.KindRequested, vmID, req.Ref, json.RawMessage(data)); err != nil {
		w.t.Fatal(err)
	}
	return req
}

// cancel puts a cancel of req into the stream.
func (w *harness) cancel(req *events.Request) {
	data := map[string]any{"vm": vmID, "request": req.Ref, "reason": "no longer needed"}
	if _, err := w.line.Publish(events.KindCancelRequested, vmID,
		events.RequestRef{Source: "/test", ID: "cancel-" + req.Ref.ID}, data); err != nil {
		w.t.Error(err)
	}
}

// waiting reports whether req is still in the stream.
func (w *harness) waiting(req *events.Request) bool { return w.line.Has(req.Seq) }

// newest is the newest message under a subject, or a filter, of the VM's journal; nil where there is none.
func (w *harness) newest(what string) *stream.Stored {
	return w.store.Newest(strings.TrimSuffix(events.History(vcenter, vmID), ">") + what)
}

// later runs fn after d.
func (w *harness) later(d time.Duration, fn func()) {
	go func() {
		<-time.After(d)
		fn()
	}()
}

// deliver hands req to an owner of its own, with what is to happen to it.
func (w *harness) deliver(req *events.Request, plan ...incident) *replica {
	w.t.Helper()
	delivery, err := w.line.Deliver(req.Seq)
	if err != nil {
		w.t.Fatal(err)
	}
	delivery.Expires = req.Expires
	o := &replica{w: w, req: delivery, plan: plan, seen: map[string]int{}, result: make(chan error, 1),
		stopped: make(chan struct{}), finished: make(chan struct{})}
	w.owners = append(w.owners, o)
	ctx, stop := context.WithCancel(context.Background())
	o.stop = stop
	s := w.settings
	s.Instance = fmt.Sprintf("pod-%d", len(w.owners))
	log := zerolog.Nop()
	store := w.store.Client()
	if w.slow != nil {
		store.OnPublish(w.slow)
	}
	h := New(s, &client{fakeVC: w.vc, o: o}, stream.NewStoreJournal(&replicaStore{store, o}, events.Structured, log),
		&replicaQueue{w.line, o}, w.secrets, log)
	if w.known != nil {
		h.kinds = w.known(h.kinds)
	}
	go func() {
		defer close(o.finished)
		err := h.Handle(ctx, delivery)
		stop()
		o.err = err
		var reject *events.RejectError
		if o.alive() {
			if errors.As(err, &reject) && w.stands(reject) {
				w.rejected = append(w.rejected, reject)
				w.line.Remove(req.Seq)
			}
			if err == nil {
				w.line.Remove(req.Seq)
			}
		}

		o.result <- err
	}()
	return o
}

// stands reports whether a refusal can be stored: the journal is where it leans on it.
func (w *harness) stands(reject *events.RejectError) bool {
	if reject.IfLastSeq == nil {
		return true
	}
	var at uint64
	if last := w.newest(">"); last != nil {
		at = last.Seq
	}
	return at == *reject.IfLastSeq
}

// await waits for the owner's answer.
func (w *harness) await(o *replica) {
	w.t.Helper()
	select {
	case <-o.finished:
	case <-time.After(long):
		w.t.Errorf("owner %s has not come to an end in %s", o, long)
	}
}

// drive delivers req until it is acknowledged: plans[0] is the first owner's incident, and so on; who has none lives.
func (w *harness) drive(req *events.Request, plans ...[]incident) {
	w.t.Helper()
	for n := 0; w.waiting(req); n++ {
		if n == 20 {
			w.t.Errorf("request %s was delivered %d times and has not ended", req.Ref.ID, n)
			return
		}
		var plan []incident
		if n < len(plans) {
			plan = plans[n]
		}
		o := w.deliver(req, plan...)
		wait := ackWait
		select {
		case err := <-o.result:
			var later *events.RetryError
			switch {
			case !o.alive():
			case errors.Is(err, events.ErrReleased):
				wait = 0
			case errors.As(err, &later):
				wait = later.After
			}
		case <-o.stopped:
			if !o.alive() {
				w.loseTail()
			}
			if w.atOnce {
				wait = 0
			}
		case <-time.After(long):
			w.t.Errorf("request %s: owner %d has not come to an end in %s", req.Ref.ID, n+1, long)
			return
		}

		if w.waiting(req) {
			<-time.After(wait)
		}
	}
}

// run puts a request into the stream and drives it to its end.
func (w *harness) run(data string, plans ...[]incident) *events.Run {
	w.t.Helper()
	req := w.request("order-1", data)
	w.drive(req, plans...)
	return w.last()
}

func (w *harness) loseTail() {
	if w.tail > 0 {
		w.store.DropLast(w.tail)
	}
}

// finish lets everything come to its end: what is paused goes on, what travels lands, then what is dead returns.
func (w *harness) finish() {
	<-time.After(4 * long)
	for _, o := range w.owners {
		if o.alive() {
			select {
			case <-o.finished:
			default:
				w.t.Errorf("owner %s has not come to an end: at %s", o, o.trace[max(0, len(o.trace)-3):])
			}
		}
	}

	close(w.over)
	for _, o := range w.owners {
		o.stop()
		<-o.finished
	}
	synctest.Wait()
}

// event is one event of the journal.
type event struct {
	seq  uint64
	at   time.Time
	id   string
	kind events.Kind
	run  events.Run
	data json.RawMessage
}

func (w *harness) read(m stream.Stored) event {
	var ce struct {
		ID   string          `json:"id"`
		Type string          `json:"type"`
		Data json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(m.Data, &ce); err != nil {
		w.t.Fatalf("event %d: %v", m.Seq, err)
	}
	e := event{seq: m.Seq, at: m.At, id: ce.ID, data: ce.Data,
		kind: events.Kind(strings.TrimSuffix(strings.TrimPrefix(ce.Type, "io.guestflow.customization."), ".v1"))}
	if err := json.Unmarshal(ce.Data, &e.run); err != nil {
		w.t.Fatalf("event %d: %v", m.Seq, err)
	}
	return e
}

func (w *harness) events() []event {
	var all []event
	for _, m := range w.store.All() {
		all = append(all, w.read(m))
	}
	return all
}

func (w *harness) kinds() []string {
	var all []string
	for _, e := range w.events() {
		all = append(all, string(e.kind))
	}
	return all
}

// last is the state of the newest run, after its last event.
func (w *harness) last() *events.Run {
	w.t.Helper()
	m := w.newest(">")
	if m == nil {
		w.t.Error("no event was stored")
		return &events.Run{}
	}
	e := w.read(*m)
	if !e.kind.Last() {
		w.t.Errorf("the newest event is %s, not the end of a run", e.kind)
	}
	return &e.run
}

// problems is what is wrong with what happened, whatever happened.
func (w *harness) problems() []string {
	var all []string
	say := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	for _, o := range w.owners {
		select {
		case <-o.finished:
			if hides := o.hides.Load(); hides != 0 {
				say("owner %s has ended, and %d secrets of its run are still remembered", o, hides)
			}
		default:
		}
	}

	ended := map[string]event{}
	n := map[string]int{}
	for _, e := range w.events() {
		run := e.run.ID
		if _, over := ended[run]; over {
			say("%s %s follows the last event of its run", e.kind, e.id)
		}
		n[run]++
		if n[run] == 1 && w.anew {
			n[run] = e.run.N
		}
		if e.id != fmt.Sprintf("%s.%d", run, n[run]) || e.run.N != n[run] {
			say("event %d of run %s has id %s and n %d", n[run], run, e.id, e.run.N)
		}
		if e.kind.Last() == (e.run.Status == events.StatusRunning) {
			say("%s has status %s", e.kind, e.run.Status)
		}
		if e.kind.Last() {
			ended[run] = e
		}
		for _, name := range wrongEnds(&e.run) {
			say("%s %s: step %s has ended and has no finishedAt, or has it and goes on", e.kind, e.id, name)
		}
		if (len(e.run.Requested) > 0) != (e.kind == events.RunAccepted) {
			say("%s %s holds the request: %v", e.kind, e.id, len(e.run.Requested) > 0)
		}
		if bytes.Contains(e.data, []byte("guest-secret")) {
			say("%s %s holds the guest's password", e.kind, e.id)
		}
		if w.strict {
			d := json.NewDecoder(bytes.NewReader(e.data))
			d.UseNumber()
			var tree any
			if err := d.Decode(&tree); err != nil {
				say("%s: %v", e.id, err)
			}
			for _, p := range schemas.CheckStrict(schemas.Run, tree) {
				say("%s %s: schema: %s", e.kind, e.id, p)
			}
		}
	}

	for run, count := range n {
		if _, over := ended[run]; !over {
			say("run %s has %d events and no last one", run, count)
		}
	}
	if len(ended) == 1 { // of several runs the test knows what each may do
		for _, end := range ended {
			all = append(all, w.wrongEffects(end)...)
		}
	}
	for _, o := range w.owners {
		var reject *events.RejectError
		var retry *events.RetryError
		if o.alive() && o.err != nil && !errors.Is(o.err, events.ErrFenced) &&
			!(o.told && errors.Is(o.err, events.ErrReleased)) &&
			!errors.As(o.err, &reject) && !errors.As(o.err, &retry) {
			say("owner %s returned %v", o, o.err)
		}
	}

	return all
}

// wrongEnds are the steps whose finishedAt does not go with their state. A process's is the guest's clock, which may
// not tell; a check that is skipped looks at the request alone, and has its times.
func wrongEnds(run *events.Run) []string {
	var wrong []string
	for _, s := range run.Steps() {
		over := s.State.Ended() && *s.State != events.Skipped
		if over != (*s.FinishedAt != nil) && s.Name != events.StepProcess && (s.Name != events.StepCheck || over) {
			wrong = append(wrong, s.Name)
		}
	}

	return wrong
}

// wrongEffects holds what was done in vCenter against the end of the only run.
func (w *harness) wrongEffects(end event) []string {
	var all []string
	asked := w.owners[0].req.Spec
	acts := map[string]bool{"customize": asked.Customize != nil, "network": asked.Network != nil}
	for _, p := range asked.Processes {
		acts["process "+p.Name] = p.Run != nil
	}
	for act, wanted := range acts {
		count := w.vc.count(vmID, act)
		if count > 1 && !w.allowRepeat {
			all = append(all, fmt.Sprintf("%s took effect %d times", act, count))
		}
		if end.kind == events.RunSucceeded && wanted != (count > 0) {
			all = append(all, fmt.Sprintf("the run succeeded and %s took effect %d times", act, count))
		}
	}

	for _, e := range w.vc.effects {
		if e.at.After(end.at) {
			all = append(all, fmt.Sprintf("%s took effect %s after the last event", e.act, e.at.Sub(end.at)))
		}
	}
	return all
}

// history is what happened, for a failed test's log.
func (w *harness) history() string {
	var b strings.Builder
	type line struct {
		at   time.Time
		text string
	}
	var lines []line
	for _, e := range w.events() {
		text := fmt.Sprintf("%4d %-22s n=%d status=%s", e.seq, e.kind, e.run.N, e.run.Status)
		if e.run.Owner != nil {
			text += " owner=" + e.run.Owner.Instance
		}
		if e.run.Waiting != "" {
			text += " waiting=" + string(e.run.Waiting)
		}
		if e.run.Error != nil {
			text += fmt.Sprintf(" error=%s %s", e.run.Error.Code, e.run.Error.Message)
		}
		lines = append(lines, line{e.at, text})
	}

	for _, e := range w.vc.effects {
		lines = append(lines, line{e.at, "     EFFECT " + e.act})
	}
	for i, o := range w.owners {
		for _, f := range o.met {
			lines = append(lines, line{f.at, fmt.Sprintf("     owner %d %s at %s", i+1, f.do, f.point)})
		}
	}
	slices.SortStableFunc(lines, func(a, b line) int { return a.at.Compare(b.at) })
	for _, l := range lines {
		fmt.Fprintf(&b, "%s %s\n", l.at.Format("15:04:05.000"), l.text)
	}
	for i, o := range w.owners {
		fmt.Fprintf(&b, "owner %d: alive %v, answer %v\n", i+1, o.alive(), o.err)
	}
	return b.String()
}

// incident is what happens to an owner at a point of its way.
type incident struct {
	point string
	fn    func()        // call: what happens then
	do    string        // crash, pause, term, call; at "<act> sent": late; at "publish … ": lose, fail, hold
	after time.Duration // pause: how long; late: when the call lands; hold: when the append does
	at    time.Time     // when it was met
}

func crash(point string) []incident { return []incident{{point: point, do: "crash"}} }

// replica is one delivery of a request in the hands of one handler. All its operations pass through it, so that it can
// be dead: then none returns before the test ends, and none has an effect.
type replica struct {
	w        *harness
	req      *events.Request
	stop     context.CancelFunc
	result   chan error
	finished chan struct{}
	err      error // set before finished is closed
	stopped  chan struct{}
	hides    atomic.Int32 // secrets

	mu    sync.Mutex
	plan  []incident
	seen  map[string]int
	trace []string
	met   []incident
	dead  bool
	halts bool
	told  bool // to stop
}

// term tells the owner's process to stop.
func (o *replica) term() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.told = true
	o.stop()
}

func (o *replica) String() string { return fmt.Sprintf("of request %s", o.req.Ref.ID) }

func (o *replica) alive() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.dead
}

var errDead = errors.New("this owner is dead")

// reached notes that the owner has come to a point, and gives what is to happen there. The second time at a point is
// named "<point> #2".
func (o *replica) reached(point string) incident {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.dead {
		return incident{do: "crash"}
	}
	if o.seen[point]++; o.seen[point] > 1 {
		point = fmt.Sprintf("%s #%d", point, o.seen[point])
	}
	if !strings.HasPrefix(point, "last read") { // next to "last": one of the two is enough where every point is tried
		o.trace = append(o.trace, point)
	}
	for _, f := range o.plan {
		if f.point != point {
			continue
		}
		f.at = time.Now()
		o.met = append(o.met, f)
		if f.do == "crash" || f.do == "late" || f.do == "call, then crash" {
			o.dead = true
		}
		if (o.dead || f.do == "pause") && !o.halts {
			o.halts = true
			close(o.stopped)
		}
		return f
	}

	return incident{}
}

// at passes a point: an error means that the owner is dead.
func (o *replica) at(point string) error { return o.meet(o.reached(point)) }

func (o *replica) meet(f incident) error {
	switch f.do {
	case "call":
		f.fn()
	case "call, then crash":
		f.fn()
		<-o.w.over
		return errDead
	case "crash", "late":
		<-o.w.over
		return errDead
	case "pause":
		<-time.After(f.after)
	case "term":
		o.term()
	}
	return nil
}

// replicaQueue is the queue as one owner sees it.
type replicaQueue struct {
	*memstore.Queue
	o *replica
}

func (l *replicaQueue) reach(ctx context.Context) error {
	if !l.o.alive() {
		<-l.o.w.over
		return errDead
	}
	return context.Cause(ctx)
}

func (l *replicaQueue) Oldest(ctx context.Context, vcenter, vm string) (*events.QueuedRequest, error) {
	if err := l.reach(ctx); err != nil {
		return nil, err
	}
	return l.Queue.Oldest(ctx, vcenter, vm)
}

func (l *replicaQueue) Unfinished(ctx context.Context, vcenter, vm string) (events.VMQueue, error) {
	if err := l.reach(ctx); err != nil {
		return events.VMQueue{}, err
	}
	return l.Queue.Unfinished(ctx, vcenter, vm)
}

func (l *replicaQueue) Gone(ctx context.Context, vcenter, vm string, p events.Place) (bool, error) {
	if err := l.reach(ctx); err != nil {
		return false, err
	}
	return l.Queue.Gone(ctx, vcenter, vm, p)
}

func (l *replicaQueue) Cancels(ctx context.Context, vcenter, vm string) ([]events.Cancel, error) {
	if err := l.reach(ctx); err != nil {
		return nil, err
	}
	if err := spend(ctx, l.o.w.cancelReadDelay); err != nil {
		return nil, err
	}
	return l.Queue.Cancels(ctx, vcenter, vm)
}

func (l *replicaQueue) Wake(vcenter, vm string) (<-chan struct{}, func()) {
	c, stop := l.Queue.Wake(vcenter, vm)
	if l.o.w.noWake {
		c = make(chan struct{})
	}
	return c, stop
}

// replicaStore is the journal's stream as one owner sees it.
type replicaStore struct {
	*memstore.Client
	o *replica
}

func (s *replicaStore) Publish(ctx context.Context, m stream.Message) (stream.Ack, error) {
	kind := m.Subject[len("guestflow.events.lab.vm-42."):]
	f := s.o.reached("publish " + kind)
	if err := s.o.meet(f); err != nil {
		return stream.Ack{}, err
	}
	if err := spend(ctx, latency); err != nil {
		return stream.Ack{}, err
	}
	switch f.do {
	case "fail":
		return stream.Ack{}, nats.ErrTimeout
	case "hold": // held up on the way, stored later if it then still fits
		s.o.w.later(f.after, func() { _, _ = s.Client.Publish(context.WithoutCancel(ctx), m) })
		return stream.Ack{}, nats.ErrTimeout
	}

	ack, err := s.Client.Publish(ctx, m)
	if dead := s.o.at("stored " + kind); dead != nil {
		return stream.Ack{}, dead
	}
	if f.do == "lose" {
		return stream.Ack{}, nats.ErrTimeout
	}
	return ack, err
}

func (s *replicaStore) LastBySubject(ctx context.Context, filter string) (*stream.Stored, error) {
	if err := s.o.at("last"); err != nil {
		return nil, err
	}
	if err := spend(ctx, latency); err != nil {
		return nil, err
	}
	m, err := s.Client.LastBySubject(ctx, filter)
	if dead := s.o.at("last read"); dead != nil {
		return nil, dead
	}
	return m, err
}

func (s *replicaStore) NextBySubject(ctx context.Context, filter string, from uint64) (*stream.Stored, error) {
	if err := s.o.at("next"); err != nil {
		return nil, err
	}
	if err := spend(ctx, latency); err != nil {
		return nil, err
	}
	return s.Client.NextBySubject(ctx, filter, from)
}
