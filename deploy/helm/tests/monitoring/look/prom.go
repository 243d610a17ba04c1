package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// prom is a Prometheus.
type prom struct{ name, url string }

// series is one line of a picture, or one number.
type series struct {
	labels map[string]string
	points []point
}

type point struct{ t, v float64 }

func (p *prom) get(ctx context.Context, path string, args url.Values, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path+"?"+args.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct {
		Data  json.RawMessage `json:"data"`
		Error string          `json:"error"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s: %s: %w", path, resp.Status, err)
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	return json.Unmarshal(answer.Data, into)
}

// query asks for the time from began to end, or for its end alone.
func (p *prom) query(ctx context.Context, expr string, instant bool, began, end time.Time) ([]series, error) {
	stamp := func(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64) }
	path, args := "/api/v1/query_range", url.Values{"query": {expr}, "start": {stamp(began)}, "end": {stamp(end)},
		"step": {scrape.String()}}
	if instant {
		path, args = "/api/v1/query", url.Values{"query": {expr}, "time": {stamp(end)}}
	}
	var answer struct {
		Result []struct {
			Metric map[string]string `json:"metric"`
			Value  [2]any            `json:"value"`
			Values [][2]any          `json:"values"`
		} `json:"result"`
	}
	if err := p.get(ctx, path, args, &answer); err != nil {
		return nil, err
	}
	var all []series
	for _, r := range answer.Result {
		if instant {
			r.Values = [][2]any{r.Value}
		}
		s := series{labels: r.Metric}
		for _, v := range r.Values {
			at, _ := v[0].(float64)
			text, _ := v[1].(string)
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return nil, fmt.Errorf("%s gives a histogram, and no number", expr)
			}
			if !math.IsNaN(value) {
				s.points = append(s.points, point{at, value})
			}
		}
		if len(s.points) > 0 {
			all = append(all, s)
		}
	}
	return all, nil
}

// ask puts all queries of a dashboard: the answers by panel and query. A query without an answer is an error.
func (p *prom) ask(ctx context.Context, d dashboard, v view, began, end time.Time) (map[string][]series, error) {
	answers := map[string][]series{}
	var problems []error
	for i, panel := range d.Panels {
		for _, t := range panel.Targets {
			at := fmt.Sprintf("%s (%s): %s: %s", v.name, p.name, panel.Title, t.RefID)
			found, err := p.query(ctx, v.fill(t.Expr), t.Instant, began, end)
			switch why := mayBeEmpty[v.name+"/"+panel.Title]; {
			case err != nil:
				problems = append(problems, fmt.Errorf("%s: %w: %s", at, err, v.fill(t.Expr)))
			case len(found) == 0 && why == "":
				problems = append(problems, fmt.Errorf("%s: no data: %s", at, v.fill(t.Expr)))
			}
			answers[key(i, t)] = found
		}
	}
	return answers, errors.Join(problems...)
}

func key(panel int, t target) string { return fmt.Sprintf("%d/%s", panel, t.RefID) }

// variables asks for what Grafana lets one choose from. Only a namespace there may be none of.
func (p *prom) variables(ctx context.Context, d dashboard) error {
	var problems []error
	for _, v := range d.Templating.List {
		if v.Type != "query" || v.Name == "namespace" {
			continue
		}
		of, label, ok := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(v.Definition, "label_values("), ")"), ", ")
		if at := strings.LastIndex(v.Definition, ", "); at > 0 {
			of, label = strings.TrimPrefix(v.Definition[:at], "label_values("), strings.TrimSuffix(v.Definition[at+2:],
				")")
		}
		var values []string
		err := p.get(ctx, "/api/v1/label/"+label+"/values", url.Values{"match[]": {view{}.fill(of)}}, &values)
		if !ok || err != nil || len(values) == 0 {
			problems = append(problems, fmt.Errorf("%s: nothing to choose from: %s: %w", d.Title, v.Definition, err))
		}
	}
	return errors.Join(problems...)
}

// rules tells how the alerts stand. A rule that cannot be evaluated is an error.
func (p *prom) rules(ctx context.Context) error {
	var answer struct {
		Groups []struct {
			Rules []struct {
				Name, State, Health, LastError string
			} `json:"rules"`
		} `json:"groups"`
	}
	if err := p.get(ctx, "/api/v1/rules", url.Values{}, &answer); err != nil {
		return err
	}
	var problems []error
	n := 0
	for _, g := range answer.Groups {
		for _, r := range g.Rules {
			n++
			if r.Health != "ok" {
				problems = append(problems, fmt.Errorf("%s: alert %s: %s %s", p.name, r.Name, r.Health, r.LastError))
			}
			if r.State != "inactive" {
				fmt.Printf("%s: %s is %s\n", p.name, r.Name, r.State)
			}
		}
	}
	fmt.Printf("%s: %d alerts\n", p.name, n)
	return errors.Join(problems...)
}
