// Command look shows the dashboards as they look with data, and fails where a panel has none: it puts a load on two
// replicas of the service in the sandbox, has two Prometheus scrape them, one with native histograms and one with
// classic buckets, asks both for every query of every panel, and draws the panels as pages. Where chromium is installed
// it makes pictures of them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "look:", err)
		os.Exit(1)
	}
}

// views are the pages that are drawn: a dashboard, with values for its variables.
var views = []view{
	{name: "fleet", file: "fleet.json", vars: map[string]string{"vcenter": ".*"}},
	{name: "vcenter", file: "vcenter.json", vars: map[string]string{"vcenter": "lab"}},
	{name: "step-customize", file: "step.json", vars: map[string]string{"vcenter": ".*", "step": "customize"}},
	{name: "step-process", file: "step.json", vars: map[string]string{"vcenter": ".*", "step": "process"}},
}

// mayBeEmpty are panels without data under this load, each with the reason.
var mayBeEmpty = map[string]string{}

func run(ctx context.Context) error {
	bin := flag.String("bin", "../../../../bin", "folder with guestflow, consumer and prometheus")
	chart := flag.String("chart", "../../files", "folder with alerts.yaml and dashboards")
	out := flag.String("out", "../../../../bin/dashboards", "folder for the pages")
	lasts := flag.Duration("for", 8*time.Minute, "how long the load lasts")
	flag.Parse()
	if err := absolute(bin, chart, out); err != nil {
		return err
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return err
	}

	w, err := start(ctx, *bin, *chart, *out)
	if err != nil {
		return err
	}
	defer w.stop()
	began := time.Now()
	if err := w.load(ctx, *lasts); err != nil {
		return err
	}
	end := time.Now()

	var problems []error
	for _, p := range w.proms {
		problems = append(problems, p.rules(ctx))
		for _, v := range views {
			d, err := read(filepath.Join(*chart, "dashboards", v.file))
			if err != nil {
				return err
			}
			problems = append(problems, p.variables(ctx, d))
			drawn, err := p.ask(ctx, d, v, began, end)
			problems = append(problems, err)
			page := filepath.Join(*out, v.name+"-"+p.name+".html")
			if err := os.WriteFile(page, []byte(draw(d, v, p.name, drawn, began, end)), 0o644); err != nil {
				return err
			}
			if err := picture(ctx, page, d.height()); err != nil {
				return err
			}
			fmt.Println(page)
		}
	}
	return errors.Join(problems...)
}

func absolute(paths ...*string) error {
	for _, p := range paths {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	return nil
}

// view is a dashboard with values for its variables.
type view struct {
	name, file string
	vars       map[string]string
}

// fill does what Grafana does before it sends a query.
func (v view) fill(expr string) string {
	vars := map[string]string{"namespace": ".*", "window": "5m", "__rate_interval": "1m", "__interval": "30s"}
	for name, value := range v.vars {
		vars[name] = value
	}
	names := make([]string, 0, len(vars))
	for name := range vars {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return len(b) - len(a) }) // $__rate_interval before $__interval
	for _, name := range names {
		expr = strings.ReplaceAll(expr, "$"+name, vars[name])
	}
	return expr
}

// dashboard is the part of Grafana's format that is looked at.
type dashboard struct {
	Title      string  `json:"title"`
	Panels     []panel `json:"panels"`
	Templating struct {
		List []struct {
			Name       string `json:"name"`
			Type       string `json:"type"`
			Definition string `json:"definition"`
		} `json:"list"`
	} `json:"templating"`
}

type panel struct {
	Type        string `json:"type"`
	Title       string `json:"title"`
	Description string `json:"description"`
	GridPos     struct{ H, W, X, Y int }
	Targets     []target `json:"targets"`
	Options     struct {
		Legend struct{ Placement string } `json:"legend"`
	} `json:"options"`
	FieldConfig struct {
		Defaults  field `json:"defaults"`
		Overrides []struct {
			Matcher    struct{ Options string } `json:"matcher"`
			Properties []struct {
				ID    string          `json:"id"`
				Value json.RawMessage `json:"value"`
			} `json:"properties"`
		} `json:"overrides"`
	} `json:"fieldConfig"`
	Transformations []struct {
		ID      string `json:"id"`
		Options struct {
			ByField      string            `json:"byField"`
			RenameByName map[string]string `json:"renameByName"`
		} `json:"options"`
	} `json:"transformations"`
}

type target struct {
	RefID        string `json:"refId"`
	Expr         string `json:"expr"`
	LegendFormat string `json:"legendFormat"`
	Instant      bool   `json:"instant"`
}

type field struct {
	Unit       string     `json:"unit"`
	Decimals   *int       `json:"decimals"`
	Max        *float64   `json:"max"`
	Mappings   []mapping  `json:"mappings"`
	Thresholds thresholds `json:"thresholds"`
	Custom     struct {
		DrawStyle string                `json:"drawStyle"`
		LineWidth int                   `json:"lineWidth"`
		Stacking  struct{ Mode string } `json:"stacking"`
	} `json:"custom"`
}

type mapping struct {
	Options map[string]struct{ Text, Color string } `json:"options"`
}

type thresholds struct {
	Steps []struct {
		Color string   `json:"color"`
		Value *float64 `json:"value"`
	} `json:"steps"`
}

func read(file string) (d dashboard, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal(b, &d); err != nil {
		return d, fmt.Errorf("%s: %w", file, err)
	}
	return d, nil
}

func (d dashboard) height() int {
	most := 0
	for _, p := range d.Panels {
		most = max(most, p.GridPos.Y+p.GridPos.H)
	}
	return most
}

// picture makes a PNG of a page, where chromium is installed.
func picture(ctx context.Context, page string, rows int) error {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		return nil //nolint:nilerr // the page is there, and any browser shows it
	}
	png := strings.TrimSuffix(page, ".html") + ".png"
	cmd := exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
		"--screenshot="+png,
		fmt.Sprintf("--window-size=%d,%d", width+2*margin, rows*cell+90), "file://"+page)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("chromium: %w\n%s", err, said)
	}
	return nil
}
