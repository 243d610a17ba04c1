package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/client"
	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
)

// streams holds the streams and consumers against what the service needs.
func (d *doctor) streams(ctx context.Context, conn *client.Client, cfg stream.Config) {
	if len(d.cfg.VCenters) == 0 {
		return
	}
	if _, _, err := conn.Clock(ctx, events.EventsStream); errors.As(err, new(*client.PermissionError)) {
		d.find(skipped, "", "streams: %v", err)
		return
	}
	service, err := stream.Connect(ctx, cfg, zerolog.Nop())
	if err != nil {
		d.find(broken, "", "streams: %v", err)
		return
	}
	defer service.Close()
	s := d.cfg.Service
	want := stream.Settings{
		Replicas:            s.StreamReplicas,
		EventsMaxAge:        s.EventsMaxAge,
		EventsMaxBytes:      s.EventsMaxBytes,
		DeadlettersMaxAge:   s.DeadlettersMaxAge,
		DeadlettersMaxBytes: s.DeadlettersMaxBytes,
		QueuePerVM:          s.QueuePerVM,
		AckWait:             s.AckWait,
		MaxInFlight:         map[string]int{},
	}
	running := false
	for _, v := range d.cfg.VCenters {
		want.MaxInFlight[v.Name] = v.MaxInFlight
		t, err := conn.Consumers(ctx, v.Name)
		running = running || err == nil && t.OpenPulls > 0
	}
	timed, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = service.Provision(timed, want)
	var differ *stream.MismatchError
	switch {
	case err == nil:
		d.find(fine, "", "streams and consumers are there and fit")
	case !errors.As(err, &differ):
		d.find(broken,
			"see whether JetStream answers (nats account info), and whether all servers of the cluster are up",
			"streams: %v", err)
		return
	default:
		d.differences(differ.Differences, running)
	}
	d.troubles(timed, service)
}

// troubles are what the service itself would tell of NATS. That something is missing or does not fit has been said.
func (d *doctor) troubles(ctx context.Context, service *stream.Conn) {
	all, err := service.Troubles(ctx)
	if err != nil {
		d.find(broken,
			"see whether JetStream answers (nats account info), and whether all servers of the cluster are up", "%v",
			err)
		return
	}
	said := []stream.Reason{stream.StreamMissing, stream.ConsumerMissing, stream.Unfit}
	for _, t := range all {
		if slices.Contains(said, t.Reason) {
			continue
		}
		v := broken
		if t.Reason == stream.SmallStore {
			v = odd
		}
		d.find(v, t.Cure, "%s", t.What)
	}
}

// differences are what keeps the streams and consumers from fitting. What the service makes when it starts is one
// finding.
func (d *doctor) differences(all []string, running bool) {
	var toMake []string
	for _, text := range all {
		what, _, absent := strings.Cut(text, ": is missing")
		switch {
		case absent && d.cfg.Service.Provision:
			toMake = append(toMake, what)
		case absent:
			d.find(broken, "make it, or let the service do so with GUESTFLOW_PROVISION=true", "%s", text)
		case strings.HasPrefix(text, "the server"):
			d.find(broken, "update nats-server", "%s", text)
		default:
			d.find(
				broken,
				"the service raises the limits of what it made itself when it starts; what an administrator made is "+
					"changed with nats stream edit, "+
					"nats consumer edit, or made anew",
				"%s",
				text,
			)
		}
	}
	switch missing := strings.Join(toMake, ", "); {
	case len(toMake) == 0:
	case running:
		d.find(
			broken,
			"the service runs, and makes them again within seconds: look once more; where they are missing still, "+
				"its log says why. What was in them is gone",
			"missing: %s",
			missing,
		)
	default:
		d.find(
			odd,
			"start the service: it makes them; where it was started and has ended, the end of its log says why, such "+
				"as a JetStream without file storage (max_file_store)",
			"not there yet: %s",
			missing,
		)
	}
}

// storage tells where the account has no room left, as far as the server says. What a server as a whole has only the
// service's own waits show.
func (d *doctor) storage(ctx context.Context, conn *client.Client) {
	used, most, err := conn.Storage(ctx)
	const cure = "raise the account's limit (max_file), or remove what is not needed (nats stream report)"
	switch {
	case err != nil || most < 0: // no limit of its own
	case most == 0:
		d.find(broken, "give the account file storage (max_file)",
			"this account has no file storage in JetStream: guestflow's streams cannot be made, and take nothing")
	case float64(used) > 0.95*float64(most):
		d.find(broken, cure,
			"JetStream has no storage left for this account: %d of %d bytes are used, and no event can be stored", used,
			most)
	}
}

// readyTime bounds the question to the service that runs here.
const readyTime = 3 * time.Second

// service asks the service that runs on this host, if one does, what it waits for itself.
func (d *doctor) service(ctx context.Context) {
	host, port, err := net.SplitHostPort(d.cfg.Service.HTTPAddr)
	if err != nil || port == "0" {
		return
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	url := "http://" + net.JoinHostPort(host, port) + "/readyz"
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return
	}
	plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := plain.Do(req)
	if err != nil {
		d.find(skipped, "run the doctor where the service runs, with its HTTP_ADDR",
			"what the service itself waits for: none answers at %s", url)
		return
	}
	defer resp.Body.Close()
	const most = 64 << 10
	body, err := io.ReadAll(io.LimitReader(resp.Body, most))
	text := strings.TrimSpace(string(body))
	switch {
	case err != nil:
		d.find(skipped, "", "what the service itself waits for: %s: %v", url, err)
	case resp.StatusCode == http.StatusOK && strings.HasPrefix(text, "ok"): // its warnings are said above
		d.find(fine, "", "the service at %s is ready", url)
	case resp.StatusCode == http.StatusServiceUnavailable && strings.HasPrefix(text, "not ready: "):
		for line := range strings.Lines(strings.TrimPrefix(text, "not ready: ")) {
			what, cure, _ := strings.Cut(strings.TrimSpace(line), stream.CureFollows)
			d.find(broken, cure, "the service at %s is not ready: %s", url, what)
		}
	default:
		d.find(skipped, "", "what the service itself waits for: something else answers at %s (%s)", url, resp.Status)
	}
}

// takers tells what becomes of a vCenter's requests.
func (d *doctor) takers(ctx context.Context, conn *client.Client, vcenter string) {
	t, err := conn.Consumers(ctx, vcenter)
	count := fmt.Sprintf("not taken yet: %d, in hand: %d", t.Pending, t.AckPending)
	switch {
	case err != nil: // missing or refused: said above
		return
	case t.OpenPulls == 0:
		if t.AckPending > 0 {
			count += " (of a service that is gone: another one takes it over)"
		}
		d.find(odd, "start the service; where it runs, see its log", "nobody takes requests for %s; %s", vcenter, count)
	case t.Paused: // said above
	default:
		d.find(fine, "", "requests for %s are being taken; open pulls: %d, %s", vcenter, t.OpenPulls, count)
		d.held(ctx, conn, vcenter)
	}
	d.queue(ctx, conn, vcenter, t)
}

// held reports whether somebody works on what was handed out: whoever holds a message says so again and again.
func (d *doctor) held(ctx context.Context, conn *client.Client, vcenter string) {
	for _, durable := range []string{events.RequestsConsumer(vcenter), events.CancelsConsumer(vcenter)} {
		n, err := conn.WithoutHeartbeat(ctx, vcenter, durable)
		switch {
		case errors.As(err, new(*client.PermissionError)):
			d.find(
				skipped,
				"compare guestflow_queue_requests with guestflow_messages_in_hand (alert GuestflowHeldByNobody), or "+
					"let this user subscribe to $JS.ACK.>",
				"whether somebody holds what %s has handed out: %v",
				durable,
				err,
			)
			return
		case err == nil && n > 0:
			d.find(
				odd,
				"stop whatever else takes messages from that consumer (nats consumer next, a copy of the service on "+
					"another NATS user); see docs/operate/runbooks.md#guestflowheldbynobody",
				"%s has handed out %d that nobody says to be at work on: each takes a place of MAX_IN_FLIGHT until "+
					"it is delivered again",
				durable,
				n,
			)
		}
	}
}

// queue tells who fills the queue, where there is one, and which VMs stand still for an event that cannot be read.
func (d *doctor) queue(ctx context.Context, conn *client.Client, vcenter string, t client.Consumers) {
	sources, total, err := conn.QueueSources(ctx, vcenter)
	if err != nil || total == 0 {
		return
	}
	const worthAWord = 10
	if total >= worthAWord {
		var list []string
		for _, s := range sources[:min(len(sources), 3)] {
			list = append(list, fmt.Sprintf("%s %d", s.Source, s.Requests))
		}
		v, cure := fine, ""
		if t.Pending > 0 && 5*sources[0].Requests > 4*total {
			v, cure = odd, "requests are taken in their order, whosever they are: see "+
				"docs/operate/runbooks.md#guestflowqueueofonesource"
		}
		d.find(v, cure, "who fills the queue of %s, of %d requests: %s", vcenter, total, strings.Join(list, ", "))
	}
	depths, _, err := conn.QueueDepths(ctx, vcenter)
	if err != nil {
		return
	}
	for vm := range depths {
		var unreadable *client.UnreadableError
		if _, err := conn.LastEvent(ctx, vcenter, vm); errors.As(err, &unreadable) {
			d.find(
				broken,
				fmt.Sprintf("see who may publish there (docs/operate/nats-permissions.md), then nats stream rmm %s %d",
					events.EventsStream, unreadable.Seq),
				"%s stands still, its requests come round again and again: %v",
				vm,
				err,
			)
		}
	}
}
