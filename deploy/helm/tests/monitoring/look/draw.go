package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"html"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Sizes in pixels. Grafana's grid has 24 columns; a row of it is a little lower than here.
const (
	width  = 1680
	margin = 12
	cell   = 36

	legendWidth = 270 // where it stands beside the picture
)

var palette = []string{"#73BF69", "#F2CC0C", "#5794F2", "#FF780A", "#B877D9", "#8AB8FF", "#F2495C", "#FADE2A",
	"#37872D", "#FFA6B0", "#A352CC", "#C0D8FF", "#E0B400", "#1F60C4"}

var named = map[string]string{"green": "#73BF69", "red": "#F2495C", "blue": "#5794F2", "orange": "#FF9830",
	"text": "#ccccdc", "transparent": "none"}

func color(name string) string {
	if c, ok := named[name]; ok {
		return c
	}
	return name
}

const style = `<!doctype html><meta charset="utf-8"><style>
body{background:#111217;color:#ccccdc;font:12px Inter,Helvetica,Arial,sans-serif;margin:0}
h1{font-size:17px;font-weight:500;margin:10px 12px}h1 small{color:#8e8e98;font-size:12px;font-weight:400}
.g{position:relative}
.p{position:absolute;background:#181b1f;border:1px solid #2b2d33;
border-radius:2px;overflow:hidden;box-sizing:border-box}
.p b{display:block;font-weight:500;padding:5px 8px}.row{position:absolute;font-size:14px;padding:8px 4px}
.stat{font-size:30px;text-align:center;padding-top:18px}
.l{padding:0 8px;line-height:15px;font-size:11px}.l span{margin-right:10px;white-space:nowrap}
.none{color:#8e8e98;text-align:center;padding-top:30px;font-size:14px}
table{width:100%;border-collapse:collapse}
td,th{text-align:right;padding:4px 8px;border-bottom:1px solid #2b2d33;font-weight:400}th{color:#6E9FFF}
td:first-child,th:first-child{text-align:left}
em{float:right;font-style:normal}text{fill:#9a9aa6;font-size:10px}</style>`

// draw makes a page of a dashboard.
func draw(d dashboard, v view, source string, answers map[string][]series, began, end time.Time) string {
	b := &strings.Builder{}
	chosen := []string{}
	for _, name := range slices.Sorted(maps.Keys(v.vars)) {
		chosen = append(chosen, name+" "+v.vars[name])
	}
	fmt.Fprintf(b, "%s<h1>%s <small>%s; %s histograms</small></h1><div class=g>", style, html.EscapeString(d.Title),
		html.EscapeString(strings.Join(chosen, ", ")), source)
	for i, p := range d.Panels {
		g := p.GridPos
		x, y := margin+g.X*width/24, g.Y*cell
		w, h := g.W*width/24-6, g.H*cell-6
		if p.Type == "row" {
			fmt.Fprintf(b, `<div class=row style="left:%dpx;top:%dpx">%s</div>`, x, y, html.EscapeString(p.Title))
			continue
		}
		fmt.Fprintf(b, `<div class=p style="left:%dpx;top:%dpx;width:%dpx;height:%dpx"><b>%s</b>`, x, y, w, h,
			html.EscapeString(p.Title))
		all := map[string][]series{}
		found := 0
		for _, t := range p.Targets {
			all[t.RefID] = answers[key(i, t)]
			found += len(all[t.RefID])
		}
		switch {
		case found == 0:
			b.WriteString(`<div class=none>No data</div>`)
		case p.Type == "stat":
			b.WriteString(stat(p, all))
		case p.Type == "table":
			b.WriteString(table(p, all))
		case p.Type == "timeseries":
			b.WriteString(lines(p, all, w, h-28, began, end))
		default:
			fmt.Fprintf(b, "<div class=none>%s cannot be drawn here</div>", p.Type)
		}
		b.WriteString("</div>")
	}
	b.WriteString("</div>")
	return b.String()
}

func stat(p panel, all map[string][]series) string {
	b := &strings.Builder{}
	for _, t := range p.Targets {
		for _, s := range all[t.RefID] {
			text, c := shown(p.FieldConfig.Defaults, s.points[len(s.points)-1].v)
			fmt.Fprintf(b, `<div class=stat style="color:%s">%s</div>`, c, html.EscapeString(text))
		}
	}
	return b.String()
}

// shown is a value as words, and its colour.
func shown(f field, v float64) (text, c string) {
	for _, m := range f.Mappings {
		if to, ok := m.Options[fmt.Sprint(v)]; ok {
			return to.Text, color(to.Color)
		}
	}
	c = named["text"]
	for _, s := range f.Thresholds.Steps {
		if s.Value == nil || v >= *s.Value {
			c = color(s.Color)
		}
	}
	return unit(v, f.Unit, f.Decimals), c
}

func unit(v float64, unit string, decimals *int) string {
	number := func(v float64) string {
		if decimals != nil {
			return fmt.Sprintf("%.*f", *decimals, v)
		}
		return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", v), "0"), ".")
	}
	switch {
	case unit == "percentunit":
		return number(100*v) + " %"
	case unit == "bytes" && v >= 1<<20:
		return number(v/(1<<20)) + " MiB"
	case unit == "bytes":
		return number(v/(1<<10)) + " KiB"
	case unit == "s" && v < 1 && v > 0:
		return number(1000*v) + " ms"
	case unit == "s" && v >= 3600:
		return number(v/3600) + " h"
	case unit == "s" && v >= 60:
		return number(v/60) + " min"
	case unit == "s":
		return number(v) + " s"
	case unit == "reqps" || unit == "ops":
		return number(v) + "/s"
	}
	return number(v)
}

// table joins the queries' answers by a label, and names the columns.
func table(p panel, all map[string][]series) string {
	by, names := "", map[string]string{}
	for _, t := range p.Transformations {
		by = firstOf(by, t.Options.ByField)
		maps.Copy(names, t.Options.RenameByName)
	}
	of := map[string]field{}
	for _, o := range p.FieldConfig.Overrides {
		f := of[o.Matcher.Options]
		for _, property := range o.Properties {
			into := map[string]any{"unit": &f.Unit, "mappings": &f.Mappings, "thresholds": &f.Thresholds,
				"decimals": &f.Decimals}[property.ID]
			if into != nil {
				_ = json.Unmarshal(property.Value, into)
			}
		}
		of[o.Matcher.Options] = f
	}
	rows := map[string]map[string]float64{}
	head := "<tr><th>" + html.EscapeString(by)
	for _, t := range p.Targets {
		head += "<th>" + html.EscapeString(names["Value #"+t.RefID])
		for _, s := range all[t.RefID] {
			if rows[s.labels[by]] == nil {
				rows[s.labels[by]] = map[string]float64{}
			}
			rows[s.labels[by]][t.RefID] = s.points[len(s.points)-1].v
		}
	}
	b := &strings.Builder{}
	b.WriteString("<table>" + head)
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		b.WriteString("<tr><td>" + html.EscapeString(name))
		for _, t := range p.Targets {
			v, ok := rows[name][t.RefID]
			text, c := shown(of[names["Value #"+t.RefID]], v)
			if !ok {
				text = ""
			}
			fmt.Fprintf(b, `<td style="color:%s">%s`, c, html.EscapeString(text))
		}
	}
	return b.String() + "</table>"
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

var labelOf = regexp.MustCompile(`{{ *(\w+) *}}`)

func legend(format string, s series) string {
	if format == "" {
		return fmt.Sprint(s.labels)
	}
	return labelOf.ReplaceAllStringFunc(format, func(m string) string {
		return s.labels[labelOf.FindStringSubmatch(m)[1]]
	})
}

// line is a series with its name and colour.
type line struct {
	name, color string
	at          map[int]float64 // by step of the time axis
}

func lines(p panel, all map[string][]series, w, h int, began, end time.Time) string {
	const left, right, bottom = 58, 10, 16
	fixed := map[string]string{}
	for _, o := range p.FieldConfig.Overrides {
		for _, property := range o.Properties {
			var c struct{ FixedColor string }
			if property.ID == "color" && json.Unmarshal(property.Value, &c) == nil {
				fixed[o.Matcher.Options] = color(c.FixedColor)
			}
		}
	}
	var ls []line
	for _, t := range p.Targets {
		for _, s := range all[t.RefID] {
			l := line{name: legend(t.LegendFormat, s), at: map[int]float64{}}
			l.color = firstOf(fixed[l.name], palette[len(ls)%len(palette)])
			for _, pt := range s.points {
				l.at[int(math.Round((pt.t-float64(began.UnixMilli())/1000)/scrape.Seconds()))] = pt.v
			}
			ls = append(ls, l)
		}
	}
	f := p.FieldConfig.Defaults
	stacked, bars := f.Custom.Stacking.Mode == "normal", f.Custom.DrawStyle == "bars"
	steps := int(end.Sub(began) / scrape)
	most := 0.0
	for i := 0; i <= steps; i++ {
		sum := 0.0
		for _, l := range ls {
			sum += l.at[i]
			if !stacked {
				most = max(most, l.at[i])
			}
		}
		if stacked {
			most = max(most, sum)
		}
	}
	if f.Max != nil {
		most = *f.Max
	}
	if most == 0 {
		most = 1
	}
	below, beside := 16*(1+len(ls)*110/max(w, 1)), p.Options.Legend.Placement == "right"
	if beside {
		below, w = 0, w-legendWidth
	}
	plotH := float64(h - bottom - below - 4)
	x := func(i int) float64 { return left + float64(i)*float64(w-left-right)/float64(max(steps, 1)) }
	y := func(v float64) float64 { return 6 + (plotH-6)*(1-v/most) }
	b := &strings.Builder{}
	fmt.Fprintf(b, `<svg width=%d height=%d style="float:left">`, w, int(plotH)+bottom)
	for i := range 4 {
		v := most * float64(i) / 3
		fmt.Fprintf(b,
			`<line x1=%d x2=%d y1=%.1f y2=%.1f stroke="#2b2d33"/><text x=%d y=%.1f text-anchor=end>%s</text>`, left,
			w-right, y(v), y(v), left-5, y(v)+3,
			html.EscapeString(unit(v, f.Unit, nil)))
	}
	for i := range 5 {
		at := steps * i / 4
		fmt.Fprintf(b, `<text x=%.1f y=%.1f text-anchor=middle>%s</text>`, min(x(at), float64(w-24)), plotH+13,
			began.Add(time.Duration(at)*scrape).Format("15:04"))
	}
	for _, s := range f.Thresholds.Steps {
		if s.Value != nil && *s.Value <= most {
			fmt.Fprintf(b, `<line x1=%d x2=%d y1=%.1f y2=%.1f stroke="%s" stroke-dasharray="4 3"/>`, left, w-right,
				y(*s.Value), y(*s.Value), color(s.Color))
		}
	}
	under := map[int]float64{}
	for _, l := range ls {
		path, from := "", -2
		for i := 0; i <= steps; i++ {
			v, ok := l.at[i]
			if !ok {
				continue
			}
			low := under[i]
			if stacked {
				under[i] += v
			}
			switch {
			case bars:
				if i%6 == 0 { // one bar for an interval, as Grafana would ask for
					fmt.Fprintf(b, `<rect x=%.1f y=%.1f width=%.1f height=%.1f fill="%s" opacity=".8"/>`, x(i),
						y(low+v), 5*(x(1)-x(0)), y(low)-y(low+v), l.color)
				}
				continue
			case stacked:
				fmt.Fprintf(b, `<rect x=%.1f y=%.1f width=%.1f height=%.1f fill="%s" opacity=".7"/>`, x(i), y(low+v),
					x(1)-x(0), y(low)-y(low+v), l.color)
			}
			if f.Custom.LineWidth == 0 {
				continue
			}
			move := "L"
			if from != i-1 {
				move = "M"
			}
			path += fmt.Sprintf("%s%.1f %.1f", move, x(i), y(low*boolean(stacked)+v))
			from = i
		}
		fmt.Fprintf(b, `<path d="%s" fill=none stroke="%s" stroke-width=1.3 />`, path, l.color)
	}
	b.WriteString(`</svg><div class=l style="clear:` + map[bool]string{true: "none", false: "both"}[beside] + `">`)
	if beside { // a table, the greatest last value first
		slices.SortStableFunc(ls, func(a, b line) int { return cmp.Compare(b.at[steps], a.at[steps]) })
	}
	for _, l := range ls {
		fmt.Fprintf(b, `<span><i style="color:%s">━</i> %s</span> `, l.color, html.EscapeString(l.name))
		if beside {
			fmt.Fprintf(b, `<em>%s</em><br>`, html.EscapeString(unit(l.at[steps], f.Unit, nil)))
		}
	}
	return b.String() + "</div>"
}

func boolean(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
