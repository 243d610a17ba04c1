package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/events/stream/natstest"
	"github.com/guestflow/guestflow/internal/vcsim"
)

// permissionFiles is where the roles' permissions are, as administrators include them.
const permissionFiles = "../../deploy/nats"

// roles are the users of a guarded server, by their permission file, and their inbox prefixes as the files give them.
var roles = map[string]string{
	"service": "_INBOX_guestflow", "service-fixed": "_INBOX_guestflow", "publisher": "_INBOX_publisher_lab",
	"subscriber": "_INBOX_audit",
	"operator":   "_INBOX_operator",
}

// password is that of a user of a guarded server.
func password(user string) string { return "the-password-of-" + user }

// guarded is a server whose users are the roles, and admin, who may do everything.
type guarded struct {
	*natstest.Server
	t *testing.T
}

// guard starts a server that includes the permission files. edit (may be nil) changes what was read from them.
func guard(t *testing.T, edit func(*server.Options)) *guarded {
	t.Helper()
	users := []natstest.User{{Name: "admin", Password: password("admin")}}
	for role := range roles {
		users = append(users, natstest.User{Name: role, Password: password(role),
			Permissions: filepath.Join(permissionFiles, role+".conf")})
	}
	return &guarded{Server: natstest.StartUsers(t, users, edit), t: t}
}

// as is the server's URL with a user's name and password in it.
func (g *guarded) as(user string) string {
	return as(g.Server, user, password(user))
}

// service is what the service needs in its environment to be the role.
func (g *guarded) service(role string) []string {
	g.t.Helper()
	return []string{"NATS_URL=" + g.URL(), "NATS_USER=" + role, "NATS_INBOX_PREFIX=" + roles[role],
		"NATS_PASSWORD_FILE=" + write(g.t, "password", password(role)+"\n")}
}

// violations are what the server has refused so far.
func (g *guarded) violations() (said []string) {
	for _, line := range g.Log() {
		if strings.Contains(line, "Violation") {
			said = append(said, line)
		}
	}
	return said
}

// refused reports whether the server has refused what the subject of a permission allows.
func (g *guarded) refused(subject string) bool {
	return slices.ContainsFunc(g.violations(), func(line string) bool {
		_, quoted, _ := strings.Cut(line, "Violation - Subject \"")
		of, _, _ := strings.Cut(quoted, "\"")
		return server.SubjectsCollide(of, subject)
	})
}

// permissionsOf are what a role's file allows.
func permissionsOf(o *server.Options, role string) *server.Permissions {
	for _, u := range o.Users {
		if u.Username == role {
			return u.Permissions
		}
	}
	return nil
}

// without takes one subject away from a role: "sub " before it tells that it is one to subscribe to.
func without(role, subject string) func(*server.Options) {
	return func(o *server.Options) {
		p := permissionsOf(o, role)
		*p = minus(p, subject)
	}
}

func minus(p *server.Permissions, subject string) server.Permissions {
	less := func(of *server.SubjectPermission, prefix string) *server.SubjectPermission {
		var left []string
		for _, s := range of.Allow {
			if prefix+s != subject {
				left = append(left, s)
			}
		}
		return &server.SubjectPermission{Allow: left}
	}
	return server.Permissions{Publish: less(p.Publish, ""), Subscribe: less(p.Subscribe, "sub ")}
}

// subjects are all that a role may do, in the form that without takes.
func subjects(p *server.Permissions) (all []string) {
	all = append(all, p.Publish.Allow...)
	for _, s := range p.Subscribe.Allow {
		all = append(all, "sub "+s)
	}
	slices.Sort(all)
	return all
}

// provision makes the streams and consumers as the service would, with the queue per VM of queue and the ages of age.
func provision(t *testing.T, url string, queue int, age time.Duration) {
	t.Helper()
	conn, err := stream.Connect(t.Context(), stream.Config{URL: url}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Provision(t.Context(), stream.Settings{EventsMaxAge: age, DeadlettersMaxAge: age, QueuePerVM: queue,
		AckWait:     2 * time.Second,
		MaxInFlight: map[string]int{"lab": 64}, Provision: true}); err != nil {
		t.Fatal(err)
	}
}

// bad is a request that is refused: its message becomes a dead letter, and its publisher is told.
func (s *harness) bad(vm, id string) { s.publish(vm, id, map[string]any{"nonsense": true}) }

// The whole service as the role that the files give it: made streams, raised limits, a run, a queue, a cancel, a
// refused message, a stop.
func TestServicePermissions(t *testing.T) {
	t.Parallel()
	for _, role := range []string{"service", "service-fixed"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			g := guard(t, nil)
			s := newHarness(t, g.as("admin"), vcsim.Options{})
			fastGuests(s.vc)
			vms := s.vc.VMs()
			var env []string
			if role == "service-fixed" {
				provision(t, g.as("admin"), 2, 30*24*time.Hour)
				env = []string{"GUESTFLOW_PROVISION=false"}
			}
			p := s.start(append(env, g.service(role)...)...)
			s.bad(vms[1], "bad")
			if e := s.ended("bad"); e.kind != "rejected" {
				t.Errorf("a bad request ended with %s", e.kind)
			}
			s.publish(vms[0], "r-1", fullRequest("exit 0"))
			s.publish(vms[0], "r-2", map[string]any{})
			s.cancel(vms[0], "c-1", "r-2")
			if e := s.ended("r-1"); e.kind != "run.succeeded" {
				t.Errorf("ended with %s: %s", e.kind, e.Data)
			}
			if e := s.ended("r-2"); e.kind != "run.canceled" {
				t.Errorf("ended with %s: %s", e.kind, e.Data)
			}
			s.emptied()
			if err := p.stop(); err != nil {
				t.Errorf("stop: %v", err)
			}
			logs := p.log.String()
			if role == "service" { // and raises its own limits at the next start
				p = s.start(append(g.service(role), "GUESTFLOW_QUEUE_PER_VM=3", "GUESTFLOW_EVENTS_MAX_AGE=1000h",
					"GUESTFLOW_DEADLETTERS_MAX_AGE=1000h",
					s.setting("MAX_IN_FLIGHT")+"=32")...)
				logs += p.log.String()
			}
			if v := g.violations(); len(v) > 0 || strings.Contains(strings.ToLower(logs), "violation") {
				t.Errorf("the server refused %q; log of the service:\n%s", v, logs)
			}
		})
	}
}

// Nothing that the service may do is too much: without a single subject the service stands still, or is worse, where
// the table says.
func TestServiceNeedsEachPermission(t *testing.T) {
	t.Parallel()
	const (
		unready  = "does not get ready"
		noRun    = "runs nothing"
		noEnd    = "ends no request"
		noCancel = "takes no cancel"
		noRefuse = "refuses nothing"
		slower   = "looks less often"
	)
	const stream, lab = "$JS.API.STREAM.", "GUESTFLOW_REQUESTS_lab"
	type row struct {
		subject, breaks string
		low, none       bool // streams with lower limits, no streams at the start
	}
	needs := []row{
		{subject: "guestflow.events.lab.>", breaks: noRun},
		{subject: "guestflow.rejections.lab.*", breaks: noRefuse},
		{subject: "guestflow.deadletters.lab.*", breaks: noRefuse},
		{subject: stream + "INFO.GUESTFLOW_EVENTS", breaks: unready},
		{subject: stream + "INFO.GUESTFLOW_DEADLETTERS", breaks: unready},
		{subject: stream + "INFO." + lab, breaks: unready},
		{subject: stream + "CREATE.GUESTFLOW_EVENTS", breaks: unready, none: true},
		{subject: stream + "CREATE.GUESTFLOW_DEADLETTERS", breaks: unready, none: true},
		{subject: stream + "CREATE." + lab, breaks: unready, none: true},
		{subject: stream + "UPDATE.GUESTFLOW_EVENTS", breaks: unready, low: true},
		{subject: stream + "UPDATE.GUESTFLOW_DEADLETTERS", breaks: unready, low: true},
		{subject: stream + "UPDATE." + lab, breaks: unready, low: true},
		{subject: stream + "MSG.GET.GUESTFLOW_EVENTS", breaks: noRun},
		{subject: stream + "MSG.GET." + lab, breaks: noRun},
		{subject: "$JS.API.CONSUMER.INFO." + lab + ".guestflow-requests-lab", breaks: unready},
		{subject: "$JS.API.CONSUMER.INFO." + lab + ".guestflow-cancels-lab", breaks: unready},
		{subject: "$JS.API.CONSUMER.CREATE." + lab + ".guestflow-requests-lab.guestflow.requests.lab.*",
			breaks: unready, none: true},
		{subject: "$JS.API.CONSUMER.CREATE." + lab + ".guestflow-cancels-lab.guestflow.cancels.lab.*", breaks: unready,
			none: true},
		{subject: "$JS.API.CONSUMER.MSG.NEXT." + lab + ".guestflow-requests-lab", breaks: noRun},
		{subject: "$JS.API.CONSUMER.MSG.NEXT." + lab + ".guestflow-cancels-lab", breaks: noCancel},
		{subject: "$JS.ACK." + lab + ".guestflow-requests-lab.>", breaks: noEnd},
		{subject: "$JS.ACK." + lab + ".guestflow-cancels-lab.>", breaks: noCancel},
		{subject: "sub _INBOX_guestflow.>", breaks: unready},
		{subject: "sub guestflow.events.lab.*.run.*", breaks: slower},
		{subject: "sub guestflow.cancels.lab.*", breaks: slower},
	}
	g := guard(t, func(o *server.Options) {
		want := []string{"$JS.API.STREAM.NAMES"} // see TestStreamInTheWayIsNamed
		var fixed []string
		for _, n := range needs {
			want = append(want, n.subject)
			if !n.low && !n.none {
				fixed = append(fixed, n.subject)
			}
		}
		slices.Sort(want)
		slices.Sort(fixed)
		for role, want := range map[string][]string{"service": want, "service-fixed": fixed} {
			if have := subjects(permissionsOf(o, role)); !slices.Equal(have, want) {
				t.Errorf("%s may do\n%s\nwhich is not what this test takes away:\n%s", role, strings.Join(have, "\n"),
					strings.Join(want, "\n"))
			}
		}
	})
	g.Stop()
	for _, n := range needs {
		t.Run(n.subject, func(t *testing.T) {
			t.Parallel()
			g := guard(t, without("service", n.subject))
			s := newHarness(t, g.as("admin"), vcsim.Options{VMs: 3})
			fastGuests(s.vc)
			vms := s.vc.VMs()
			switch {
			case n.low:
				provision(t, g.as("admin"), 1, 2*time.Hour)
			case !n.none:
				provision(t, g.as("admin"), 2, 30*24*time.Hour)
				s.publish(vms[0], "r-1", map[string]any{})
				s.publish(vms[0], "r-2", map[string]any{})
				s.cancel(vms[1], "c-1", "r-404")
				s.bad(vms[2], "bad")
			}
			p := s.launch(g.service("service")...)
			s.until("a refusal of what was taken away", func() bool {
				return g.refused(strings.TrimPrefix(n.subject, "sub "))
			})
			works := false
			switch n.breaks {
			case unready:
				status, _ := p.get("/readyz")
				works = status == http.StatusOK
			case noRun:
				works = s.holds("GUESTFLOW_EVENTS", "guestflow.events.>")
			case noEnd:
				works = !s.holds(lab, "guestflow.requests.lab."+vms[0])
			case noCancel:
				works = !s.holds(lab, "guestflow.cancels.lab.*")
			case noRefuse:
				works = !s.holds(lab, "guestflow.requests.lab."+vms[2])
			}
			if works {
				t.Errorf("without %s it is not so that the service %s", n.subject, n.breaks)
			}
			s.until("a word about it in the log", func() bool {
				return strings.Contains(strings.ToLower(p.log.String()), "violation")
			})
		})
	}
}

// The service may ask for the streams' names for one thing only: to say which one is in its way.
func TestStreamInTheWayIsNamed(t *testing.T) {
	t.Parallel()
	for _, taken := range []string{"", "$JS.API.STREAM.NAMES"} {
		t.Run("without "+taken, func(t *testing.T) {
			t.Parallel()
			g := guard(t, without("service", taken))
			s := newHarness(t, g.as("admin"), vcsim.Options{VMs: 1})
			if _, err := s.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OTHER",
				Subjects: []string{"guestflow.deadletters.>"}}); err != nil {
				t.Fatal(err)
			}
			p := s.launch(g.service("service")...)
			<-p.done
			if named := strings.Contains(p.log.String(), "stream OTHER has the subject guestflow.deadletters"); named !=
				(taken == "") {
				t.Errorf("the stream is named: %v\n%s", named, p.log)
			}
		})
	}
}

// holds reports whether a stream has a message on the subject, which may be a filter.
func (s *harness) holds(stream, subject string) bool {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	st, err := s.js.Stream(ctx, stream)
	if err != nil {
		s.t.Fatal(err)
	}
	info, err := st.Info(ctx, jetstream.WithSubjectFilter(subject))
	if err != nil {
		s.t.Fatal(err)
	}
	return len(info.State.Subjects) > 0
}

// operation is one thing that a role does, and the subject that it may do it for.
type operation struct {
	subject string // as without takes it
	do      func(ctx context.Context, conn *nats.Conn, js jetstream.JetStream) error
}

// attempt does something as a user who has the role; what the server refuses ends it.
func (s *harness) attempt(url, role string, do func(context.Context, *nats.Conn, jetstream.JetStream) error) error {
	s.t.Helper()
	ctx, end := context.WithCancelCause(s.t.Context())
	defer end(nil)
	conn, err := nats.Connect(url, nats.CustomInboxPrefix(roles[role]), nats.ErrorHandler(func(_ *nats.Conn,
		_ *nats.Subscription, err error) {
		end(err)
	}))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err = do(ctx, conn, js); err == nil {
		err = conn.Flush()
	}
	if last := conn.LastError(); errors.Is(last, nats.ErrPermissionViolation) {
		err = errors.Join(last, err)
	}
	return err
}

// api asks the JetStream API; its answer must be no refusal.
func api(subject, question string) func(context.Context, *nats.Conn, jetstream.JetStream) error {
	return func(ctx context.Context, conn *nats.Conn, _ jetstream.JetStream) error {
		m, err := conn.RequestWithContext(ctx, subject, []byte(question))
		if err != nil {
			return err
		}
		var answer struct {
			Error *jetstream.APIError `json:"error"`
		}
		if err := json.Unmarshal(m.Data, &answer); err != nil {
			return err
		}
		if answer.Error != nil {
			return answer.Error
		}
		return nil
	}
}

// send publishes and waits for the stream's word.
func send(subject string) func(context.Context, *nats.Conn, jetstream.JetStream) error {
	return func(ctx context.Context, _ *nats.Conn, js jetstream.JetStream) error {
		_, err := js.Publish(ctx, subject, []byte("{}"))
		return err
	}
}

// last reads the last message on a subject of the events stream, as contract "Ask" says.
func last(subject string) func(context.Context, *nats.Conn, jetstream.JetStream) error {
	return func(ctx context.Context, conn *nats.Conn, _ jetstream.JetStream) error {
		m, err := conn.RequestWithContext(ctx, "$JS.API.DIRECT.GET.GUESTFLOW_EVENTS."+subject, nil)
		if err == nil && m.Header.Get("Nats-Sequence") == "" {
			err = fmt.Errorf("no message: %v", m.Header)
		}
		return err
	}
}

// hearing subscribes, and hears what the test publishes there.
func (s *harness) hearing(pattern, subject string) func(context.Context, *nats.Conn, jetstream.JetStream) error {
	return func(ctx context.Context, conn *nats.Conn, _ jetstream.JetStream) error {
		sub, err := conn.SubscribeSync(pattern)
		if err != nil {
			return err
		}
		if err := conn.FlushWithContext(ctx); err != nil {
			return err
		}
		if err := s.conn.Publish(subject, []byte("{}")); err != nil {
			return err
		}
		_, err = sub.NextMsgWithContext(ctx)
		return err
	}
}

// durable reads one message from the consumer that was made for the subscriber.
func durable(ctx context.Context, _ *nats.Conn, js jetstream.JetStream) error {
	consumer, err := js.Consumer(ctx, "GUESTFLOW_EVENTS", "audit")
	if err != nil {
		return err
	}
	return fetchOne(ctx, consumer, func(m jetstream.Msg) error { return m.DoubleAck(ctx) })
}

// fetchOne reads a message of a consumer.
func fetchOne(ctx context.Context, consumer jetstream.Consumer, do func(jetstream.Msg) error) error {
	batch, err := consumer.Fetch(1, jetstream.FetchContext(ctx))
	if err != nil {
		return err
	}
	for m := range batch.Messages() {
		return do(m)
	}
	return errors.Join(errors.New("no message"), batch.Error())
}

// operations are what each client role does with each of its subjects. vm is one that is in no stream yet, dead and
// asked are the sequences of a dead letter and a request.
func (s *harness) operations(role, vm string, dead, asked uint64) []operation {
	requests := operation{"guestflow.requests.lab.*", send("guestflow.requests.lab." + vm)}
	cancels := operation{"guestflow.cancels.lab.*", send("guestflow.cancels.lab." + vm)}
	switch role {
	case "publisher":
		return []operation{requests, cancels,
			{"$JS.API.DIRECT.GET.GUESTFLOW_EVENTS.guestflow.events.lab.>", last("guestflow.events.lab.vm-1.>")},
			{"$JS.API.DIRECT.GET.GUESTFLOW_EVENTS.guestflow.rejections.lab.*", last("guestflow.rejections.lab.vm-1")},
			{"sub _INBOX_publisher_lab.>", requests.do},
			{"sub guestflow.events.lab.>", s.hearing("guestflow.events.lab."+vm+".>", "guestflow.events.lab."+vm+
				".run.accepted")},
			{"sub guestflow.rejections.lab.*", s.hearing("guestflow.rejections.lab."+vm,
				"guestflow.rejections.lab."+vm)},
		}
	case "subscriber":
		return []operation{
			{"$JS.API.CONSUMER.INFO.GUESTFLOW_EVENTS.audit", durable},
			{"$JS.API.CONSUMER.MSG.NEXT.GUESTFLOW_EVENTS.audit", durable},
			{"$JS.ACK.GUESTFLOW_EVENTS.audit.>", durable},
			{"sub _INBOX_audit.>", durable},
			{"sub guestflow.events.>", s.hearing("guestflow.events.*.*.run.*", "guestflow.events.lab."+vm+
				".run.accepted")},
			{"sub guestflow.rejections.>", s.hearing("guestflow.rejections.>", "guestflow.rejections.lab."+vm)},
		}
	}
	all := []operation{requests, cancels,
		{"sub _INBOX_operator.>", requests.do},
		{"sub guestflow.events.>", s.hearing("guestflow.events.>", "guestflow.events.lab."+vm+".run.accepted")},
		{"sub guestflow.rejections.>", s.hearing("guestflow.rejections.>", "guestflow.rejections.lab."+vm)},
		{"sub guestflow.deadletters.>", s.hearing("guestflow.deadletters.>", "guestflow.deadletters.lab."+vm)},
	}
	asks := func(subject, question string) { all = append(all, operation{subject, api(subject, question)}) }
	asks("$JS.API.STREAM.NAMES", "")
	asks("$JS.API.STREAM.LIST", "")
	for stream, consumer := range map[string]string{"GUESTFLOW_EVENTS": "audit",
		"GUESTFLOW_REQUESTS_lab": "guestflow-requests-lab", "GUESTFLOW_DEADLETTERS": ""} {
		asks("$JS.API.STREAM.INFO."+stream, "")
		asks("$JS.API.STREAM.MSG.GET."+stream, `{"last_by_subj":"guestflow.>"}`)
		if consumer != "" {
			asks("$JS.API.CONSUMER.NAMES."+stream, "")
			asks("$JS.API.CONSUMER.LIST."+stream, "")
			all = append(all, operation{"$JS.API.CONSUMER.INFO." + stream + ".*", api("$JS.API.CONSUMER.INFO."+stream+
				"."+consumer, "")})
		}
	}
	remove := func(stream string, seq uint64) operation {
		subject := "$JS.API.STREAM.MSG.DELETE." + stream
		return operation{subject, api(subject, fmt.Sprintf(`{"seq":%d}`, seq))}
	}
	return append(all, remove("GUESTFLOW_DEADLETTERS", dead), remove("GUESTFLOW_REQUESTS_lab", asked),
		operation{"$JS.API.STREAM.PURGE.GUESTFLOW_DEADLETTERS", api("$JS.API.STREAM.PURGE.GUESTFLOW_DEADLETTERS",
			`{"filter":"guestflow.deadletters.lab.vm-404"}`)},
		operation{"$JS.API.CONSUMER.CREATE.GUESTFLOW_EVENTS.>", func(ctx context.Context, _ *nats.Conn,
			js jetstream.JetStream) error {
			_, err := js.CreateConsumer(ctx, "GUESTFLOW_EVENTS", jetstream.ConsumerConfig{Durable: "new-" + vm,
				FilterSubject: "guestflow.events.lab.>"})
			return err
		}},
		// guestflow watch
		operation{"$JS.API.CONSUMER.MSG.NEXT.GUESTFLOW_EVENTS.*", func(ctx context.Context, _ *nats.Conn,
			js jetstream.JetStream) error {
			journal, err := js.OrderedConsumer(ctx, "GUESTFLOW_EVENTS", jetstream.OrderedConsumerConfig{
				FilterSubjects: []string{"guestflow.events.lab.>"}})
			if err != nil {
				return err
			}
			return fetchOne(ctx, journal, func(jetstream.Msg) error { return nil })
		}},
		operation{"$JS.API.CONSUMER.DELETE.GUESTFLOW_EVENTS.*", func(ctx context.Context, _ *nats.Conn,
			js jetstream.JetStream) error {
			if _, err := s.js.CreateConsumer(ctx, "GUESTFLOW_EVENTS", jetstream.ConsumerConfig{Durable: "old-" +
				vm}); err != nil {
				return err
			}
			return js.DeleteConsumer(ctx, "GUESTFLOW_EVENTS", "old-"+vm)
		}})
}

// Publishers, subscribers and operators can do what the files say that they may, and cannot where a single subject of
// them is taken away.
func TestClientsNeedEachPermission(t *testing.T) {
	t.Parallel()
	all := map[string][]string{} // the subjects of each role
	g := guard(t, func(o *server.Options) {
		for _, role := range []string{"publisher", "subscriber", "operator"} {
			all[role] = subjects(permissionsOf(o, role))
			for i, subject := range all[role] {
				name := fmt.Sprintf("%s-%d", role, i)
				p := minus(permissionsOf(o, role), subject)
				o.Users = append(o.Users, &server.User{Username: name, Password: password(name), Permissions: &p})
			}
		}
	})
	s := newHarnessNamed(t, g.as("admin"), "other", vcsim.Options{VMs: 1}) // what is said about lab here is no event
	provision(t, g.as("admin"), 2, 30*24*time.Hour)
	audit := jetstream.ConsumerConfig{Durable: "audit"}
	if _, err := s.js.CreateConsumer(t.Context(), "GUESTFLOW_EVENTS", audit); err != nil {
		t.Fatal(err)
	}
	n := 0
	fresh := func() (vm string, dead, asked uint64) { // a VM that is in no stream, and messages to delete
		n++
		vm = fmt.Sprintf("vm-%d", 1000+n)
		put := func(subject string) uint64 {
			ack, err := s.js.Publish(t.Context(), subject, []byte("{}"))
			if err != nil {
				t.Fatal(err)
			}
			return ack.Sequence
		}
		put("guestflow.events.lab.vm-1.run.accepted")
		put("guestflow.rejections.lab.vm-1")
		return vm, put("guestflow.deadletters.lab." + vm), put("guestflow.requests.lab.vm-del-" + vm)
	}
	for role, may := range all {
		var does []string
		for _, d := range s.operations(role, "", 0, 0) {
			does = append(does, d.subject)
		}
		slices.Sort(does)
		if !slices.Equal(may, does) {
			t.Errorf("%s may do\n%s\nwhich is not what this test does:\n%s", role, strings.Join(may, "\n"),
				strings.Join(does, "\n"))
			continue
		}
		for i := range may {
			vm, dead, asked := fresh()
			for _, d := range s.operations(role, vm, dead, asked) {
				if d.subject != may[i] {
					continue
				}
				if err := s.attempt(g.as(fmt.Sprintf("%s-%d", role, i)), role, d.do); !errors.Is(err,
					nats.ErrPermissionViolation) {
					t.Errorf("%s without %s: %v", role, d.subject, err)
				}
				if err := s.attempt(g.as(role), role, d.do); err != nil {
					t.Errorf("%s with %s: %v", role, d.subject, err)
				}
			}
		}
	}
}

// Each role is refused what is not its own.
func TestRolesAreRefused(t *testing.T) {
	t.Parallel()
	g := guard(t, nil)
	s := newHarnessNamed(t, g.as("admin"), "other", vcsim.Options{VMs: 1})
	provision(t, g.as("admin"), 2, 30*24*time.Hour)
	const requests = "GUESTFLOW_REQUESTS_lab"
	nobody := []string{
		"$JS.API.STREAM.DELETE.GUESTFLOW_EVENTS", "$JS.API.STREAM.DELETE.GUESTFLOW_DEADLETTERS",
		"$JS.API.STREAM.DELETE." + requests,
		"$JS.API.STREAM.PURGE.GUESTFLOW_EVENTS", "$JS.API.STREAM.PURGE." +
			requests, "$JS.API.STREAM.MSG.DELETE.GUESTFLOW_EVENTS",
		"$JS.API.STREAM.CREATE.OTHER", "$JS.API.STREAM.SNAPSHOT.GUESTFLOW_EVENTS",
		"$JS.API.STREAM.RESTORE.GUESTFLOW_EVENTS",
		"$JS.API.CONSUMER.DELETE." + requests + ".guestflow-requests-lab", "$JS.API.CONSUMER.CREATE." +
			requests + ".mine",
		"$JS.API.CONSUMER.DURABLE.CREATE." + requests + ".mine", "guestflow.events.prod.vm-1.run.accepted",
		"guestflow.rejections.prod.vm-1",
		"guestflow.requests.prod.vm-1", "guestflow.cancels.prod.vm-1", "$SYS.REQ.SERVER.PING", "_INBOX.1",
		"sub >", "sub guestflow.>", "sub guestflow.requests.lab.*", "sub guestflow.requests.>", "sub _INBOX.>",
		"sub $JS.>", "sub $JS.API.>", "sub $JS.EVENT.>",
	}
	outside := append([]string{ // who is not the service
		"guestflow.events.lab.vm-1.run.accepted", "guestflow.rejections.lab.vm-1", "guestflow.deadletters.lab.vm-1",
		"$JS.API.STREAM.UPDATE.GUESTFLOW_EVENTS", "$JS.API.STREAM.UPDATE." +
			requests, "$JS.API.STREAM.CREATE.GUESTFLOW_EVENTS",
		"$JS.API.CONSUMER.MSG.NEXT." + requests + ".guestflow-requests-lab", "$JS.API.CONSUMER.MSG.NEXT." + requests +
			".guestflow-cancels-lab",
		"$JS.ACK." + requests + ".guestflow-requests-lab.1.1.1.1795270563201858968.0", "sub _INBOX_guestflow.>",
		"sub guestflow.cancels.lab.*",
	}, nobody...)
	reader := append([]string{ // who is neither the service nor an operator
		"$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO." +
			requests, "$JS.API.STREAM.MSG.GET.GUESTFLOW_EVENTS",
		"$JS.API.STREAM.MSG.GET." + requests, "$JS.API.STREAM.MSG.GET.GUESTFLOW_DEADLETTERS",
		"$JS.API.DIRECT.GET.GUESTFLOW_EVENTS",
		"$JS.API.DIRECT.GET.GUESTFLOW_DEADLETTERS",
		"$JS.API.DIRECT.GET.GUESTFLOW_DEADLETTERS.guestflow.deadletters.lab.vm-1",
		"$JS.API.DIRECT.GET.GUESTFLOW_EVENTS.guestflow.events.prod.vm-1.>",
		"$JS.API.CONSUMER.CREATE.GUESTFLOW_EVENTS.audit",
		"$JS.API.CONSUMER.CREATE.GUESTFLOW_DEADLETTERS.mine", "sub guestflow.deadletters.>",
		"sub guestflow.deadletters.lab.*", "sub _INBOX_operator.>",
	}, outside...)
	for role, refused := range map[string][]string{
		"publisher": append([]string{"sub guestflow.events.prod.>", "sub guestflow.events.>",
			"sub guestflow.rejections.prod.*", "sub guestflow.rejections.>",
			"$JS.API.CONSUMER.MSG.NEXT.GUESTFLOW_EVENTS.audit", "sub _INBOX_audit.>"}, reader...),
		"subscriber": append([]string{"guestflow.requests.lab.vm-1", "guestflow.cancels.lab.vm-1",
			"$JS.API.CONSUMER.MSG.NEXT.GUESTFLOW_EVENTS.other",
			"$JS.ACK.GUESTFLOW_EVENTS.other.1.1.1.1795270563201858968.0", "sub _INBOX_publisher_lab.>"}, reader...),
		"operator": outside,
		"service": append([]string{"guestflow.requests.lab.vm-1", "guestflow.cancels.lab.vm-1",
			"sub _INBOX_operator.>"}, nobody...),
		"service-fixed": append([]string{"guestflow.requests.lab.vm-1", "$JS.API.STREAM.CREATE.GUESTFLOW_EVENTS",
			"$JS.API.STREAM.UPDATE.GUESTFLOW_EVENTS",
			"$JS.API.CONSUMER.CREATE." + requests + ".guestflow-requests-lab.guestflow.requests.lab.*"}, nobody...),
	} {
		for _, subject := range refused {
			err := s.attempt(g.as(role), role, func(_ context.Context, conn *nats.Conn, _ jetstream.JetStream) error {
				if pattern, ok := strings.CutPrefix(subject, "sub "); ok {
					_, err := conn.SubscribeSync(pattern)
					return err
				}
				return conn.Publish(subject, []byte("{}"))
			})
			if !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("%s was not refused %s: %v", role, subject, err)
			}
		}
	}
	for _, stream := range []string{"GUESTFLOW_EVENTS", "GUESTFLOW_DEADLETTERS", requests} {
		if s.holds(stream, ">") {
			t.Errorf("something was stored in %s", stream)
		}
	}
}

// follow is contract "Publish, wait": subscribed first, then published, then read until the end. It returns the kinds
// of the events of this request, and the id of the last one.
func follow(ctx context.Context, conn *nats.Conn, js jetstream.JetStream, vm, id, data string) (kinds []string,
	last string, err error) {
	heard := make(chan *nats.Msg, 256)
	for _, subject := range []string{"guestflow.events.lab." + vm + ".>", "guestflow.rejections.lab." + vm} {
		sub, err := conn.ChanSubscribe(subject, heard)
		if err != nil {
			return nil, "", err
		}
		defer func() { _ = sub.Unsubscribe() }()
	}
	ack, err := js.PublishMsg(ctx, &nats.Msg{Subject: "guestflow.requests.lab." + vm, Data: []byte(data),
		Header: nats.Header{"ce-specversion": {"1.0"},
			"ce-id": {id}, "ce-source": {"/publisher"}, "ce-type": {"io.guestflow.customization.requested.v1"},
			"Content-Type": {"application/json"}}})
	if err != nil {
		return nil, "", err
	}
	for {
		select {
		case m := <-heard:
			var e event
			if err := json.Unmarshal(m.Data, &e); err != nil {
				return kinds, "", err
			}
			if err := json.Unmarshal(e.Data, &e.run); err != nil {
				return kinds, "", err
			}
			kind := strings.TrimSuffix(strings.TrimPrefix(e.Type, "io.guestflow.customization."), ".v1")
			if e.ID == fmt.Sprintf("rejected.%d", ack.Sequence) {
				return append(kinds, kind), e.ID, nil
			}
			if e.run.Request.Source != "/publisher" || e.run.Request.ID != id {
				continue
			}
			if kinds = append(kinds, kind); isLast(kind) {
				return kinds, e.ID, nil
			}
		case <-ctx.Done():
			return kinds, "", context.Cause(ctx)
		}
	}
}

// A publisher with nothing but its permissions publishes, waits, asks and cancels as the contract says; the same from
// an account of its own.
func TestPublisherWaitsAndAsks(t *testing.T) {
	t.Parallel()
	g := guard(t, nil)
	s := newHarness(t, g.as("admin"), vcsim.Options{})
	fastGuests(s.vc)
	s.start(g.service("service")...)
	s.publishes(g.as("publisher"))
	if v := g.violations(); len(v) > 0 {
		t.Errorf("the server refused %q", v)
	}
}

func (s *harness) publishes(url string) {
	s.t.Helper()
	vms := s.vc.VMs()
	if err := s.attempt(url, "publisher", func(ctx context.Context, conn *nats.Conn, js jetstream.JetStream) error {
		kinds, end, err := follow(ctx, conn, js, vms[0], "p-1", `{"vm":"`+vms[0]+`"}`)
		if err != nil || kinds[len(kinds)-1] != "run.succeeded" {
			s.t.Errorf("a run ended as %v: %v", kinds, err)
		}
		for last := ""; last != end; { // it is heard before it is stored
			m, err := conn.RequestWithContext(ctx, "$JS.API.DIRECT.GET.GUESTFLOW_EVENTS.guestflow.events.lab."+
				vms[0]+".>", nil)
			if err != nil {
				return fmt.Errorf("ask for event %s, after %s: %w", end, last, err)
			}
			last = s.read(m).ID
		}
		if kinds, _, err = follow(ctx, conn, js, vms[1], "p-2", `{"vm":"`+vms[1]+`","nonsense":1}`); err != nil ||
			!slices.Equal(kinds, []string{"rejected"}) {
			s.t.Errorf("a wrong request ended as %v: %v", kinds, err)
		}
		for rejection := last("guestflow.rejections.lab." + vms[1]); ; { // this one too
			if err := rejection(ctx, conn, js); err == nil {
				break
			} else if ctx.Err() != nil {
				return fmt.Errorf("ask for the rejection: %w", err)
			}
		}
		s.vc.VM(vms[2]).Configure(func(g *vcsim.Guest) { g.CustomizeTime = time.Hour })
		customize, err := json.Marshal(fullRequest("exit 0"))
		if err != nil {
			return err
		}
		begun, err := conn.SubscribeSync("guestflow.events.lab." + vms[2] + ".customize.started")
		if err != nil {
			return err
		}
		canceled := make(chan error, 1)
		go func() {
			if _, err := begun.NextMsgWithContext(ctx); err != nil {
				canceled <- err
				return
			}
			_, err := js.PublishMsg(ctx, &nats.Msg{Subject: "guestflow.cancels.lab." + vms[2],
				Header: nats.Header{"Content-Type": {"application/cloudevents+json"}},
				Data: []byte(
					`{"specversion":"1.0","id":"p-c","source":"/publisher",` +
						`"type":"io.guestflow.customization.cancel.requested.v1","data":{"vm":"` +
						vms[2] + `","request":{"source":"/publisher","id":"p-3"}}}`)})
			canceled <- err
		}()
		kinds, _, err = follow(ctx, conn, js, vms[2], "p-3", strings.Replace(string(customize), "{", `{"vm":"`+
			vms[2]+`",`, 1))
		if err != nil || kinds[len(kinds)-1] != "run.canceled" {
			s.t.Errorf("a canceled run ended as %v: %v", kinds, err)
		}
		return <-canceled
	}); err != nil {
		s.t.Errorf("as publisher: %v", err)
	}
}

// What permissions cannot hold back: whoever may ask for anything names where the answer goes, and the server stores it
// there. To who has an account of its own, as server.conf has it, the answer stays in that account.
func TestRepliesStayInTheAccount(t *testing.T) {
	const journal = "guestflow.events.lab.vm-9.run.failed"
	// A publisher has the answer to a request go into a journal, and a copy of another VM's event; a subscriber has an
	// event stored a second time.
	publisher := func(ctx context.Context, conn *nats.Conn, js jetstream.JetStream) error {
		for _, subject := range []string{"guestflow.requests.lab.vm-1",
			"$JS.API.DIRECT.GET.GUESTFLOW_EVENTS.guestflow.events.lab.vm-1.>"} {
			if err := conn.PublishRequest(subject, journal, []byte("{}")); err != nil {
				return err
			}
		}
		return last("guestflow.events.lab.vm-1.>")(ctx, conn, js) // answered, so those before it are too
	}
	subscriber := func(prefix string) func(context.Context, *nats.Conn, jetstream.JetStream) error {
		return func(ctx context.Context, conn *nats.Conn, _ jetstream.JetStream) error {
			if err := conn.PublishRequest(prefix+".CONSUMER.MSG.NEXT.GUESTFLOW_EVENTS.audit", journal,
				[]byte("1")); err != nil {
				return err
			}
			js, err := jetstream.NewWithAPIPrefix(conn, prefix)
			if err != nil {
				return err
			}
			return durable(ctx, conn, js)
		}
	}
	for _, variable := range []string{"GUESTFLOW_PASSWORD", "OPERATOR_PASSWORD", "AUDIT_PASSWORD", "LAB_PASSWORD"} {
		t.Setenv(variable, password("service"))
	}
	dir := t.TempDir()
	split := natstest.StartConfig(t, filepath.Join(permissionFiles, "server.conf"), func(o *server.Options) {
		o.Port, o.StoreDir = -1, dir
		o.Users = append(o.Users, &server.User{Username: "admin", Password: password("admin"), Account: accountOf(o,
			"guestflow")})
	})
	shared := guard(t, nil)
	for _, test := range []struct {
		name, admin, publisher, subscriber, prefix string
		stored                                     uint64 // at the end, of 2 events
	}{
		{"one account", shared.as("admin"), shared.as("publisher"), shared.as("subscriber"), "$JS.API", 5},
		{"accounts of their own", as(split, "admin", password("admin")), as(split, "lab", password("service")),
			as(split, "audit", password("service")),
			"guestflow-js", 2},
	} {
		provision(t, test.admin, 2, 30*24*time.Hour)
		s := newHarnessNamed(t, test.admin, "other", vcsim.Options{VMs: 1})
		audit := jetstream.ConsumerConfig{Durable: "audit"}
		if _, err := s.js.CreateConsumer(t.Context(), "GUESTFLOW_EVENTS", audit); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := s.js.Publish(t.Context(), "guestflow.events.lab.vm-1.run.accepted", []byte("{}")); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(s.attempt(test.publisher, "publisher", publisher), s.attempt(test.subscriber,
			"subscriber", subscriber(test.prefix))); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		st, err := s.js.Stream(t.Context(), "GUESTFLOW_EVENTS")
		if err != nil {
			t.Fatal(err)
		}
		var stored uint64 // answers are stored behind what asked for them
		s.until(fmt.Sprintf("%d messages in the journal", test.stored), func() bool {
			info, err := st.Info(t.Context())
			if err == nil {
				stored = info.State.Msgs
			}
			return stored >= test.stored
		})
		if stored != test.stored {
			t.Errorf("%s: %d messages are in the journal, want %d", test.name, stored, test.stored)
		}
		if err := st.Purge(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	g := &guarded{Server: split, t: t}
	s := newHarness(t, as(split, "admin", password("admin")), vcsim.Options{})
	fastGuests(s.vc)
	s.start(append(g.service("service"), "NATS_USER=guestflow")...)
	s.publishes(as(split, "lab", password("service")))
	if v := g.violations(); len(v) > 0 {
		t.Errorf("the server refused %q", v)
	}
}

// accountOf is a user's account.
func accountOf(o *server.Options, user string) *server.Account {
	for _, u := range o.Users {
		if u.Username == user {
			return u.Account
		}
	}
	return nil
}

// as is a server's URL with a name and a password in it.
func as(s *natstest.Server, user, password string) string {
	return strings.Replace(s.URL(), "://", "://"+user+":"+password+"@", 1)
}
