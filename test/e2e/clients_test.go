package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/format"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// sdkMessage is a NATS message as the CloudEvents SDK reads and writes one, in the words of the NATS protocol binding:
// none of guestflow's code.
type sdkMessage struct{ *nats.Msg }

var ceSpecs = spec.WithPrefix("ce-")

func (m sdkMessage) ReadEncoding() binding.Encoding {
	switch {
	case strings.HasPrefix(m.Header.Get("Content-Type"), format.JSON.MediaType()):
		return binding.EncodingStructured
	case m.Header.Get("ce-specversion") != "":
		return binding.EncodingBinary
	}
	return binding.EncodingUnknown
}

func (m sdkMessage) ReadStructured(ctx context.Context, w binding.StructuredWriter) error {
	if m.ReadEncoding() != binding.EncodingStructured {
		return binding.ErrNotStructured
	}
	return w.SetStructuredEvent(ctx, format.JSON, bytes.NewReader(m.Data))
}

func (m sdkMessage) ReadBinary(_ context.Context, w binding.BinaryWriter) error {
	version := ceSpecs.Version(m.Header.Get("ce-specversion"))
	if version == nil {
		return fmt.Errorf("specversion %q", m.Header.Get("ce-specversion"))
	}
	// the SDK wants it first
	if err := w.SetAttribute(version.AttributeFromKind(spec.SpecVersion), version.String()); err != nil {
		return err
	}
	for name, values := range m.Header {
		value, err := url.PathUnescape(values[0])
		if err != nil {
			return err
		}
		if attribute := version.Attribute(name); attribute != nil && attribute.Kind() == spec.SpecVersion {
			continue
		} else if attribute != nil {
			err = w.SetAttribute(attribute, value)
		} else if name, ok := strings.CutPrefix(name, "ce-"); ok {
			err = w.SetExtension(name, value)
		}
		if err != nil {
			return err
		}
	}
	return w.SetData(bytes.NewReader(m.Data))
}

func (m sdkMessage) GetAttribute(kind spec.Kind) (spec.Attribute, any) {
	attribute := ceSpecs.Version(m.Header.Get("ce-specversion")).AttributeFromKind(kind)
	return attribute, m.GetExtension(strings.TrimPrefix(attribute.PrefixedName(), "ce-"))
}

func (m sdkMessage) GetExtension(name string) any {
	value, err := url.PathUnescape(m.Header.Get("ce-" + name))
	if err != nil || value == "" {
		return nil
	}
	return value
}

func (sdkMessage) Finish(error) error { return nil }

func (m sdkMessage) SetStructuredEvent(_ context.Context, f format.Format, event io.Reader) (err error) {
	m.Header.Set("Content-Type", f.MediaType())
	m.Data, err = io.ReadAll(event)
	return err
}

func (sdkMessage) Start(context.Context) error { return nil }
func (sdkMessage) End(context.Context) error   { return nil }

func (m sdkMessage) SetAttribute(attribute spec.Attribute, value any) error {
	return m.SetExtension(attribute.Name(), value)
}

func (m sdkMessage) SetExtension(name string, value any) error {
	text, err := types.Format(value)
	m.Header.Set("ce-"+name, url.PathEscape(text))
	return err
}

func (m sdkMessage) SetData(data io.Reader) (err error) {
	m.Data, err = io.ReadAll(data)
	return err
}

// A request that the CloudEvents SDK builds and writes runs, and the SDK reads every event back, in both forms.
func TestCloudEventsSDK(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"structured", "binary"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newHarness(t, startNATS(t), vcsim.Options{VMs: 2})
			fastGuests(s.vc)
			// The vCenter goes by another name than the one that the harness listens to, which reads structured events
			// only.
			s.writeSecrets("sdk")
			env := []string{"GUESTFLOW_VCENTERS=sdk", "GUESTFLOW_EVENT_MODE=" + mode}
			for _, e := range s.env {
				if setting, ok := strings.CutPrefix(e, "VCENTER_LAB_"); ok {
					env = append(env, "VCENTER_SDK_"+setting)
				}
			}
			s.start(env...)
			vms := s.vc.VMs()
			heard := make(chan *nats.Msg, 256)
			for _, subject := range []string{"guestflow.events.sdk.>", "guestflow.rejections.sdk.*"} {
				if _, err := s.conn.ChanSubscribe(subject, heard); err != nil {
					t.Fatal(err)
				}
			}
			for i, wrong := range []bool{false, true} {
				request := ce.New()
				request.SetID(fmt.Sprintf("sdk-%d", i))
				request.SetSource("/sdk tests/größe")
				request.SetType("io.guestflow.customization.requested.v1")
				request.SetSubject(vms[i])
				request.SetExtension("correlationid", "order 66 · 100 %")
				data := fullRequest("exit 0")
				if data["vm"] = vms[i]; wrong {
					data["nonsense"] = true
				}
				if err := request.SetData(ce.ApplicationJSON, data); err != nil {
					t.Fatal(err)
				}
				m := sdkMessage{nats.NewMsg("guestflow.requests.sdk." + vms[i])}
				ctx := binding.WithForceStructured(t.Context())
				if mode == "binary" {
					ctx = binding.WithForceBinary(t.Context())
				}
				if _, err := binding.Write(ctx, binding.ToMessage(&request), m, m); err != nil {
					t.Fatal(err)
				}
				ack, err := s.js.PublishMsg(t.Context(), m.Msg)
				if err != nil {
					t.Fatal(err)
				}
				n := 0
				for kind := ""; kind != "run.succeeded" && kind != "rejected"; {
					var got *nats.Msg
					select {
					case got = <-heard:
					case <-time.After(patience):
						t.Fatalf("nothing came behind %q", kind)
					}
					e, err := binding.ToEvent(t.Context(), sdkMessage{got})
					if err != nil {
						t.Fatalf("%s: %v", got.Subject, err)
					}
					if err := e.Validate(); err != nil {
						t.Errorf("%s: %v", got.Subject, err)
					}
					var run runData
					if err := e.DataAs(&run); err != nil {
						t.Errorf("%s: %v", got.Subject, err)
					}
					n++
					kind = strings.TrimSuffix(strings.TrimPrefix(e.Type(), "io.guestflow.customization."), ".v1")
					id := fmt.Sprintf("%s.%d", run.Run, n)
					if wrong {
						id = fmt.Sprintf("rejected.%d", ack.Sequence)
					}
					if encoding := (sdkMessage{got}).ReadEncoding().String(); encoding != mode || e.ID() != id ||
						e.Source() != "/guestflow/sdk" ||
						e.Subject() != vms[i] || run.Request.Source != request.Source() ||
						run.Request.ID != request.ID() || e.Time().IsZero() ||
						e.DataContentType() != ce.ApplicationJSON ||
						e.Extensions()["correlationid"] != "order 66 · 100 %" ||
						e.Extensions()["causationid"] != request.ID() {
						t.Errorf("event %d (%s) is %s", n, encoding, e)
					}
				}
			}
		})
	}
}

// natsCommand builds the nats command that tools/nats pins.
func natsCommand(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "nats")
	build := exec.Command("go", "build", "-C", "../../tools/nats", "-o", out, "github.com/nats-io/natscli/nats")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the nats command: %v\n%s", err, said)
	}
	return out
}

// The nats command asks for a run, reads what became of it, and looks after the streams, with the permissions of the
// files.
func TestNATSCommand(t *testing.T) {
	t.Parallel()
	command, home := natsCommand(t), t.TempDir()
	g := guard(t, nil)
	s := newHarness(t, g.as("admin"), vcsim.Options{})
	fastGuests(s.vc)
	s.start(g.service("service")...)
	vms := s.vc.VMs()
	as := func(role string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), command, append([]string{"--server", g.URL(), "--user", role,
			"--password", password(role),
			"--inbox-prefix", roles[role]}, args...)...)
		cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CONFIG_HOME="+home)
		return cmd
	}
	says := func(role, want string, args ...string) {
		t.Helper()
		if said, err := as(role, args...).CombinedOutput(); err != nil || !strings.Contains(string(said), want) {
			t.Errorf("nats %s as %s: %v, want %q in\n%s", strings.Join(args, " "), role, err, want, said)
		}
	}
	follow := as("publisher", "sub", "--count", "1", "guestflow.events.lab."+vms[0]+".run.succeeded")
	said := &logBuffer{}
	follow.Stdout, follow.Stderr = said, said
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	s.until("a subscription", func() bool { return strings.Contains(said.String(), "Subscribing on") })
	request := func(vm, id, data string) []string {
		return []string{"pub", "--jetstream", "-H", "ce-specversion: 1.0", "-H", "ce-id: " + id, "-H",
			"ce-source: /cli",
			"-H", "ce-type: io.guestflow.customization.requested.v1",
			"-H", "Content-Type: application/json", "guestflow.requests.lab." + vm, data}
	}
	const customize = `{"vm":%q,"guest":{"credentials":{"secretRef":"linux-root"}},
		"customize":{"spec":{"_typeName":"CustomizationSpec",
		"identity":{"_typeName":"CustomizationLinuxPrep","domain":"example.test",
		"hostName":{"_typeName":"CustomizationFixedName","name":"web-1"}},
		"globalIPSettings":{"_typeName":"CustomizationGlobalIPSettings"},
		"nicSettingMap":[{"_typeName":"CustomizationAdapterMapping","adapter":{"_typeName":"CustomizationIPSettings",
		"ip":{"_typeName":"CustomizationFixedIp","ipAddress":"10.0.0.7"},"subnetMask":"255.255.255.0"}}]}},
		"network":{}}`
	says("publisher", "Stored in Stream: GUESTFLOW_REQUESTS_lab", request(vms[0], "cli-1", fmt.Sprintf(customize,
		vms[0]))...)
	if e := s.ended("cli-1"); e.kind != "run.succeeded" {
		t.Fatalf("ended with %s: %s", e.kind, e.Data)
	}
	if err := follow.Wait(); err != nil || !strings.Contains(said.String(), `"id":"cli-1"`) {
		t.Errorf("nats sub: %v\n%s", err, said)
	}
	says("publisher", `"status":"succeeded"`, "req", "--raw",
		"$JS.API.DIRECT.GET.GUESTFLOW_EVENTS.guestflow.events.lab."+vms[0]+".>", "")
	says("publisher", "Stored in Stream: GUESTFLOW_REQUESTS_lab", request(vms[1], "cli-2", `{"vm":"`+vms[1]+
		`","nonsense":1}`)...)
	if e := s.ended("cli-2"); e.kind != "rejected" {
		t.Errorf("ended with %s", e.kind)
	}
	says("publisher", "Stored in Stream: GUESTFLOW_REQUESTS_lab", "pub", "--jetstream", "-H", "ce-specversion: 1.0",
		"-H", "ce-id: cli-c", "-H", "ce-source: /cli",
		"-H", "ce-type: io.guestflow.customization.cancel.requested.v1", "guestflow.cancels.lab."+vms[0], `{"vm":"`+
			vms[0]+`","request":{"source":"/cli","id":"cli-1"}}`)

	says("operator", "audit", "consumer", "add", "GUESTFLOW_EVENTS", "audit", "--pull", "--deliver", "all", "--ack",
		"explicit",
		"--filter", "guestflow.events.>", "--defaults")
	says("subscriber", "run.accepted", "consumer", "next", "GUESTFLOW_EVENTS", "audit", "--count", "3", "--ack")
	says("operator", "GUESTFLOW_DEADLETTERS", "stream", "ls")
	says("operator", "GUESTFLOW_DEADLETTERS", "stream", "ls", "--names")
	says("operator", "Guestflow-Code: InvalidRequest", "stream", "get", "GUESTFLOW_DEADLETTERS", "--last-for",
		"guestflow.deadletters.lab."+vms[1])
	says("operator", "guestflow.deadletters.lab."+vms[1], "stream", "subjects", "GUESTFLOW_DEADLETTERS")
	says("operator", "Maximum Per Subject: 2", "stream", "info", "GUESTFLOW_REQUESTS_lab")
	says("operator", "guestflow-cancels-lab", "consumer", "ls", "GUESTFLOW_REQUESTS_lab")
	says("operator", "Max Ack Pending: 64", "consumer", "info", "GUESTFLOW_REQUESTS_lab", "guestflow-requests-lab")
	says("operator", "guestflow-requests-lab", "consumer", "report", "GUESTFLOW_REQUESTS_lab")
	says("operator", "Stored in Stream", request(vms[1], "cli-3", `{"vm":"`+vms[1]+`"}`)...)
	s.ended("cli-3")
	says("operator", "", "stream", "rmm", "GUESTFLOW_DEADLETTERS", "1", "-f")
	says("operator", "Messages: 0", "stream", "purge", "GUESTFLOW_DEADLETTERS", "-f")
	says("operator", "", "consumer", "rm", "GUESTFLOW_EVENTS", "audit", "-f")
	if v := g.violations(); len(v) > 0 {
		t.Errorf("the server refused %q", v)
	}
	if _, err := s.js.Consumer(t.Context(), "GUESTFLOW_EVENTS", "audit"); !errors.Is(err,
		jetstream.ErrConsumerNotFound) {
		t.Errorf("the consumer is still there: %v", err)
	}
}
