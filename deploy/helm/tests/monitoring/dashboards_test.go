package monitoring

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
)

// dashboard is the part of Grafana's format that is tested.
type dashboard struct {
	UID    string   `json:"uid"`
	Title  string   `json:"title"`
	Tags   []string `json:"tags"`
	Panels []struct {
		ID         int                      `json:"id"`
		Type       string                   `json:"type"`
		Title      string                   `json:"title"`
		Datasource *datasource              `json:"datasource"`
		GridPos    struct{ H, W, X, Y int } `json:"gridPos"`
		Targets    []struct {
			Expr       string      `json:"expr"`
			Datasource *datasource `json:"datasource"`
		} `json:"targets"`
	} `json:"panels"`
	Templating struct {
		List []struct {
			Name       string `json:"name"`
			Type       string `json:"type"`
			Definition string `json:"definition"`
		} `json:"list"`
	} `json:"templating"`
}

type datasource struct{ UID string }

func readDashboards(t *testing.T) map[string]dashboard {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "deploy", "helm", "files", "dashboards", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	all := map[string]dashboard{}
	for _, file := range files {
		var d dashboard
		if err := json.Unmarshal(read(t, file), &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all[filepath.Base(file)] = d
	}
	return all
}

// Dashboards can be imported: they are told apart, their panels too, and do not lie over each other; each asks the
// source that was chosen.
func TestDashboards(t *testing.T) {
	t.Parallel()
	uids := map[string]bool{}
	for file, d := range readDashboards(t) {
		if uids[d.UID] || !strings.HasPrefix(d.UID, "guestflow-") || !slices.Contains(d.Tags, "guestflow") {
			t.Errorf("%s: uid %q is taken or is not ours, or the tag guestflow is not there", file, d.UID)
		}
		uids[d.UID] = true
		ids, taken := map[int]bool{}, map[[2]int]string{}
		for _, p := range d.Panels {
			if ids[p.ID] || p.Title == "" {
				t.Errorf("%s: panel %d %q: id is taken, or no title", file, p.ID, p.Title)
			}
			ids[p.ID] = true
			g := p.GridPos
			if g.X+g.W > 24 || g.W == 0 || g.H == 0 {
				t.Errorf("%s: %s does not fit into 24 columns", file, p.Title)
			}
			for x := g.X; x < g.X+g.W; x++ {
				for y := g.Y; y < g.Y+g.H; y++ {
					if other := taken[[2]int{x, y}]; other != "" {
						t.Fatalf("%s: %s lies over %s", file, p.Title, other)
					}
					taken[[2]int{x, y}] = p.Title
				}
			}
			if p.Type == "row" {
				continue
			}
			if p.Datasource == nil || p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
				t.Errorf("%s: %s does not ask the chosen data source", file, p.Title)
			}
			for _, q := range p.Targets {
				if q.Datasource == nil || q.Datasource.UID != "${datasource}" {
					t.Errorf("%s: %s: %s does not ask the chosen data source", file, p.Title, q.Expr)
				}
			}
		}
	}
}

var (
	variable = regexp.MustCompile(`\$\{?(\w+)\}?`)
	grafanas = []string{"__interval", "__rate_interval", "__range"}
)

// Every query is PromQL, uses variables that the dashboard has, and asks for metrics by labels that
// docs/operate/metrics.md lists.
func TestDashboardQueries(t *testing.T) {
	t.Parallel()
	listed := listedMetrics(t)
	for file, d := range readDashboards(t) {
		known, used := map[string]bool{}, map[string]bool{"datasource": true}
		var exprs []string
		for _, v := range d.Templating.List {
			known[v.Name] = true
			if v.Type == "query" {
				selector, label, ok := cutLast(strings.TrimSuffix(strings.TrimPrefix(v.Definition,
					"label_values("), ")"), ", ")
				if !ok {
					t.Errorf("%s: variable %s: %s", file, v.Name, v.Definition)
				}
				exprs = append(exprs, "count by ("+label+") ("+selector+")")
			}
		}
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				exprs = append(exprs, q.Expr)
			}
		}
		for _, expr := range exprs {
			filled := variable.ReplaceAllStringFunc(expr, func(m string) string {
				name := variable.FindStringSubmatch(m)[1]
				used[name] = true
				switch {
				case name == "window" || slices.Contains(grafanas, name):
					return "5m"
				case !known[name]:
					t.Errorf("%s: no variable %s: %s", file, name, expr)
				}
				return "x"
			})
			parsed, err := promQL.ParseExpr(filled)
			if err != nil {
				t.Errorf("%s: %s: %v", file, expr, err)
				continue
			}
			checkLabels(t, file, parsed, listed)
		}
		for name := range known {
			if !used[name] {
				t.Errorf("%s: variable %s is used nowhere", file, name)
			}
		}
	}
}

// Alerts ask by labels that docs/operate/metrics.md lists.
func TestAlertLabels(t *testing.T) {
	t.Parallel()
	listed := listedMetrics(t)
	for _, r := range readRules(t) {
		parsed, err := promQL.ParseExpr(r.Expr)
		if err != nil {
			t.Errorf("%s: %v", r.Alert, err)
			continue
		}
		checkLabels(t, r.Alert, parsed, listed)
	}
}

// targetLabels are those that Prometheus adds.
var targetLabels = []string{"cluster", "namespace", "job", "instance", "le"}

// checkLabels holds what an expression selects and groups by against the metrics that it is about.
func checkLabels(t *testing.T, where string, expr parser.Expr, listed map[string][]string) {
	t.Helper()
	about := map[string]bool{"__name__": true}
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		s, ok := n.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		name := s.Name
		labels, ok := listed[name]
		if !ok {
			if labels, ok = listed[histogramPart.ReplaceAllString(name, "")]; !ok &&
				strings.HasPrefix(name, "guestflow_") {
				t.Errorf("%s: docs/operate/metrics.md does not list %s", where, name)
			}
		}
		for _, l := range append(labels, targetLabels...) {
			about[l] = true
		}
		for _, m := range s.LabelMatchers {
			if m.Name != "__name__" && !slices.Contains(labels, m.Name) && !slices.Contains(targetLabels, m.Name) {
				t.Errorf("%s: %s has no label %s", where, name, m.Name)
			}
		}
		return nil
	})
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		if a, ok := n.(*parser.AggregateExpr); ok {
			for _, l := range a.Grouping {
				if !about[l] {
					t.Errorf("%s: grouped by %s, which none of its metrics has: %s", where, l, a)
				}
			}
		}
		return nil
	})
}

var (
	histogramPart = regexp.MustCompile(`_(bucket|count|sum)$`)
	metricRow     = regexp.MustCompile("(?m)^\\| `(guestflow_[a-z_]+)` \\| [a-z]+ \\|([^|]*)\\|")
	inCode        = regexp.MustCompile("`([a-z]+)`")
)

func listedMetrics(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, row := range metricRow.FindAllStringSubmatch(string(read(t, filepath.Join(root, "docs", "operate",
		"metrics.md"))), -1) {
		all[row[1]] = []string{}
		for _, l := range inCode.FindAllStringSubmatch(row[2], -1) {
			all[row[1]] = append(all[row[1]], l[1])
		}
	}
	if len(all) == 0 {
		t.Fatal("docs/operate/metrics.md lists no metric")
	}
	return all
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
