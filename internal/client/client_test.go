package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/guestflow/guestflow/internal/client"
	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/events/stream/natstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// prefixes are the inbox prefixes of the roles in deploy/nats.
var prefixes = map[string]string{
	"service-fixed": "_INBOX_guestflow",
	"publisher":     "_INBOX_publisher_lab",
	"operator":      "_INBOX_operator",
}

// guarded is a server whose users are the roles of deploy/nats, and admin, who may do everything. edit (may be nil)
// changes what was read.
func guarded(t *testing.T, edit func(*server.Options)) (login func(user string) stream.Config) {
	t.Helper()
	users := []natstest.User{{Name: "admin", Password: "admin"}}
	for role := range prefixes {
		users = append(users, natstest.User{Name: role, Password: role,
			Permissions: filepath.Join("..", "..", "deploy", "nats", role+".conf")})
	}
	s, dir := natstest.StartUsers(t, users, edit), t.TempDir()
	return func(user string) stream.Config {
		password := filepath.Join(dir, user+".password")
		if err := os.WriteFile(password, []byte(user+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return stream.Config{URL: s.URL(), User: user, PasswordFile: password, InboxPrefix: prefixes[user]}
	}
}

// provision makes the streams as the service does, and returns its connection.
func provision(t *testing.T, cfg stream.Config) *stream.Conn {
	t.Helper()
	conn, err := stream.Connect(t.Context(), cfg, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	if err := conn.Provision(
		testContext(t),
		stream.Settings{EventsMaxAge: 720 * time.Hour, DeadlettersMaxAge: 168 * time.Hour, QueuePerVM: 2,
			AckWait: 30 * time.Second, MaxInFlight: map[string]int{"lab": 4}, Provision: true},
	); err != nil {
		t.Fatal(err)
	}
	return conn
}

func dial(t *testing.T, cfg stream.Config) *client.Client {
	t.Helper()
	c, err := client.Dial(cfg, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// request is a check of vm-42.
func request(t *testing.T, vcenter, id string) *client.Message {
	t.Helper()
	m, err := client.New(vcenter, []byte(`{"vm":"vm-42"}`), events.RequestRef{Source: "/a", ID: id})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// teller writes the journal of one run as the service does.
type teller struct {
	t       *testing.T
	journal *stream.Journal
	run     events.Run
	after   uint64
}

func tell(t *testing.T, conn *stream.Conn, m *client.Message, mode string) *teller {
	now := time.Now()
	return &teller{
		t:       t,
		journal: stream.NewJournal(conn, mode),
		run: events.Run{ID: m.Run, VCenter: m.VCenter, VM: m.VM, Request: &m.Ref, Status: events.StatusRunning,
			AcceptedAt: &now, Requested: m.Requested, Check: &events.Check{State: events.Pending}},
	}
}

func (w *teller) says(k events.Kind) {
	w.t.Helper()
	w.run.N++
	if k.Last() {
		w.run.Status = events.Status(strings.TrimPrefix(string(k), "run."))
	}
	var err error
	if w.after, err = w.journal.Append(testContext(w.t), w.after, fmt.Sprint(w.run.ID, w.run.N), k,
		events.Attributes{CausationID: "x"}, &w.run); err != nil {
		w.t.Fatal(err)
	}
	w.run.Requested = nil
}

// A publisher may not read the stream: it hears core NATS, and believes what ends a run only where the stream has it.
func TestPublisherWaits(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	login := guarded(t, nil)
	service := provision(t, login("admin"))
	c := dial(t, login("publisher"))
	m := request(t, "lab", "1")
	w, err := c.Await(ctx, m, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	seq, err := c.Publish(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	// What the stream refuses is heard all the same.
	admin, err := nats.Connect(login("admin").URL, nats.UserInfo("admin", "admin"))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	stale := nats.NewMsg(events.EventSubject("lab", "vm-42", events.RunSucceeded))
	stale.Header.Set("Nats-Expected-Last-Sequence", "77")
	stale.Data = fmt.Appendf(
		nil,
		`{"specversion":"1.0","id":"%s.9","source":"/guestflow/lab","type":%q,"datacontenttype":"application/json",
"data":{"run":%q,"n":9,"vcenter":"lab","vm":"vm-42","status":"succeeded"}}`,
		m.Run,
		events.Type(events.RunSucceeded),
		m.Run,
	)
	if answer, err := admin.RequestMsg(stale, time.Minute); err != nil ||
		!strings.Contains(string(answer.Data), "10071") {
		t.Fatalf("the stale event: %s, %v", answer.Data, err)
	}
	told := tell(t, service, m, events.Structured)
	told.says(events.RunAccepted)
	var seen []events.Kind
	done := make(chan error, 1)
	var end *client.Event
	go func() {
		var err error
		end, err = w.UntilEnd(ctx, seq, func(e *client.Event) { seen = append(seen, e.Kind) })
		done <- err
	}()
	told.says(events.CheckCompleted)
	told.says(events.RunFailed)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]events.Kind{events.RunAccepted, events.CheckCompleted, events.RunFailed}, seen); diff != "" ||
		end.Kind != events.RunFailed {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// What has ended before is not waited for.
	again, err := c.Await(ctx, m, true)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Stop()
	if end, err := again.UntilEnd(ctx, 99, func(*client.Event) {}); err != nil || end.Kind != events.RunFailed {
		t.Errorf("again: %v, %v", end, err)
	}
}

// What NATS does not permit is named at once, and not after a time-out.
func TestRefusalsAreNamed(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	login := guarded(t, nil)
	provision(t, login("admin"))
	publisher, operator := dial(t, login("publisher")), dial(t, login("operator"))
	for name, call := range map[string]struct {
		subject string
		do      func() error
	}{
		"publish": {"guestflow.requests.prod.vm-42", func() error {
			_, err := publisher.Publish(ctx, request(t, "prod", "1"))
			return err
		}},
		"list": {"$JS.API.STREAM.INFO.GUESTFLOW_EVENTS", func() error {
			_, err := publisher.ListVMs(ctx, "lab")
			return err
		}},
		"last": {"$JS.API.DIRECT.GET.GUESTFLOW_EVENTS.guestflow.events.prod.vm-1.>", func() error {
			_, err := publisher.LastEvent(ctx, "prod", "vm-1")
			return err
		}},
		"core": {"guestflow.events.>", func() error {
			_, err := publisher.FollowCore(ctx, client.Filters("", ""))
			return err
		}},
		"names": {"$JS.API.STREAM.NAMES", func() error {
			_, err := publisher.VCenters(ctx)
			return err
		}},
		"letters": {"$JS.API.STREAM.MSG.GET.GUESTFLOW_DEADLETTERS", func() error {
			_, err := publisher.DeadLetters(ctx, "", "")
			return err
		}},
		"jetstream": {"$JS.API.INFO", func() error { return operator.JetStream(ctx) }},
	} {
		began := time.Now()
		err := call.do()
		var refused *client.PermissionError
		if !errors.As(err, &refused) || refused.Subject != call.subject {
			t.Errorf("%s: %v, want a refusal of %s", name, err, call.subject)
		}
		t.Logf("%s: %v after %s", name, err, time.Since(began))
	}
	if e, err := publisher.LastEvent(ctx, "lab", "vm-1"); e != nil || err != nil {
		t.Errorf("publisher: %v, %v", e, err)
	}
	if e, err := operator.LastEvent(ctx, "lab", "vm-1"); e != nil || err != nil {
		t.Errorf("operator: %v, %v", e, err)
	}
	if s, err := publisher.Status(ctx, "lab", "vm-1"); err != nil || s.Unfinished != -1 {
		t.Errorf("publisher: %+v, %v", s, err)
	}
	if s, err := operator.Status(ctx, "lab", "vm-1"); err != nil || s.Unfinished != 0 || s.Limit != 2 {
		t.Errorf("operator: %+v, %v", s, err)
	}
}

// The service's role has all permissions that it needs. Each one that is taken away is found, if it can be tried
// without publishing something that subscribers receive.
func TestMissingPermissions(t *testing.T) {
	t.Parallel()
	const (
		pull = "$JS.API.CONSUMER.MSG.NEXT.GUESTFLOW_REQUESTS_lab.guestflow-requests-lab"
		ack  = "$JS.ACK.GUESTFLOW_REQUESTS_lab.guestflow-requests-lab."

		cancels, letters = "guestflow.cancels.lab.*", "guestflow.deadletters.lab.*"
	)
	without := func(subjects []string, taken ...string) []string {
		return slices.DeleteFunc(subjects, func(s string) bool { return slices.Contains(taken, s) })
	}
	heardByOthers := []string{letters, "guestflow.events.lab.>", "guestflow.rejections.lab.*"}
	for _, test := range []struct {
		name          string
		lacks, untold []string
		edit          func(p *server.Permissions)
	}{
		{"whole", nil, heardByOthers, func(*server.Permissions) {}},
		{"less", []string{pull, ack + "0.0.0.0.0", cancels}, heardByOthers, func(p *server.Permissions) {
			p.Publish.Allow = without(p.Publish.Allow, pull, ack+">")
			p.Subscribe.Allow = without(p.Subscribe.Allow, cancels)
		}},
		{"told", []string{letters, "guestflow.events.lab.*.run.*"}, nil, func(p *server.Permissions) {
			p.Publish.Allow = append(without(p.Publish.Allow, letters), "$SYS.REQ.USER.INFO")
			p.Subscribe.Deny = []string{"guestflow.events.*.vm-1.>"}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			login := guarded(t, func(o *server.Options) {
				for _, u := range o.Users {
					if u.Username == "service-fixed" {
						test.edit(u.Permissions)
					}
				}
			})
			provision(t, login("admin"))
			c := dial(t, login("service-fixed"))
			lacking, untried, err := c.MissingPermissions(testContext(t), c.ServicePermissions([]string{"lab"}, false))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range lacking {
				got = append(got, p.Subject)
			}
			slices.Sort(got)
			slices.Sort(untried)
			slices.Sort(test.lacks)
			if diff := cmp.Diff(test.lacks, got); diff != "" {
				t.Errorf("lacking (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.untold, untried); diff != "" {
				t.Errorf("untried (-want +got):\n%s", diff)
			}
		})
	}
}

// A feed has every event once, in order, in either form, also across a restart of the server.
func TestFollowAcrossARestart(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	nc := natstest.StartServer(t)
	service := provision(t, stream.Config{URL: nc.URL()})
	c := dial(t, stream.Config{URL: nc.URL()})
	feed, err := c.Follow(ctx, client.Filters("lab", "vm-42"), client.Start{})
	if err != nil {
		t.Fatal(err)
	}
	defer feed.Stop()
	told := tell(t, service, request(t, "lab", "1"), events.Binary)
	next := func(n int) {
		t.Helper()
		e, err := feed.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var line struct{ Data events.Run }
		if e.Run.N != n || e.ID() != fmt.Sprintf("%s.%d", e.Run.ID, n) || json.Unmarshal(e.Line, &line) != nil ||
			line.Data.N != n {
			t.Fatalf("event %s, n %d, want %d: %s", e.ID(), e.Run.N, n, e.Line)
		}
	}
	told.says(events.RunAccepted)
	told.says(events.CheckCompleted)
	next(1)
	next(2)
	nc.Stop()
	if err := nc.Start(); err != nil {
		t.Fatal(err)
	}
	told.says(events.RunSucceeded)
	next(3)
	if s, err := c.ListVMs(ctx, "lab"); err != nil || len(s) != 1 || s[0].Last.Kind != events.RunSucceeded {
		t.Errorf("fleet: %v, %v", s, err)
	}
}

// What the stream says to a publish is told with the way out.
func TestPublishAnswers(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	url := natstest.StartServer(t).URL()
	provision(t, stream.Config{URL: url})
	c := dial(t, stream.Config{URL: url})
	const full = "vm-42 has as many unfinished requests as it may have (GUESTFLOW_QUEUE_PER_VM)"
	for i, says := range []string{"", "", full} {
		_, err := c.Publish(ctx, request(t, "lab", fmt.Sprint(i)))
		if got := fmt.Sprint(err); says == "" && err != nil || !strings.Contains(got, says) {
			t.Errorf("publish %d: %v", i, err)
		}
	}
	big := request(t, "lab", "1")
	big.Subject, big.Data = events.RequestSubject("lab", "vm-43"), []byte(strings.Repeat("x", 300<<10))
	if _, err := c.Publish(ctx, big); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("too large: %v", err)
	}
}

func TestAway(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	nc := natstest.StartServer(t)
	provision(t, stream.Config{URL: nc.URL()})
	said := make(chan string, 16)
	c, err := client.Dial(stream.Config{URL: nc.URL()},
		client.Options{MaxOutage: time.Second, Notice: func(s string) { said <- s }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	feed, err := c.Follow(ctx, client.Filters("", ""), client.Start{})
	if err != nil {
		t.Fatal(err)
	}
	defer feed.Stop()
	nc.Stop()
	if _, err := feed.Next(ctx); !errors.Is(err, client.ErrAway) {
		t.Errorf("the feed ended with %v", err)
	}
	if text := <-said; !strings.Contains(text, "lost the connection") {
		t.Errorf("said %q", text)
	}
	if _, err := c.Publish(ctx, request(t, "lab", "1")); err == nil || !strings.Contains(err.Error(), "NATS") {
		t.Errorf("publish: %v", err)
	}
}

func TestDialSaysWhatToDo(t *testing.T) {
	t.Parallel()
	login := guarded(t, nil)
	wrong := login("publisher")
	wrong.User = "admin"
	// An address at which nobody listens any more.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "nats://admin:hunter2@" + l.Addr().String()
	_ = l.Close()
	for _, test := range []struct {
		cfg  stream.Config
		says string
	}{
		{wrong, "does not accept this login"},
		{stream.Config{URL: nobody}, "Set NATS_URL"},
		{stream.Config{URL: wrong.URL, CredsFile: "none.creds"}, "NATS_CREDS_FILE"},
		{stream.Config{URL: wrong.URL, User: "admin"}, "set both NATS_USER and NATS_PASSWORD_FILE"},
		{stream.Config{URL: wrong.URL, NKeyFile: "none.nk"}, "NATS_NKEY_FILE"},
		{stream.Config{URL: wrong.URL, CAFile: "none.pem"}, "NATS_CA_FILE"},
		{stream.Config{URL: wrong.URL, CertFile: "cert.pem"}, "set both NATS_CERT_FILE and NATS_KEY_FILE"},
	} {
		c, err := client.Dial(test.cfg, client.Options{})
		if err == nil {
			c.Close()
			t.Errorf("%s: connected", test.says)
			continue
		}
		if !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v, want %q and no password", err, test.says)
		}
	}
}

// The stream drops what comes with a Nats-Msg-Id that it has seen, whoever sent that: only what is one's own may be
// taken for stored.
func TestPublishBesideAForeignMsgID(t *testing.T) {
	t.Parallel()
	cfg := stream.Config{URL: natstest.StartServer(t).URL()}
	conn := provision(t, cfg)
	c := dial(t, cfg)
	ctx := testContext(t)
	with := func(m *client.Message) *client.Message {
		m.Header.Set("Nats-Msg-Id", "m1")
		return m
	}
	if _, err := c.Publish(ctx, with(request(t, "lab", "1"))); err != nil {
		t.Fatal(err)
	}
	if seq, err := c.Publish(ctx,
		with(request(t, "lab", "2"))); err == nil || !strings.Contains(err.Error(), "Nats-Msg-Id") ||
		!strings.Contains(err.Error(), "another one") {
		t.Errorf("another request under that ID: %d, %v", seq, err)
	}
	repeat := with(request(t, "lab", "3"))
	repeat.Header.Set("Nats-Msg-Id", "m3")
	third, err := c.Publish(ctx, repeat)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.Publish(ctx, repeat); err != nil || again != third {
		t.Errorf("the same message again: %d, %v; want %d", again, err, third)
	}
	// Its run has ended, and its message is gone: the journal knows it.
	tell(t, conn, repeat, "structured").says(events.RunSucceeded)
	admin, err := nats.Connect(cfg.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	js, err := jetstream.New(admin)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(ctx, events.RequestsStream("lab"))
	if err == nil {
		err = stream.DeleteMsg(ctx, third)
	}
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.Publish(ctx, repeat); err != nil || again != third {
		t.Errorf("the same message after its end: %d, %v", again, err)
	}
}

// A run whose last event is stored waits for no turn, although its request leaves the queue only when it is
// acknowledged.
func TestEndedRequestIsNotQueued(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	login := guarded(t, nil)
	service := provision(t, login("admin"))
	publisher, operator := dial(t, login("publisher")), dial(t, login("operator"))
	first, second := request(t, "lab", "1"), request(t, "lab", "2")
	for _, m := range []*client.Message{first, second} {
		if _, err := publisher.Publish(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	told := tell(t, service, first, events.Structured)
	for _, row := range []struct {
		after  events.Kind
		queued []string
	}{
		{events.RunAccepted, []string{first.Run, second.Run}},
		{events.RunFailed, []string{second.Run}},
	} {
		told.says(row.after)
		s, err := operator.Status(ctx, "lab", "vm-42")
		if err != nil {
			t.Fatal(err)
		}
		var queued []string
		for _, q := range s.Queue {
			queued = append(queued, q.RunID)
		}
		if diff := cmp.Diff(row.queued, queued); diff != "" || s.Unfinished != len(row.queued) {
			t.Errorf("after %s: %d unfinished, (-want +got):\n%s", row.after, s.Unfinished, diff)
		}
	}
}
