package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/events/stream/natstest"
	"github.com/guestflow/guestflow/internal/vcsim"
)

// provision makes guestflow's streams as the service does.
func provision(t *testing.T, url string) *stream.Conn {
	t.Helper()
	conn, err := stream.Connect(t.Context(), stream.Config{URL: url}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	if err := conn.Provision(t.Context(), stream.Settings{Provision: true, Replicas: 1, QueuePerVM: 2,
		EventsMaxAge: 720 * time.Hour, DeadlettersMaxAge: 168 * time.Hour, AckWait: 30 * time.Second,
		MaxInFlight: map[string]int{"lab": 64}}); err != nil {
		t.Fatal(err)
	}
	return conn
}

// Dead letters as the service makes them.
func TestDeadlettersOfTheService(t *testing.T) {
	t.Parallel()
	s := newSite(t, vcsim.Options{}).serve()
	vm := s.vc.VMs()[0]
	w := s.begin(false, "watch", "--text", "--since", "1h")
	s.publish(
		"guestflow.requests.lab."+vm,
		"application/cloudevents+json",
		`{"specversion":"1.0","type":"io.guestflow.customization.requested.v1","source":"/a","id":"1",
"data":{"vm":"`+vm+`","custmize":{}}}`,
	)
	w.out.await(t, "custmize: is not a known field")
	s.publish(
		"guestflow.requests.lab.vm-77",
		"application/cloudevents+json",
		`{"specversion":"1.0","type":"io.guestflow.customization.requested.v1","source":"/a","id":"2",
"data":{"vm":"vm-77","customize":{"spec":{"identity":{"password":{"plainText":true,"value":"hunter2"}}}}}}`,
	)
	w.out.await(t, "literal password")
	w.stop()
	w.end().want(t, 0, "rejected")
	var l deadLetter
	line, _, _ := strings.Cut(s.do("deadletters", "list", vm).want(t, 0).out, "\n")
	if err := json.Unmarshal([]byte(line), &l); err != nil || l.Code != "InvalidRequest" || l.VM != vm || l.Seq != 1 {
		t.Fatalf("%+v, %v", l, err)
	}
	list := strings.ReplaceAll(s.read("deadletters", "list").want(t, 0).out, vm, "VM")
	golden(
		t,
		"deadletters",
		regexp.MustCompile(` {2,}(\S+s +)?`).ReplaceAllString(list, "  "),
	) // ages, and the columns' widths with them, differ
	s.read("deadletters", "show", "1").want(t, 0, "custmize", "header     Content-Type: application/cloudevents+json")
	s.do("deadletters", "show", "1").want(t, 0, `"data":{"specversion"`)
	s.read("deadletters", "replay", "1").want(t, 2, "would be refused again")
	s.read("deadletters", "replay", "1", "--force").want(t, 0, "published again")
	for _, r := range []result{
		s.read("deadletters", "show", "2").want(t, 0, "withheld", "customize.spec.identity.password.value"),
		s.do("deadletters", "show", "2").want(t, 0, `"withheld"`),
		s.read("deadletters", "replay", "2", "--force").want(t, 2, "cannot be replayed"),
	} {
		if strings.Contains(r.out+r.err, "hunter2") {
			t.Error("a secret is printed")
		}
	}
	s.do("deadletters", "drop", "1", "2").want(t, 0, `{"dropped":1}`)
	s.do("deadletters", "show", "1").want(t, 4, "there is no dead letter 1")
	s.do("deadletters", "drop", "1").want(t, 4, "there is no dead letter 1")
	s.do("deadletters", "drop", "x").want(t, 4, "no sequence")
}

// What is replayed is the message as it was, and not what only the server was to read.
func TestReplayIsTheOriginal(t *testing.T) {
	t.Parallel()
	s := &site{t: t, url: natstest.StartServer(t).URL()}
	s.env = map[string]string{"NATS_URL": s.url, "GUESTFLOW_VCENTERS": "lab"}
	conn := provision(t, s.url)
	original := nats.Header{
		"ce-specversion": {"1.0"},
		"ce-type":        {"io.guestflow.customization.requested.v1"},
		"ce-source":      {"/a%20b"},
		"ce-id":          {"1"},
		"Content-Type": {
			"application/json",
		},
		"Nats-Expected-Last-Sequence": {"77"},
		"Nats-Msg-Id":                 {"m-1"},
		"Guestflow-Thing":             {"kept"},
	}
	err := conn.Reject(
		t.Context(),
		stream.RefusedMessage{
			VCenter: "lab",
			VM:      "vm-42",
			Seq:     9,
			Subject: "guestflow.requests.lab.vm-42",
			Header:  original,
			Data:    []byte(data("vm-42")),
		},
		&events.RejectError{Code: events.InvalidRequest, Message: "in the past"},
	)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(s.url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	sub, err := nc.SubscribeSync("guestflow.requests.lab.vm-42")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	s.do("deadletters", "replay", "1").want(t, 0, `"sequence":1`)
	m, err := sub.NextMsg(patience)
	if err != nil {
		t.Fatal(err)
	}
	if string(m.Data) != data("vm-42") ||
		m.Header["Guestflow-Thing"][0] != "kept" || m.Header["ce-source"][0] != "/a%20b" ||
		m.Header["Nats-Msg-Id"] != nil || m.Header["Nats-Expected-Last-Sequence"] != nil ||
		m.Header["Guestflow-Code"] != nil {
		t.Errorf("replayed: %q %s", m.Header, m.Data)
	}
	// What guestflow did not write stops its VM, and only that one: it is shown with the way out.
	if _, err := nc.Request("guestflow.events.lab.vm-7.run.failed", []byte("a forgery"), patience); err != nil {
		t.Fatal(err)
	}
	s.read("status").want(t, 0, "unreadable", "nats stream rmm GUESTFLOW_EVENTS ", "vm-42")
	s.do("status").want(t, 0, `"status":"unreadable"`)
	s.read("status", "vm-7").want(t, 4, "nats stream rmm GUESTFLOW_EVENTS ")
	// It waits for a service: the fleet shows it.
	s.read("status").want(t, 0, "queued", "1/2")
	s.read("status", "vm-42").want(t, 0, "queued", "1 from /a%20b")
}

func TestValidate(t *testing.T) {
	t.Parallel()
	s := &site{t: t}
	good, bad := s.file(
		"good.json",
		`{"vm":"vm-42","guest":{"credentials":{"secretRef":"linux-root"}},"customize":{"specName":"web"},"network":{},
"processes":[{"name":"join","run":{"path":"/bin/true"}}]}`,
	), s.file(
		"bad.json",
		`{"vm":"vm-42","network":{"timeout":"soon"}}`,
	)
	r := begin(t, nil, false, "", "validate", good, bad, "--text").end().want(t, 2)
	golden(t, "validate", strings.NewReplacer(good, "good.json", bad, "bad.json").Replace(r.out+r.err))
	for line := range strings.Lines(begin(t, nil, false, "", "validate", good, bad).end().out) {
		var v validation
		if err := json.Unmarshal([]byte(line), &v); err != nil || v.Valid != (v.File == good) ||
			!v.Valid && v.Field != "guest.credentials" {
			t.Errorf("%+v, %v", v, err)
		}
	}
	begin(t, nil, false, "{", "validate", "-").end().want(t, 2, "standard input: it is not valid JSON: line 1")
	begin(t, nil, false, "", "validate", "none.json").end().want(t, 4, "no such file")
}

func TestVersionCompletionMan(t *testing.T) {
	t.Parallel()
	begin(t, nil, false, "", "version", "--text").end().want(t, 0, "guestflow dev (commit unknown, go1.")
	begin(t, nil, false, "", "version").end().want(t, 0, `"version":"dev"`)
	begin(t, nil, false, "", "completion", "bash").end().want(t, 0, "__start_guestflow")
	begin(t, map[string]string{"GUESTFLOW_VCENTERS": "lab,prod"}, false, "", "__complete", "status", "--vcenter",
		"").end().
		want(t, 0, "lab\nprod\n")
	dir := filepath.Join(t.TempDir(), "man")
	begin(t, nil, false, "", "man", dir).end().want(t, 0)
	for _, page := range []string{
		"guestflow.1", "guestflow-submit.1", "guestflow-deadletters-replay.1", "guestflow-doctor.1",
	} {
		b, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil || !strings.Contains(string(b), ".SH SYNOPSIS") {
			t.Errorf("%s: %v", page, err)
		}
	}
}
