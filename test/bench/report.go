package main

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// rows are the lines of the table. ratio says whether the ratio to the bare loop is of interest.
var rows = []struct {
	name  string
	of    func(*figures) float64
	ratio bool
}{
	{"runs per second", func(f *figures) float64 { return f.RunsPerSecond }, true},
	{"its CPU per run, ms", func(f *figures) float64 { return f.CPUms }, true},
	{"nats-server's CPU per run, ms", func(f *figures) float64 { return f.NATSCPUms }, true},
	{"vCenter's CPU per run, ms", func(f *figures) float64 { return f.VCenterCPUms }, true},
	{"events per run", func(f *figures) float64 { return f.Events }, false},
	{"calls to vCenter per run", func(f *figures) float64 { return f.Calls }, false},
	{"TLS handshakes per run", func(f *figures) float64 { return f.Handshakes }, false},
	{"of these resumed", func(f *figures) float64 { return f.Resumed }, false},
	{"JetStream API requests per run", func(f *figures) float64 { return f.APIRequests }, false},
	{"peak RSS, MiB", func(f *figures) float64 { return f.PeakRSSMiB }, false},
}

// report prints the figures of several contenders, each with one figure a round, as median (least to most).
func report(w io.Writer, rounds [][]*figures) {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	base := rounds[len(rounds)-1] // the bare loop
	head := []string{""}
	for i, of := range rounds {
		head = append(head, of[0].Name)
		if i < len(rounds)-1 {
			head = append(head, "ratio")
		}
	}
	_, _ = fmt.Fprintln(t, strings.Join(head, "\t"))
	for _, row := range rows {
		cells := []string{row.name}
		for i, of := range rounds {
			cells = append(cells, spread(values(of, row.of)))
			if i == len(rounds)-1 {
				continue
			}
			cell := ""
			if row.ratio {
				cell = spread(ratios(values(of, row.of), values(base, row.of)))
			}
			cells = append(cells, cell)
		}
		_, _ = fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	_ = t.Flush()

	_, _ = fmt.Fprintln(w, "\ncalls to vCenter per run, median:")
	reportCalls(w, rounds)
}

// reportCalls prints how often each contender makes each call.
func reportCalls(w io.Writer, rounds [][]*figures) {
	ops := map[string]bool{}
	head := []string{""}
	for _, of := range rounds {
		head = append(head, of[0].Name)
		for _, f := range of {
			for op := range f.CallsBy {
				ops[op] = true
			}
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, strings.Join(head, "\t"))
	for _, op := range slices.Sorted(maps.Keys(ops)) {
		cells := []string{op}
		for _, of := range rounds {
			calls := median(values(of, func(f *figures) float64 { return f.CallsBy[op] }))
			cells = append(cells, fmt.Sprintf("%.2f", calls))
		}
		_, _ = fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	_ = t.Flush()
}

func values(of []*figures, figure func(*figures) float64) []float64 {
	all := make([]float64, len(of))
	for i, f := range of {
		all[i] = figure(f)
	}
	return all
}

// ratios are those of each round: both were measured within the same minute, whatever else the machine did in it.
func ratios(a, b []float64) []float64 {
	all := make([]float64, len(a))
	for i := range a {
		all[i] = a[i] / b[i]
	}
	return all
}

func spread(all []float64) string {
	least, most := slices.Min(all), slices.Max(all)
	if least == most || math.IsNaN(least) || math.IsNaN(most) {
		return number(least)
	}
	return fmt.Sprintf("%s (%s to %s)", number(median(all)), number(least), number(most))
}

func median(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

func number(x float64) string {
	switch {
	case math.IsNaN(x) || math.IsInf(x, 0): // a ratio to nothing: too few runs for the clock of the processes
		return "-"
	case x >= 100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}
