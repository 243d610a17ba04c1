package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/test/bench/fakevc"
)

// loop is the bare loop: for each request it makes the calls of a recorded run and stores its events, and decides
// nothing. It is what the work costs in itself.
type loop struct {
	js      jetstream.JetStream
	vcenter string // URL
	token   string
	http    *http.Client
	steps   []loopStep
}

// loopStep is one line of the script.
type loopStep struct {
	method     string // of a call; "" for an event
	path, body template
	id         template // of an event: Nats-Msg-Id
	header     nats.Header
}

// loopConfig is what the loop is started with, as JSON in a file.
type loopConfig struct {
	NATS, VCenter string
	CA            []byte
	InFlight      int
	Script        script
}

// loopRole is a process that runs the loop.
func loopRole() error {
	flags := flag.NewFlagSet("loop", flag.ExitOnError)
	file := flags.String("config", "", "a file of JSON")
	if err := flags.Parse(os.Args[2:]); err != nil {
		return err
	}
	text, err := os.ReadFile(*file)
	if err != nil {
		return err
	}
	var c loopConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return err
	}
	l, err := newLoop(c)
	if err != nil {
		return err
	}
	go func() {
		fmt.Fprintln(os.Stderr, "bench loop:", l.take(context.Background(), c.InFlight))
		os.Exit(1)
	}()
	return isReady(struct{}{})
}

func newLoop(c loopConfig) (*loop, error) {
	conn, err := nats.Connect(c.NATS)
	if err != nil {
		return nil, err
	}
	l := &loop{vcenter: c.VCenter}
	if l.js, err = jetstream.New(conn); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.CA)
	l.http = &http.Client{Transport: &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		MaxConnsPerHost:     connections,
		MaxIdleConnsPerHost: connections,
	}}

	number := strings.TrimPrefix(c.Script.VM, "vm-")
	of := func(text string) template { return newTemplate(text, number, c.Script.Run) }
	for _, line := range c.Script.Lines {
		s := loopStep{method: line.Method, path: of(line.Path), body: of(line.Body), header: line.Header}
		s.id = of(line.Header.Get(jetstream.MsgIDHeader))
		l.steps = append(l.steps, s)
	}
	if err := l.login(); err != nil {
		return nil, err
	}
	return l, l.dial()
}

// connections is how many the loop has to vCenter: as many as guestflow has for its reads.
const connections = 64

// dial opens the connections: the loop's own handshakes are of no run.
func (l *loop) dial() error {
	var calls sync.WaitGroup
	failed := make(chan error, connections)
	for range connections {
		calls.Go(func() {
			_, err := l.call(http.MethodPost, "/sdk/vim25/9.0.0.0/ServiceInstance/ServiceInstance/CurrentTime", nil)
			failed <- err
		})
	}
	calls.Wait()
	close(failed)
	for err := range failed {
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *loop) login() error {
	body := fmt.Appendf(nil, `{"userName":%q,"password":%q}`, fakevc.Username, fakevc.Password)
	header, err := l.call(http.MethodPost, "/sdk/vim25/9.0.0.0/SessionManager/SessionManager/Login", body)
	l.token = header.Get("vmware-api-session-id")
	return err
}

// take works on requests, so many at once.
func (l *loop) take(ctx context.Context, inFlight int) error {
	consumer, err := l.js.Consumer(ctx, events.RequestsStream(vcenterName), events.RequestsConsumer(vcenterName))
	if err != nil {
		return err
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(inFlight))
	if err != nil {
		return err
	}
	failed := make(chan error, inFlight)
	var workers sync.WaitGroup
	for range inFlight {
		workers.Go(func() {
			for {
				m, err := messages.Next()
				if err == nil {
					err = l.handle(ctx, m)
				}
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	return <-failed
}

// handle makes the run of a request.
func (l *loop) handle(ctx context.Context, m jetstream.Msg) error {
	var request struct{ ID, Source string }
	if err := json.Unmarshal(m.Data(), &request); err != nil {
		return err
	}
	vm := m.Subject()[strings.LastIndexByte(m.Subject(), '.')+1:]
	number := strings.TrimPrefix(vm, "vm-")
	run := events.RunID(vcenterName, vm, events.RequestRef{Source: request.Source, ID: request.ID})
	last, history := uint64(0), events.History(vcenterName, vm)
	for _, s := range l.steps {
		if s.method != "" {
			if _, err := l.call(s.method, string(s.path.fill(number, run)), s.body.fill(number, run)); err != nil {
				return err
			}
			continue
		}
		h := nats.Header{}
		for key, values := range s.header {
			h[key] = values
		}
		h.Set(jetstream.MsgIDHeader, string(s.id.fill(number, run)))
		h.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(last, 10))
		h.Set(jetstream.ExpectedLastSubjSeqSubjHeader, history)
		ack, err := l.js.PublishMsg(ctx, &nats.Msg{Subject: string(s.path.fill(number, run)), Header: h,
			Data: s.body.fill(number, run)})
		if err != nil {
			return err
		}
		last = ack.Sequence
	}
	return m.DoubleAck(ctx)
}

// call makes one call to vCenter, and reads its answer to the end.
func (l *loop) call(method, path string, body []byte) (http.Header, error) {
	req, err := http.NewRequest(method, l.vcenter+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	if l.token != "" {
		req.Header.Set("vmware-api-session-id", l.token)
	}
	resp, err := l.http.Do(req)
	if err != nil {
		return nil, err
	}
	answer, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s: %s %s", method, path, resp.Status, answer)
	}
	return resp.Header, nil
}
