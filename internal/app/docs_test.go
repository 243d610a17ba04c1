package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/app"
	"github.com/guestflow/guestflow/internal/events/natstest"
	"github.com/guestflow/guestflow/sandbox"
)

const operatorPage = "docs/operator.md"

// cells are the rows of the tables under a heading of the operator's page that begin with something in code marks.
func cells(t *testing.T, heading string) (rows [][]string) {
	t.Helper()
	at := ""
	for line := range strings.Lines(page(t, operatorPage)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "## ") {
			at = strings.TrimPrefix(line, "## ")
		}
		if at != heading || !strings.HasPrefix(line, "| `") {
			continue
		}
		row := strings.Split(strings.ReplaceAll(strings.Trim(line, "|"), `\|`, "\x00"), "|")
		if len(row) != 3 {
			t.Errorf("%s, %s: %d cells, want 3: %s", operatorPage, heading, len(row), line)
			continue
		}
		for i := range row {
			row[i] = strings.TrimSpace(row[i])
		}
		rows = append(rows, row)
	}
	return rows
}

func page(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// defaults are all settings with what holds where they are not set; a vCenter's with <NAME> for its name.
func defaults() map[string]string {
	all := map[string]string{"GUESTFLOW_VCENTERS": "required"}
	for _, of := range []struct {
		prefix string
		typ    reflect.Type
	}{{"", reflect.TypeFor[app.NATS]()}, {"", reflect.TypeFor[app.Service]()}, {"VCENTER_<NAME>_", reflect.TypeFor[app.VCenter]()}} {
		for i := range of.typ.NumField() {
			name, rest, _ := strings.Cut(of.typ.Field(i).Tag.Get("env"), ",")
			if name == "" {
				continue
			}
			all[of.prefix+name] = strings.TrimPrefix(strings.TrimSpace(rest), "default=")
		}
	}
	return all
}

// The table of settings is the settings, with their defaults.
func TestOperatorPageNamesEverySetting(t *testing.T) {
	t.Parallel()
	want, got := defaults(), map[string]string{}
	for _, row := range cells(t, "Settings") {
		name := strings.Trim(row[0], "`")
		if _, twice := got[name]; twice {
			t.Errorf("%s is there twice", name)
		}
		got[name] = strings.Trim(row[1], "` ")
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if is, ok := got[name]; !ok {
			t.Errorf("%s has no row for %s", operatorPage, name)
		} else if is != want[name] && !(want[name] == "" && strings.HasPrefix(is, "(")) { // in brackets: what it is then, in words
			t.Errorf("%s says that the default of %s is %q, it is %q", operatorPage, name, is, want[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[name]; !ok {
			t.Errorf("%s has a row for %s, which is no setting", operatorPage, name)
		}
	}
}

// Whatever else the pages say of settings, in examples too, is spelled as the service reads it.
func TestPagesSpellSettingsRight(t *testing.T) {
	t.Parallel()
	known := defaults()
	variable := regexp.MustCompile(`\b(?:NATS|GUESTFLOW|VCENTER)_(?:<NAME>_)?[A-Za-z0-9_]+`)
	streams := regexp.MustCompile(`^GUESTFLOW_(EVENTS|DEADLETTERS|REQUESTS_[a-z]*)$`)
	ofVCenter := func(name string) bool {
		for setting := range known {
			end, is := strings.CutPrefix(setting, "VCENTER_<NAME>")
			if is && strings.HasPrefix(name, "VCENTER_") && strings.HasSuffix(name, end) {
				return true
			}
		}
		return false
	}
	for _, file := range []string{operatorPage, "README.md"} {
		for _, name := range variable.FindAllString(page(t, file), -1) {
			if _, setting := known[name]; !setting && !ofVCenter(name) && !streams.MatchString(name) {
				t.Errorf("%s speaks of %s, which is neither a setting nor a stream", file, name)
			}
		}
	}
}

// The table of metrics is what /metrics shows once the service has done everything that is counted: a run, and one that it took over.
func TestOperatorPageNamesEveryMetric(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	server := natstest.StartServer(t)
	nc, err := nats.Connect(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	heard := make(chan *nats.Msg, 256)
	if _, err := nc.ChanSubscribe("guestflow.events.>", heard); err != nil {
		t.Fatal(err)
	}
	until := func(end string) {
		t.Helper()
		for {
			select {
			case m := <-heard:
				if strings.HasSuffix(m.Subject, end) {
					return
				}
			case <-ctx.Done():
				t.Fatalf("no %s came", end)
			}
		}
	}
	start := func() *sandbox.Sandbox {
		t.Helper()
		s, err := sandbox.Start(ctx, sandbox.Options{NATS: server.URL()})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	publish := func(vm string, data json.RawMessage) {
		t.Helper()
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		event, err := json.Marshal(map[string]any{"specversion": "1.0", "type": "io.guestflow.customization.requested.v1", "source": "/docs", "id": vm, "data": data})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.Publish(ctx, "guestflow.requests."+sandbox.VCenter+"."+vm, event); err != nil {
			t.Fatal(err)
		}
	}

	first := start()
	slow := first.VMs()[1]
	publish(slow.ID, slow.Request)
	until(slow.ID + ".customize.started")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := start()
	defer second.Close()
	until(slow.ID + ".run.resumed")
	other := second.VMs()[0] // of the second one's vCenter
	publish(other.ID, json.RawMessage(fmt.Sprintf(`{"vm":%q}`, other.ID)))
	until(other.ID + ".run.succeeded")

	want, got := exposed(ctx, t, second.URL()), map[string][]string{}
	for _, row := range cells(t, "Metrics") {
		if !metric.MatchString(row[0]) {
			continue // an expression over them
		}
		labels := []string{}
		for _, l := range quoted.FindAllStringSubmatch(row[1], -1) {
			labels = append(labels, l[1])
		}
		slices.Sort(labels)
		got[strings.Trim(row[0], "`")] = labels
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if labels, ok := got[name]; !ok {
			t.Errorf("%s has no row for %s", operatorPage, name)
		} else if !slices.Equal(labels, want[name]) {
			t.Errorf("%s says that the labels of %s are %v, they are %v", operatorPage, name, labels, want[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[name]; !ok {
			t.Errorf("%s has a row for %s, which /metrics does not show", operatorPage, name)
		}
	}
}

var metric = regexp.MustCompile("^`guestflow_[a-z_]+`$")

// exposed are guestflow's own metrics that a service shows, each with its labels, sorted.
func exposed(ctx context.Context, t *testing.T, url string) map[string][]string {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET /metrics: %s, %v", resp.Status, err)
	}
	all, name := map[string][]string{}, ""
	label := regexp.MustCompile(`([a-z]+)="`)
	for line := range strings.Lines(string(body)) {
		if help, ok := strings.CutPrefix(line, "# HELP guestflow_"); ok {
			name, _, _ = strings.Cut("guestflow_"+help, " ")
			all[name] = nil
		}
		if name == "" || !strings.HasPrefix(line, name) || all[name] != nil {
			continue
		}
		all[name] = []string{}
		for _, l := range label.FindAllStringSubmatch(line, -1) {
			if l[1] != "le" {
				all[name] = append(all[name], l[1])
			}
		}
		slices.Sort(all[name])
	}
	return all
}
