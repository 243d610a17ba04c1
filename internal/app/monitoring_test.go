package app_test

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/sandbox"
)

// root is the module's, seen from this package.
const root = "../.."

const metricsPage = "docs/operate/metrics.md"

func page(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// family is a metric as /metrics shows it, or as the page says that it does.
type family struct {
	typ    string
	labels []string // sorted
}

// documented are the rows of the page's table.
func documented(t *testing.T) map[string]family {
	t.Helper()
	row, label := regexp.MustCompile(
		"(?m)^\\| `(guestflow_[a-z_]+)` \\| ([a-z]+) \\|([^|]*)\\|",
	), regexp.MustCompile(
		"`([a-z]+)`",
	)
	all := map[string]family{}
	for _, r := range row.FindAllStringSubmatch(page(t, metricsPage), -1) {
		f := family{typ: r[2], labels: []string{}}
		for _, l := range label.FindAllStringSubmatch(r[3], -1) {
			f.labels = append(f.labels, l[1])
		}
		slices.Sort(f.labels)
		if _, twice := all[r[1]]; twice {
			t.Errorf("%s has two rows for %s", metricsPage, r[1])
		}
		all[r[1]] = f
	}
	return all
}

// scrape is what a service shows.
func scrape(ctx context.Context, t *testing.T, url string) string {
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
	return string(body)
}

// families reads a scrape. Metrics that are not guestflow's own are there by name only.
func families(scraped string) map[string]family {
	all, label := map[string]family{}, regexp.MustCompile(`([a-z_]+)="`)
	name := ""
	for line := range strings.Lines(scraped) {
		if typ, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, typ, _ = strings.Cut(strings.TrimSpace(typ), " ")
			all[name] = family{typ: typ}
			continue
		}
		if f := all[name]; f.labels == nil && strings.HasPrefix(line, name) {
			f.labels = []string{}
			for _, l := range label.FindAllStringSubmatch(line, -1) {
				if l[1] != "le" {
					f.labels = append(f.labels, l[1])
				}
			}
			slices.Sort(f.labels)
			all[name] = f
		}
	}
	return all
}

// What the page lists is what /metrics shows once the service has done everything that is counted, with its type and
// labels, and the reverse; alerts and dashboards ask for nothing else. (That they ask for the labels of the page
// deploy/helm/tests/monitoring tests.)
func TestMetricsAreThoseOfThePageTheAlertsAndTheDashboards(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	box, err := sandbox.Start(ctx, sandbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer box.Close()
	beginsAtZero(t, scrape(ctx, t, box.URL()))
	everything(ctx, t, box)

	shown, listed := families(scrape(ctx, t, box.URL())), documented(t)
	for _, name := range slices.Sorted(maps.Keys(shown)) {
		if !strings.HasPrefix(name, "guestflow_") {
			continue
		}
		switch is, ok := listed[name]; {
		case !ok:
			t.Errorf("%s has no row for %s", metricsPage, name)
		case is.typ != shown[name].typ || !slices.Equal(is.labels, shown[name].labels):
			t.Errorf("%s says that %s is a %s with %v, it is a %s with %v", metricsPage, name, is.typ, is.labels,
				shown[name].typ, shown[name].labels)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(listed)) {
		if _, ok := shown[name]; !ok {
			t.Errorf("%s has a row for %s, which /metrics does not show", metricsPage, name)
		}
	}

	files, err := filepath.Glob(filepath.Join(root, "deploy/helm/files/dashboards/*.json"))
	if err != nil || len(files) < 3 {
		t.Fatalf("dashboards: %v, %v", files, err)
	}
	metric, part := regexp.MustCompile(
		`\b(?:guestflow|process|go)_[a-z_]+\b`,
	), regexp.MustCompile(
		`_(bucket|count|sum)$`,
	)
	for _, file := range append(files, filepath.Join(root, "deploy/helm/files/alerts.yaml")) {
		rel, err := filepath.Rel(root, file)
		if err != nil {
			t.Fatal(err)
		}
		names := metric.FindAllString(page(t, rel), -1)
		if len(names) == 0 {
			t.Errorf("%s names no metric", rel)
		}
		for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
			if _, ok := shown[name]; ok {
				continue
			}
			if shown[part.ReplaceAllString(name, "")].typ != "histogram" {
				t.Errorf("%s asks for %s, which /metrics does not show", rel, name)
			}
		}
	}
}

// beginsAtZero looks for the counters of which alerts take the first increase: for Prometheus, an increase from nothing
// is none.
func beginsAtZero(t *testing.T, scraped string) {
	t.Helper()
	for _, series := range []string{
		`guestflow_calls_uncertain_total{act="customize",vcenter="lab"} 0`,
		`guestflow_calls_uncertain_total{act="network",vcenter="lab"} 0`,
		`guestflow_calls_uncertain_total{act="process",vcenter="lab"} 0`,
		`guestflow_requests_refused_total{code="InvalidRequest",vcenter="lab"} 0`,
		`guestflow_runs_finished_total{code="Internal",outcome="failed",vcenter="lab"} 0`,
		`guestflow_runs_finished_total{code="Orphaned",outcome="failed",vcenter="lab"} 0`,
		`guestflow_takeovers_total{vcenter="lab"} 0`,
	} {
		if !strings.Contains(scraped, series+"\n") {
			t.Errorf("/metrics of a service that has done nothing yet does not show %s", series)
		}
	}
}

// everything lets the service do what is counted: a whole run, and a message that is refused.
func everything(ctx context.Context, t *testing.T, box *sandbox.Sandbox) {
	t.Helper()
	nc, err := nats.Connect(box.NATSURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	good, refused := box.VMs()[0], box.VMs()[1]
	heard := make(chan *nats.Msg, 64)
	for _, subject := range []string{
		"guestflow.events.*." + good.ID + ".run.succeeded", "guestflow.rejections.*." + refused.ID,
	} {
		if _, err := nc.ChanSubscribe(subject, heard); err != nil {
			t.Fatal(err)
		}
	}
	event, err := json.Marshal(map[string]any{
		"specversion": "1.0",
		"type":        "io.guestflow.customization.requested.v1",
		"source":      "/metrics",
		"id":          "1",
		"data":        good.Request,
	})
	if err != nil {
		t.Fatal(err)
	}
	for vm, data := range map[string][]byte{good.ID: event, refused.ID: []byte("no CloudEvent")} {
		if _, err := js.Publish(ctx, "guestflow.requests."+sandbox.VCenter+"."+vm, data); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		select {
		case <-heard:
		case <-ctx.Done():
			t.Fatal("the run did not succeed, or the message was not refused")
		}
	}
}
