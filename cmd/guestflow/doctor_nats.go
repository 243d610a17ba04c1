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

// checkStreams compares the streams and consumers with what the service needs.
func (d *doctor) checkStreams(ctx context.Context, conn *client.Client, cfg stream.Config) {
	if len(d.cfg.VCenters) == 0 {
		return
	}
	if _, _, err := conn.Clock(ctx, events.EventsStream); errors.As(err, new(*client.PermissionError)) {
		d.report(skipped, "", "streams: %v", err)
		return
	}
	service, err := stream.Connect(ctx, cfg, zerolog.Nop())
	if err != nil {
		d.report(broken, "", "streams: %v", err)
		return
	}
	defer service.Close()
	want := d.cfg.Streams()
	want.Provision = false // only compare

	running := false
	for _, v := range d.cfg.VCenters {
		t, err := conn.Consumers(ctx, v.Name)
		running = running || err == nil && t.OpenPulls > 0
	}
	timed, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = service.Provision(timed, want)
	var differ *stream.MismatchError
	switch {
	case err == nil:
		d.report(passed, "", "streams and consumers exist and fit the settings")
	case !errors.As(err, &differ):
		d.report(broken,
			"see whether JetStream answers (nats account info), and whether all servers of the cluster are up",
			"streams: %v", err)
		return
	default:
		d.reportDifferences(differ.Differences, running)
	}
	d.checkTroubles(timed, service)
}

// checkTroubles reports what the service itself would say of NATS, except what reportDifferences has reported.
func (d *doctor) checkTroubles(ctx context.Context, service *stream.Conn) {
	all, err := service.Troubles(ctx)
	if err != nil {
		d.report(broken,
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
			v = warning
		}
		d.report(v, t.Cure, "%s", t.What)
	}
}

// reportDifferences reports what is wrong with streams and consumers. All that the service creates at its start is one
// finding.
func (d *doctor) reportDifferences(all []string, running bool) {
	var toMake []string
	for _, text := range all {
		what, _, absent := strings.Cut(text, ": is missing")
		switch {
		case absent && d.cfg.Service.Provision:
			toMake = append(toMake, what)
		case absent:
			d.report(broken, "make it, or let the service do so with GUESTFLOW_PROVISION=true", "%s", text)
		case strings.HasPrefix(text, "the server"):
			d.report(broken, "update nats-server", "%s", text)
		default:
			d.report(
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
		d.report(
			broken,
			"the service runs, and makes them again within seconds: look once more; where they are missing still, "+
				"its log says why. What was in them is gone",
			"missing: %s",
			missing,
		)
	default:
		d.report(
			warning,
			"start the service: it makes them; where it was started and has ended, the end of its log says why, such "+
				"as a JetStream without file storage (max_file_store)",
			"not there yet: %s",
			missing,
		)
	}
}

// checkStorage reports an account without storage left. That of the server as a whole is not shown to its clients:
// checkService reports what the service waits for.
func (d *doctor) checkStorage(ctx context.Context, conn *client.Client) {
	used, most, err := conn.Storage(ctx)
	const cure = "raise the account's limit (max_file), or remove what is not needed (nats stream report)"
	switch {
	case err != nil || most < 0: // no limit of its own
	case most == 0:
		d.report(broken, "give the account file storage (max_file)",
			"this account has no file storage in JetStream: guestflow's streams cannot be made, and take nothing")
	case float64(used) > 0.95*float64(most):
		d.report(broken, cure,
			"JetStream has no storage left for this account: %d of %d bytes are used, and no event can be stored", used,
			most)
	}
}

// readyTimeout bounds the request to the service.
const readyTimeout = 3 * time.Second

// checkService asks the service on this host, if there is one, whether it is ready.
func (d *doctor) checkService(ctx context.Context) {
	host, port, err := net.SplitHostPort(d.cfg.Service.HTTPAddr)
	if err != nil || port == "0" {
		return
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	url := "http://" + net.JoinHostPort(host, port) + "/readyz"
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return
	}
	plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := plain.Do(req)
	if err != nil {
		d.report(skipped, "run the doctor where the service runs, with its HTTP_ADDR",
			"the state of the service: nothing answers at %s", url)
		return
	}
	defer resp.Body.Close()
	const most = 64 << 10
	body, err := io.ReadAll(io.LimitReader(resp.Body, most))
	text := strings.TrimSpace(string(body))
	switch {
	case err != nil:
		d.report(skipped, "", "the state of the service: %s: %v", url, err)
	case resp.StatusCode == http.StatusOK && strings.HasPrefix(text, "ok"): // its warnings are said above
		d.report(passed, "", "the service at %s is ready", url)
	case resp.StatusCode == http.StatusServiceUnavailable && strings.HasPrefix(text, "not ready: "):
		for line := range strings.Lines(strings.TrimPrefix(text, "not ready: ")) {
			what, cure, _ := strings.Cut(strings.TrimSpace(line), stream.CureFollows)
			d.report(broken, cure, "the service at %s is not ready: %s", url, what)
		}
	default:
		d.report(skipped, "", "the state of the service: something else answers at %s (%s)", url, resp.Status)
	}
}

// checkConsumers reports whether a service takes the requests for a vCenter.
func (d *doctor) checkConsumers(ctx context.Context, conn *client.Client, vcenter string) {
	t, err := conn.Consumers(ctx, vcenter)
	count := fmt.Sprintf("waiting: %d, in progress: %d", t.Pending, t.AckPending)
	switch {
	case err != nil: // missing or refused: said above
		return
	case t.OpenPulls == 0:
		if t.AckPending > 0 {
			count += " (of a service that is gone: another one takes it over)"
		}
		d.report(warning, "start the service; if it runs, see its log",
			"no service takes the requests for %s; %s", vcenter, count)
	case t.Paused: // said above
	default:
		d.report(passed, "", "a service takes the requests for %s; open pulls: %d, %s", vcenter, t.OpenPulls, count)
		d.checkHeartbeats(ctx, conn, vcenter)
	}
	d.checkQueue(ctx, conn, vcenter, t)
}

// checkHeartbeats reports delivered messages on which no service works: a service sends heartbeats for its messages.
func (d *doctor) checkHeartbeats(ctx context.Context, conn *client.Client, vcenter string) {
	for _, durable := range []string{events.RequestsConsumer(vcenter), events.CancelsConsumer(vcenter)} {
		n, err := conn.WithoutHeartbeat(ctx, vcenter, durable)
		switch {
		case errors.As(err, new(*client.PermissionError)):
			d.report(skipped, "compare guestflow_queue_requests with guestflow_messages_in_hand "+
				"(alert GuestflowHeldByNobody), or let this user subscribe to $JS.ACK.>",
				"whether a service works on the messages that %s has delivered: %v", durable, err)
			return
		case err == nil && n > 0:
			d.report(warning, "stop whatever else takes messages from that consumer (nats consumer next, "+
				"a copy of the service with another NATS user); see docs/operate/runbooks.md#guestflowheldbynobody",
				"%s has delivered %d messages on which no service works: "+
					"each counts toward MAX_IN_FLIGHT until it is delivered again", durable, n)
		}
	}
}

// checkQueue reports the sources of the queued requests, and VMs whose last event cannot be read.
func (d *doctor) checkQueue(ctx context.Context, conn *client.Client, vcenter string, t client.Consumers) {
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
		v, cure := passed, ""
		if t.Pending > 0 && 5*sources[0].Requests > 4*total {
			v, cure = warning, "requests are taken in their order, whosever they are: see "+
				"docs/operate/runbooks.md#guestflowqueueofonesource"
		}
		d.report(v, cure, "sources of the %d requests in the queue of %s: %s", total, vcenter, strings.Join(list, ", "))
	}
	depths, _, err := conn.QueueDepths(ctx, vcenter)
	if err != nil {
		return
	}
	for vm := range depths {
		var unreadable *client.UnreadableError
		if _, err := conn.LastEvent(ctx, vcenter, vm); errors.As(err, &unreadable) {
			d.report(
				broken,
				fmt.Sprintf("see who may publish there (docs/operate/nats-permissions.md), then nats stream rmm %s %d",
					events.EventsStream, unreadable.Seq),
				"the requests for %s cannot be handled, and are delivered again and again: %v",
				vm,
				err,
			)
		}
	}
}
