package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/test/bench/fakevc"
)

const (
	vcenterName = "lab"
	source      = "/bench"
	ackWait     = 30 * time.Second
)

// lab is what one measurement works on: a NATS server and a vCenter, both fresh, and streams for the requests.
type lab struct {
	dir      string
	nats     *child
	vcenter  *child
	natsAt   natsReady
	vcAt     vcenterReady
	inFlight int
	conn     *nats.Conn
	js       jetstream.JetStream
	service  string // where guestflow answers HTTP
}

// newLab starts NATS and vCenter. A service works on at most inFlight requests at once.
func newLab(ctx context.Context, inFlight int) (l *lab, err error) {
	l = &lab{inFlight: inFlight}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.dir, err = os.MkdirTemp("", "guestflow-bench-"); err != nil {
		return l, err
	}
	if l.nats, err = startRole(&l.natsAt, "nats", "-dir", filepath.Join(l.dir, "nats")); err != nil {
		return l, err
	}
	if l.vcenter, err = startRole(&l.vcAt, "vcenter"); err != nil {
		return l, err
	}
	if l.conn, err = nats.Connect(l.natsAt.URL); err != nil {
		return l, err
	}
	if l.js, err = jetstream.New(l.conn, jetstream.WithPublishAsyncMaxPending(256),
		jetstream.WithDefaultTimeout(time.Minute)); err != nil { // what asks here may wait, and must not fail
		return l, err
	}
	if err := l.provision(ctx); err != nil {
		return l, err
	}
	return l, l.writeFiles()
}

// close ends what the lab started.
func (l *lab) close() {
	if l.conn != nil {
		l.conn.Close()
	}
	for _, c := range []*child{l.nats, l.vcenter} {
		if c != nil {
			c.kill()
		}
	}
	_ = os.RemoveAll(l.dir)
}

// provision makes the streams and consumers that the service would make.
func (l *lab) provision(ctx context.Context) error {
	conn, err := stream.Connect(ctx, stream.Config{URL: l.natsAt.URL}, zerolog.Nop())
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Provision(ctx, stream.Settings{
		Replicas: 1, EventsMaxAge: 720 * time.Hour, DeadlettersMaxAge: 168 * time.Hour,
		DeadlettersMaxBytes: 256 << 20, QueuePerVM: 2, AckWait: ackWait,
		MaxInFlight: map[string]int{vcenterName: l.inFlight}, Provision: true,
	})
}

// writeFiles writes the secrets and the certificate that the service reads.
func (l *lab) writeFiles() error {
	guest := filepath.Join(l.dir, "secrets", vcenterName, "linux-root")
	if err := os.MkdirAll(guest, 0o700); err != nil {
		return err
	}
	for name, content := range map[string]string{
		filepath.Join(guest, "username"):         fakevc.GuestUsername,
		filepath.Join(guest, "password"):         fakevc.GuestPassword,
		filepath.Join(l.dir, "vcenter-password"): fakevc.Password,
		filepath.Join(l.dir, "vcenter-ca.pem"):   string(l.vcAt.CA),
	} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// startService starts guestflow and waits until it is ready. instance is how it calls itself in its events.
func (l *lab) startService(ctx context.Context, binary, instance string, env ...string) (*child, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(l.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	l.service = "http://" + port
	cmd := exec.Command(binary)
	cmd.Stderr = log
	cmd.Env = append(append(os.Environ(),
		"NATS_URL="+l.natsAt.URL, "HTTP_ADDR="+port,
		"GUESTFLOW_VCENTERS="+vcenterName, "GUESTFLOW_INSTANCE="+instance,
		"GUESTFLOW_SECRETS_DIR="+filepath.Join(l.dir, "secrets"), "GUESTFLOW_ACK_WAIT="+ackWait.String(),
		"VCENTER_LAB_URL="+l.vcAt.URL, "VCENTER_LAB_USERNAME="+fakevc.Username,
		"VCENTER_LAB_PASSWORD_FILE="+filepath.Join(l.dir, "vcenter-password"),
		"VCENTER_LAB_CA_FILE="+filepath.Join(l.dir, "vcenter-ca.pem"),
		"VCENTER_LAB_MAX_IN_FLIGHT="+strconv.Itoa(l.inFlight)), env...)
	c, err := startChild("guestflow", cmd)
	if err != nil {
		return nil, err
	}
	if err := waitFor(ctx, "guestflow to get ready", time.Minute, func() (bool, error) {
		resp, err := http.Get(l.service + "/readyz")
		if err != nil {
			return false, nil
		}
		defer func() { _ = resp.Body.Close() }()
		return resp.StatusCode == http.StatusOK, nil
	}); err != nil {
		c.kill()
		said, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("%w\n%s", err, said)
	}
	return c, nil
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// waitFor looks again and again until fine is true.
func waitFor(ctx context.Context, what string, most time.Duration, fine func() (bool, error)) error {
	late := time.After(most)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := fine(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-late:
			return fmt.Errorf("waited %s for %s", most, what)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// vmID is the VM of a run. The number is of six digits, whatever the run: what was recorded for one VM is then as long
// as what is sent for another.
func vmID(run int) string { return fmt.Sprintf("vm-%06d", firstVM+run) }

const firstVM = 300000

// requestID is the id of the request for a VM.
func requestID(vm string) string { return "request-" + vm }

// publish sends a request for each of so many VMs, the first of which has the given number.
func (l *lab) publish(ctx context.Context, data func(vm string) map[string]any, first, n int) error {
	for i := range n {
		vm := vmID(first + i)
		body, err := json.Marshal(map[string]any{
			"specversion": "1.0", "id": requestID(vm), "source": source, "subject": vm,
			"type": events.Type("requested"), "datacontenttype": "application/json", "data": data(vm),
		})
		if err != nil {
			return err
		}
		if _, err := l.js.PublishMsgAsync(&nats.Msg{
			Subject: events.RequestSubject(vcenterName, vm), Data: body,
			Header: nats.Header{"Content-Type": {"application/cloudevents+json"}},
		}, jetstream.WithStallWait(time.Minute)); err != nil {
			return err
		}
	}
	select {
	case <-l.js.PublishAsyncComplete():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// left is how many requests have not ended.
func (l *lab) left(ctx context.Context) (uint64, error) {
	s, err := l.js.Stream(ctx, events.RequestsStream(vcenterName))
	if err != nil {
		return 0, err
	}
	return s.CachedInfo().State.Msgs, nil
}

// ended waits until no request is left.
func (l *lab) ended(ctx context.Context, c *child, most time.Duration) error {
	return waitFor(ctx, "the end of all runs", most, func() (bool, error) {
		select {
		case <-c.ended:
			said, _ := os.ReadFile(filepath.Join(l.dir, "log"))
			return false, fmt.Errorf("%s has ended: %s", c.name, tail(said))
		default:
		}
		n, err := l.left(ctx)
		return n == 0, err
	})
}

func tail(text []byte) []byte { return text[max(0, len(text)-4000):] }

// count is how many events of a kind, such as run.succeeded, are stored; "" counts all.
func (l *lab) count(ctx context.Context, kind events.Kind) (n int, last time.Time, err error) {
	s, err := l.js.Stream(ctx, events.EventsStream)
	if err != nil {
		return 0, last, err
	}
	if kind == "" {
		state := s.CachedInfo().State
		return int(state.Msgs), state.LastTime, nil
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(events.EventSubject(vcenterName, "*", kind)))
	if err != nil {
		return 0, last, err
	}
	for _, messages := range info.State.Subjects {
		n += int(messages)
	}
	return n, info.State.LastTime, nil
}

// stats are what the vCenter has counted.
func (l *lab) stats(ctx context.Context) (s fakevc.Stats, err error) {
	return s, getJSON(ctx, l.vcAt.Control+"/stats", &s)
}

// tell gives the vCenter an order.
func (l *lab) tell(ctx context.Context, order string, values url.Values) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.vcAt.Control+"/"+order+"?"+values.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// apiCalls is how many requests the JetStream API has had: reads of streams above all, no publish and no delivery.
func (l *lab) apiCalls(ctx context.Context) (int64, error) {
	var answer struct {
		API struct {
			Total int64 `json:"total"`
		} `json:"api"`
	}
	err := getJSON(ctx, l.natsAt.Monitoring+"/jsz", &answer)
	return answer.API.Total, err
}

func getJSON(ctx context.Context, address string, into any) error {
	body, err := fetch(ctx, address)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}
