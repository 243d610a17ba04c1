package e2e

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// canaries are secrets by name, to be searched for.
type canaries map[string]string

// leastCanary is how long a secret must be to be told from chance.
const leastCanary = 8

// forms are the ways in which a secret may be written.
func forms(secret string) map[string]string {
	f := map[string]string{"as it is": secret, "query": url.QueryEscape(secret), "path": url.PathEscape(secret),
		"HTML": html.EscapeString(secret),
		"hex":  hex.EncodeToString([]byte(secret)), "quoted": strings.Trim(fmt.Sprintf("%q", secret), `"`)}
	for name, escape := range map[string]bool{"JSON": false, "JSON for HTML": true} {
		var b strings.Builder
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(escape)
		if e.Encode(secret) == nil {
			f[name] = strings.Trim(strings.TrimSpace(b.String()), `"`)
		}
	}
	// A log that holds JSON in a JSON string escapes twice.
	if twice, err := json.Marshal(f["JSON"]); err == nil {
		f["JSON in JSON"] = strings.Trim(string(twice), `"`)
	}
	// In base64 it looks different at each of three places in a text.
	for at := range 3 {
		for name, encoding := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding,
			"base64 for URLs": base64.RawURLEncoding} {
			text := encoding.EncodeToString(append(make([]byte, at), secret...))
			f[fmt.Sprintf("%s at %d", name, at)] = text[(at*8+5)/6 : (at+len(secret))*8/6]
		}
	}
	return f
}

// finder makes a function that names the secrets that a text holds, in any form.
func (c canaries) finder() func(text string) []string {
	names := map[string]string{} // by what is searched for
	for _, name := range slices.Sorted(maps.Keys(c)) {
		all := forms(c[name])
		// what several forms have in common is called by the first
		for _, form := range slices.Backward(slices.Sorted(maps.Keys(all))) {
			names[all[form]] = fmt.Sprintf("%s (%s)", name, form)
		}
	}
	return func(text string) (found []string) {
		for written, name := range names {
			if strings.Contains(text, written) {
				found = append(found, name)
			}
		}
		slices.Sort(found)
		return found
	}
}

// canaries are the secrets of a harness: vCenter's password, NATS', and all that the secrets folder holds but user
// names.
func (s *harness) canaries() canaries {
	c := canaries{"password of vCenter": s.vc.Password()}
	maps.Copy(c, s.more)
	err := filepath.WalkDir(s.secrets, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "username" {
			return err
		}
		b, err := os.ReadFile(path)
		if secret := strings.TrimSpace(string(b)); len(secret) >= leastCanary {
			c[strings.TrimPrefix(path, s.secrets+string(filepath.Separator))] = secret
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Errorf("read the secrets: %v", err)
	}
	return c
}

// secret puts a secret into the folder.
func (s *harness) secret(name, key, value string) {
	s.t.Helper()
	dir := filepath.Join(s.secrets, s.vcenter, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, key), []byte(value+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// silent fails the test where text holds a secret.
func (s *harness) silent(what, text string) {
	if found := s.canaries().finder()(text); len(found) > 0 {
		s.t.Errorf("%s holds %s:\n%s", what, strings.Join(found, ", "), text)
	}
}

// listen notes what the service says over HTTP now, if it runs.
func (p *service) listen() {
	client := http.Client{Timeout: 5 * time.Second} // it may have been stopped
	for _, path := range []string{"/metrics", "/readyz", "/livez"} {
		resp, err := client.Get("http://" + p.addr + path)
		if err != nil {
			return
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err == nil {
			p.mu.Lock()
			p.said[path] = string(body)
			p.mu.Unlock()
		}
	}
}

// leaks are the messages of all streams that hold a secret, headers included. What tests themselves publish counts
// where it is still there: a refused request leaves the stream.
func (s *harness) leaks(ctx context.Context) (found []string, err error) {
	find := s.canaries().finder()
	names := s.js.StreamNames(ctx)
	for name := range names.Name() {
		stream, err := s.js.Stream(ctx, name)
		if err != nil {
			return found, fmt.Errorf("stream %s: %w", name, err)
		}
		look := func(subject string, h nats.Header, data []byte) {
			var all strings.Builder
			all.WriteString(subject + "\n")
			for key, values := range h {
				fmt.Fprintf(&all, "%s: %s\n", key, strings.Join(values, "\n"))
			}
			all.Write(data)
			if in := find(all.String()); len(in) > 0 {
				found = append(found, fmt.Sprintf("stream %s, %s: %s:\n%s", name, subject, strings.Join(in, ", "),
					all.String()))
			}
		}
		if err := each(ctx, s.js, stream, look); err != nil {
			return found, fmt.Errorf("stream %s: %w", name, err)
		}
	}
	return found, names.Err()
}

// each reads all messages of a stream.
func each(ctx context.Context, js jetstream.JetStream, stream jetstream.Stream, look func(subject string, h nats.Header,
	data []byte)) error {
	info, err := stream.Info(ctx)
	if err != nil || info.State.Msgs == 0 {
		return err
	}
	if info.Config.Retention == jetstream.WorkQueuePolicy { // has its one consumer already
		for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
			switch m, err := stream.GetMsg(ctx, seq); {
			case errors.Is(err, jetstream.ErrMsgNotFound):
			case err != nil:
				return err
			default:
				look(m.Subject, m.Header, m.Data)
			}
		}
		return nil
	}
	consumer, err := js.OrderedConsumer(ctx, info.Config.Name, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		look(m.Subject(), m.Headers(), m.Data())
		if meta, err := m.Metadata(); err != nil || meta.NumPending == 0 {
			return err
		}
	}
}

// checkNoSecrets is called at the end of every test: no secret is in any stream. The services' own words are looked at
// where they end.
func (s *harness) checkNoSecrets() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	found, err := s.leaks(ctx)
	if err != nil {
		s.t.Errorf("search the streams for secrets: %v", err)
	}
	for _, leak := range found {
		s.t.Error("a secret is in " + leak)
	}
}

// The search finds a secret in each form, and nothing where there is none.
func TestSearchFindsSecrets(t *testing.T) {
	t.Parallel()
	const secret = `p<&>"ä\/ word+1`
	find := canaries{"it": secret}.finder()
	for form, written := range forms(secret) {
		if found := find("before" + written + "behind"); len(found) == 0 {
			t.Errorf("%s, %s, is not found", form, written)
		}
	}
	for before := range 4 {
		text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", before) + secret + "behind"))
		if found := find(text); len(found) == 0 {
			t.Errorf("not found in base64 with %d bytes before it", before)
		}
	}
	for _, text := range []string{"", "password", secret[1:], strings.ToUpper(secret)} {
		if found := find(text); len(found) > 0 {
			t.Errorf("found in %q: %v", text, found)
		}
	}
}

// A secret that is in a stream, in a header or in the data, or in the log, is found: the search at the end of every
// test can fail.
func TestSearchFindsLeaks(t *testing.T) {
	t.Parallel()
	s := newHarness(t, startNATS(t), vcsim.Options{VMs: 1})
	s.start().kill()
	const secret = "thrown away: 5d2b"
	s.secret("leaked", "password", secret)
	publish := func(m *nats.Msg) {
		if _, err := s.js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	publish(&nats.Msg{Subject: "guestflow.events.other.vm-1.run.accepted", Data: []byte(`{"a":"` + secret + `"}`)})
	publish(&nats.Msg{Subject: "guestflow.deadletters.lab.vm-1",
		Header: nats.Header{"Guestflow-Reason": {url.QueryEscape(secret)}}})
	publish(&nats.Msg{Subject: "guestflow.rejections.other.vm-1",
		Data: []byte(base64.StdEncoding.EncodeToString([]byte("xy" + secret)))})
	publish(&nats.Msg{Subject: "guestflow.requests.lab.vm-1", Data: []byte(secret)})
	found, err := s.leaks(t.Context())
	if err != nil || len(found) != 4 {
		t.Errorf("found %v (%v), want 4 leaks", found, err)
	}
	if err := os.RemoveAll(filepath.Join(s.secrets, "lab", "leaked")); err != nil {
		t.Fatal(err)
	}
	if found, err := s.leaks(t.Context()); err != nil || len(found) != 0 {
		t.Errorf("found %v (%v), want nothing", found, err)
	}
}

// What a vCenter, a proxy, a guest and a publisher say is full of secrets: none of it gets out.
func TestNoSecretGetsOut(t *testing.T) {
	t.Parallel()
	const natsPassword = "canary-nats/4e1f&"
	server := configured(t, fmt.Sprintf("%sauthorization { user: svc, password: %q }\n", jetStream(t, ""),
		natsPassword))
	passwordFile := write(t, "nats-password", natsPassword+"\n")
	const guestPassword, token, hidden, inSpec = `canary-guest "<7a>" \& ü`, "canary-saml-token+/8b==",
		"canary-env 9c'$(x)", `canary-spec{"0d"}`
	s := newHarness(t, server.URL(), vcsim.Options{VMs: 40, Password: "canary-vcenter <6f>&\"é"}, nats.UserInfo("svc",
		natsPassword))
	s.more = canaries{"password of NATS": natsPassword}
	s.secret("linux-root", "password", guestPassword)
	s.secret("saml", "saml-token", token)
	s.secret("app", "token", hidden)
	s.secret("web", "password", inSpec)
	fastGuests(s.vc)
	for _, id := range s.vc.VMs() {
		s.vc.VM(id).Configure(func(g *vcsim.Guest) { g.Password, g.SAMLToken = guestPassword, token })
	}
	// What was sent may come back; the environment's secret is sent with the process, not before.
	sent := fmt.Sprintf("root / %s / %s / %s / %s", guestPassword, token, inSpec, s.vc.Password())
	all := sent + " / " + hidden
	quoted := func(text string) string {
		b, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	fault := func(name, said string) *vcsim.Response {
		return &vcsim.Response{Status: 500, ContentType: "application/json",
			Body: fmt.Sprintf(`{"_typeName":%q,"faultMessage":[{"_typeName":"LocalizableMessage",
			"key":"x","message":%[2]s}],"localizedMessage":%[2]s,"invalidProperty":%[2]s,
			"reason":%[2]s,"said":{%[2]s:[%[2]s]}}`, name, quoted(said))}
	}
	rest := func(status int, name, said string) *vcsim.Response {
		return &vcsim.Response{Status: status, ContentType: "application/json", Body: fmt.Sprintf(
			`{"error_type":%q,"messages":[{"id":"x","default_message":%[2]s,"args":[%[2]s]}],"data":{"body":%[2]s},`+
				`"challenge":%[2]s}`, name, quoted(said))}
	}
	page := func(said string) *vcsim.Response {
		return &vcsim.Response{Status: 502, ContentType: "text/html", Body: "<html><title>" + html.EscapeString(said) +
			"</title><body>" + said + "</body></html>"}
	}
	text := &vcsim.Response{Status: 400, ContentType: "text/plain", Body: url.QueryEscape(sent) + sent}
	taskError := &types.SystemError{RuntimeFault: types.RuntimeFault{MethodFault: types.MethodFault{
		FaultMessage: []types.LocalizableMessage{{
			Key: "x", Message: sent}}}}, Reason: sent}

	// full is a request that carries every kind of secret.
	full := func(credentials string) map[string]any {
		data := fullRequest("exit 0")
		data["guest"] = map[string]any{"credentials": map[string]any{"secretRef": credentials}}
		data["verify"] = map[string]any{"timeout": "1s"}
		customize := data["customize"].(map[string]any)
		customize["timeout"] = "2s"
		customize["spec"].(map[string]any)["identity"].(map[string]any)["password"] = map[string]any{
			"_typeName": "CustomizationPassword", "plainText": true,
			"value": map[string]any{"secretRef": "web", "key": "password"}}
		process := data["processes"].([]any)[0].(map[string]any)
		process["timeout"] = "3s"
		process["run"] = map[string]any{"path": "/bin/sh", "arguments": "-c 'exit 0'", "environment": map[string]any{
			"TOKEN": map[string]any{"secretRef": "app", "key": "token"}}}
		return data
	}
	p := s.start("NATS_USER=svc", "NATS_PASSWORD_FILE="+passwordFile, "LOG_LEVEL=trace")
	free := s.vc.VMs()
	next := func() *vcsim.VM {
		vm := s.vc.VM(free[0])
		free = free[1:]
		return vm
	}
	var ids []string
	ask := func(name, credentials string, arrange func(vm *vcsim.VM, data map[string]any)) {
		vm, data := next(), full(credentials)
		arrange(vm, data)
		ids = append(ids, name)
		s.publish(vm.ID(), name, data)
	}
	answers := func(op string, a *vcsim.Response) func(*vcsim.VM, map[string]any) {
		return func(vm *vcsim.VM, _ map[string]any) { s.vc.Script(vcsim.Rule{VM: vm.ID(), Op: op, HTTP: a}) }
	}
	none := func(*vcsim.VM, map[string]any) {}
	ask("password", "linux-root", none)
	ask("token", "saml", none)
	ask("wrong password", "linux-root", func(vm *vcsim.VM, _ map[string]any) {
		vm.Configure(func(g *vcsim.Guest) { g.Password = "another" })
	})
	for _, credentials := range []string{"linux-root", "saml"} {
		ask("fault with "+credentials, credentials, answers("CustomizeGuest_Task", fault("InvalidArgument", sent)))
		ask("REST error with "+credentials, credentials, answers("guest/processes create",
			rest(400, "INVALID_ARGUMENT", all)))
		ask("REST list error with "+credentials, credentials, answers("guest/processes list",
			rest(401, "UNAUTHENTICATED", sent)))
	}
	ask("fault of a name of its own", "linux-root", answers("StartGuestNetwork_Task", fault("FaultOfAProxy", sent)))
	ask("busy", "linux-root", answers("CustomizeGuest_Task", fault("TaskInProgress", sent)))
	ask("page for an act", "linux-root", answers("CustomizeGuest_Task", page(sent)))
	ask("page for a create", "linux-root", answers("guest/processes create", page(all)))
	ask("text for an act", "linux-root", answers("StartGuestNetwork_Task", text))
	ask("REST error while it runs", "linux-root", answers("guest/processes get", rest(503, "SERVICE_UNAVAILABLE", all)))
	ask("Task's error", "linux-root", func(vm *vcsim.VM, _ map[string]any) {
		vm.Configure(func(g *vcsim.Guest) { g.TaskError = taskError })
	})
	var saying sync.Map // VMs
	ask("guest's word", "linux-root", func(vm *vcsim.VM, _ map[string]any) { saying.Store(vm.ID(), true) })
	s.vc.OnCall(func(c vcsim.Call, phase vcsim.Phase) vcsim.Action {
		if _, says := saying.Load(c.VM); says && c.Op == "CustomizeGuest_Task" && phase == vcsim.After {
			start := s.vc.GuestNow()
			s.vc.VM(c.VM).SetStatus("FAILED", sent, &start, &start)
		}
		return vcsim.Proceed
	})
	ask("command line", "linux-root", func(vm *vcsim.VM, data map[string]any) {
		pid := vm.SpawnProcess("/usr/sbin/agent --token " + hidden + " --password " + guestPassword)
		data["processes"] = []any{map[string]any{"name": "agent", "watch": map[string]any{"pid": pid}, "timeout": "2s"}}
	})
	for _, id := range ids {
		t.Logf("%s: %s", id, s.ended(id).kind)
	}

	// Another owner hears what the one before it has sent.
	ids = nil
	slow := func(vm *vcsim.VM, data map[string]any) {
		data["customize"].(map[string]any)["timeout"] = "5m"
		vm.Configure(func(g *vcsim.Guest) { g.TaskError, g.CustomizeTime = taskError, 2*time.Second })
	}
	ask("Task's error, another owner", "linux-root", slow)
	ask("Task's error, another owner, token", "saml", slow)
	ask("guest's word, another owner", "linux-root", func(vm *vcsim.VM, data map[string]any) {
		slow(vm, data)
		saying.Store(vm.ID(), true)
	})
	for _, id := range ids {
		s.await(id, "customize.started")
	}
	p.listen()
	p.kill()
	p = s.start("NATS_USER=svc", "NATS_PASSWORD_FILE="+passwordFile, "LOG_LEVEL=trace")
	for _, id := range ids {
		t.Logf("%s: %s", id, s.ended(id).kind)
	}

	// Literal secrets in requests, wherever a publisher may have put them.
	for i, literal := range []map[string]any{
		{"guest": map[string]any{"credentials": map[string]any{"secretRef": "linux-root", "password": guestPassword}}},
		{"guest": map[string]any{"password": guestPassword}},
		{"guest": map[string]any{"credentials": guestPassword}},
		{"guest": map[string]any{"credentials": map[string]any{"secretRef": "saml", "samlToken": token}}},
		{"password": []any{inSpec}},
		{"customize": map[string]any{"spec": map[string]any{"_typeName": "CustomizationSpec",
			"identity": map[string]any{"_typeName": "CustomizationLinuxPrep",
				"password": map[string]any{"_typeName": "CustomizationPassword", "plainText": true,
					"value": inSpec}}}}},
	} {
		id := fmt.Sprintf("literal-%d", i)
		s.publish(next().ID(), id, literal)
		if e := s.ended(id); e.kind != "rejected" {
			t.Errorf("%s: %s", id, e.kind)
		}
	}
	unreadable := `{"specversion":"1.0","id":"broken","password":` + quoted(guestPassword)
	if _, err := s.js.PublishMsg(t.Context(), &nats.Msg{Subject: "guestflow.requests.lab." + next().ID(),
		Data:   []byte(unreadable),
		Header: nats.Header{"Content-Type": {"application/cloudevents+json"}}}); err != nil {
		t.Fatal(err)
	}
	s.emptied()

	// The service's own login is refused with the password in the answer, and its settings hold one.
	s.vc.Script(vcsim.Rule{Op: "Login", HTTP: fault("InvalidLogin", s.vc.Password())})
	s.vc.Script(vcsim.Rule{Op: "POST /api/session", HTTP: rest(401, "UNAUTHENTICATED", s.vc.Password())})
	s.vc.ExpireSessions()
	vm := next().ID()
	s.publish(vm, "no login", full("linux-root"))
	s.await("no login", "run.waiting")
	s.cancel(vm, "c-1", "no login")
	s.ended("no login")
	s.vc.ClearScript()
	s.vc.Script(vcsim.Rule{Op: "Login", HTTP: page(s.vc.Password())})
	vm = next().ID()
	s.publish(vm, "page for a login", full("linux-root"))
	s.await("page for a login", "run.waiting")
	p.listen()
	if err := p.cmd.Process.Signal(syscall.SIGQUIT); err != nil { // as a panic does, it writes all stacks
		t.Fatal(err)
	}
	<-p.done

	withPassword := strings.Replace(server.URL(), "://", "://svc:"+url.QueryEscape(natsPassword)+"@", 1)
	for name, env := range map[string][]string{
		"NATS that is not there": {"NATS_URL=nats://svc:" + url.QueryEscape(natsPassword) + "@127.0.0.1:1"},
		"NATS that does not fit": {"NATS_URL=" + withPassword, "NATS_INBOX_PREFIX=bad.>"},
		"NATS URL that is none":  {"NATS_URL=http://svc:" + natsPassword + "@nowhere"},
		"NATS login refused":     {"NATS_USER=somebody", "NATS_PASSWORD_FILE=" + passwordFile},
		"vCenter URL with a user": {"VCENTER_LAB_URL=https://svc:" + url.QueryEscape(s.vc.Password()) +
			"@127.0.0.1/sdk"},
		"two passwords": {"VCENTER_LAB_PASSWORD=" + s.vc.Password()},
		"settings that are wrong": {"GUESTFLOW_ACK_WAIT=soon", "VCENTER_LAB_PASSWORD_FILE=", "VCENTER_LAB_PASSWORD=" +
			s.vc.Password()},
	} {
		q := s.launch(append([]string{"LOG_LEVEL=trace"}, env...)...)
		s.until(name+": a complaint", func() bool {
			select {
			case <-q.done:
				return true
			default:
				said := q.log.String()
				return strings.Contains(said, `"warn"`) || strings.Contains(said, `"error"`) ||
					strings.Contains(said, "connected to NATS")
			}
		})
		q.kill()
	}
}
