// Package monitoring tests what Prometheus and Grafana are given to work with: the chart's alerting rules and
// dashboards.
package monitoring

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/template"
	"go.yaml.in/yaml/v3"
)

const (
	root    = "../../../.."
	tests   = "alerts_test.yaml"
	runbook = "https://github.com/guestflow/guestflow/blob/main/docs/operate/runbooks.md#"
)

// ruleTests is the part of promtool's test files that is used here.
type ruleTests struct {
	RuleFiles          []string       `yaml:"rule_files"`
	EvaluationInterval model.Duration `yaml:"evaluation_interval"`
	Tests              []struct {
		Name        string         `yaml:"name"`
		Interval    model.Duration `yaml:"interval"`
		InputSeries []struct {
			Series string `yaml:"series"`
			Values string `yaml:"values"`
		} `yaml:"input_series"`
		AlertRuleTest []expectation `yaml:"alert_rule_test"`
	} `yaml:"tests"`
}

type expectation struct {
	EvalTime  model.Duration `yaml:"eval_time"`
	Alertname string         `yaml:"alertname"`
	ExpAlerts []struct {
		ExpLabels      map[string]string `yaml:"exp_labels"`
		ExpAnnotations map[string]string `yaml:"exp_annotations"`
	} `yaml:"exp_alerts"`
}

func readTests(t *testing.T) (all ruleTests) {
	t.Helper()
	d := yaml.NewDecoder(bytes.NewReader(read(t, tests)))
	d.KnownFields(true) // what is not understood here is not tested
	if err := d.Decode(&all); err != nil {
		t.Fatalf("%s: %v", tests, err)
	}
	if len(all.Tests) == 0 || all.EvaluationInterval == 0 {
		t.Fatalf("%s: no tests, or no evaluation_interval", tests)
	}
	return all
}

// readRules parses the rule files as Prometheus does, which checks expressions and templates.
func readRules(t *testing.T) (rules []rulefmt.Rule) {
	t.Helper()
	for _, file := range readTests(t).RuleFiles {
		parsed, errs := rulefmt.ParseFile(file, false, model.UTF8Validation, promQL, nil)
		for _, err := range errs {
			t.Error(err)
		}
		if parsed == nil {
			t.FailNow()
		}
		for _, g := range parsed.Groups {
			rules = append(rules, g.Rules...)
		}
	}
	return rules
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAlerts(t *testing.T) {
	t.Parallel()
	rules, engine := readRules(t), newEngine(t)
	all := readTests(t)
	for _, test := range all.Tests {
		t.Run(test.Name, func(t *testing.T) {
			t.Parallel()
			var m memory
			for _, s := range test.InputSeries {
				if err := m.add(s.Series, s.Values, time.Duration(test.Interval)); err != nil {
					t.Fatal(err)
				}
			}
			for _, want := range test.AlertRuleTest {
				var got []string
				for _, r := range rules {
					if r.Alert != want.Alertname {
						continue
					}
					for _, a := range firing(t, engine, m, r, time.Duration(all.EvaluationInterval),
						time.Duration(want.EvalTime)) {
						got = append(got, a.String())
					}
				}
				var wanted []string
				for _, a := range want.ExpAlerts {
					wanted = append(wanted, alert{labels: a.ExpLabels, annotations: a.ExpAnnotations}.String())
				}
				slices.Sort(got)
				slices.Sort(wanted)
				if !slices.Equal(got, wanted) {
					t.Errorf("%s after %s:\ngot\n%s\nwant\n%s", want.Alertname, want.EvalTime, strings.Join(got, "\n"),
						strings.Join(wanted, "\n"))
				}
			}
		})
	}
}

// alert is one that fires. alertname is not among its labels.
type alert struct {
	labels, annotations map[string]string
	since               time.Time
}

func (a alert) String() string {
	b := &strings.Builder{}
	for _, of := range []map[string]string{a.labels, a.annotations} {
		for _, k := range slices.Sorted(maps.Keys(of)) {
			fmt.Fprintf(b, "  %s: %s\n", k, of[k])
		}
	}
	return b.String()
}

// firing evaluates a rule every interval from 0 on, as Prometheus does, and gives what fires at the end.
func firing(t *testing.T, e *promql.Engine, m memory, r rulefmt.Rule, interval, end time.Duration) (all []alert) {
	t.Helper()
	if r.KeepFiringFor != 0 {
		t.Fatalf("%s: keep_firing_for is not known to this test", r.Alert)
	}
	active := map[string]alert{}
	for passed := time.Duration(0); passed <= end; passed += interval {
		now := time.UnixMilli(passed.Milliseconds())
		vector, err := query(t.Context(), e, m, r.Expr, now)
		if err != nil {
			t.Fatalf("%s: %v", r.Alert, err)
		}
		before := active
		active = map[string]alert{}
		for _, s := range vector {
			lset := s.Metric.DropReserved(func(name string) bool { return name == model.MetricNameLabel }).Map()
			a := alert{labels: expand(t, m, e, r.Labels, lset, s, now), annotations: expand(t, m, e, r.Annotations,
				lset, s, now), since: now}
			for name, value := range lset {
				if _, set := a.labels[name]; !set {
					a.labels[name] = value
				}
			}
			key := labels.FromMap(a.labels).String()
			if _, twice := active[key]; twice {
				t.Fatalf("%s: two alerts with the labels %s", r.Alert, key)
			}
			if was, ok := before[key]; ok {
				a.since = was.since
			}
			active[key] = a
		}
	}
	for _, a := range active {
		if end-time.Duration(a.since.UnixMilli())*time.Millisecond >= time.Duration(r.For) {
			all = append(all, a)
		}
	}
	return all
}

// expand fills in templates.
func expand(t *testing.T, m memory, e *promql.Engine, texts, lset map[string]string, s promql.Sample,
	now time.Time) map[string]string {
	t.Helper()
	const shorthands = `{{$labels := .Labels}}{{$externalLabels := .ExternalLabels}}{{$externalURL := ` +
		`.ExternalURL}}{{$value := .Value}}`
	data := template.AlertTemplateData(lset, nil, "", s)
	ask := func(ctx context.Context, expr string, at time.Time) (promql.Vector, error) {
		return query(ctx, e, m, expr, at)
	}
	filled := map[string]string{}
	for name, text := range texts {
		x := template.NewTemplateExpander(t.Context(), shorthands+text, name, data,
			model.TimeFromUnixNano(now.UnixNano()), ask, &url.URL{}, nil)
		out, err := x.Expand()
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		filled[name] = out
	}
	return filled
}

// Every alert is seen to fire, and not to.
func TestEveryAlertIsTested(t *testing.T) {
	t.Parallel()
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, test := range readTests(t).Tests {
		for _, want := range test.AlertRuleTest {
			fires[want.Alertname] = fires[want.Alertname] || len(want.ExpAlerts) > 0
			silent[want.Alertname] = silent[want.Alertname] || len(want.ExpAlerts) == 0
		}
	}
	for _, r := range readRules(t) {
		if !fires[r.Alert] {
			t.Errorf("%s has no test in which %s fires", tests, r.Alert)
		}
		if !silent[r.Alert] {
			t.Errorf("%s has no test in which %s does not fire", tests, r.Alert)
		}
		delete(fires, r.Alert)
	}
	for name := range fires {
		t.Errorf("%s tests %s, which is no alert", tests, name)
	}
}

// Every alert says how bad it is, what it means, and where its page is; every page is of an alert.
func TestEveryAlertHasItsPage(t *testing.T) {
	t.Parallel()
	page := string(read(t, filepath.Join(root, "docs", "operate", "runbooks.md")))
	pages := map[string]string{}
	for _, section := range strings.Split(page, "\n## ")[1:] {
		name, text, _ := strings.Cut(section, "\n")
		if strings.HasPrefix(name, "Guestflow") {
			pages[name] = text
		}
	}
	for _, r := range readRules(t) {
		if s := r.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: severity %q, want critical or warning", r.Alert, s)
		}
		for _, name := range []string{"summary", "description"} {
			if !strings.HasSuffix(r.Annotations[name], ".") && !strings.HasSuffix(r.Annotations[name], "{{ end }}") {
				t.Errorf("%s: %s %q is no sentence", r.Alert, name, r.Annotations[name])
			}
		}
		if got, want := r.Annotations["runbook_url"], runbook+strings.ToLower(r.Alert); got != want {
			t.Errorf("%s: runbook_url %s, want %s", r.Alert, got, want)
		}
		for _, part := range []string{"**Means**", "**Look**", "**Act**"} {
			if !strings.Contains(pages[r.Alert], part) {
				t.Errorf("docs/operate/runbooks.md: %s lacks its %s", r.Alert, part)
			}
		}
		delete(pages, r.Alert)
	}
	for name := range pages {
		t.Errorf("docs/operate/runbooks.md has a page for %s, which is no alert", name)
	}
}
