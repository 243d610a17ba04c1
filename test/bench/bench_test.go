package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && roles()[os.Args[1]] != nil { // a process that startRole started
		main()
		return
	}
	os.Exit(m.Run())
}

// What was recorded for one run is filled in for another.
func TestTemplate(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "plain", "300001", "runid", "vm-300001/runid.1.token", "runid300001runid",
		"a 300001 b 300001 c"} {
		want := strings.NewReplacer("300001", "300777", "runid", "other").Replace(text)
		if got := string(newTemplate(text, "300001", "runid").fill("300777", "other")); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

// A table has the median and the extremes of the rounds, and ratios of rounds, not of medians.
func TestReport(t *testing.T) {
	t.Parallel()
	rounds := func(name string, perSecond ...float64) (all []*figures) {
		for _, v := range perSecond {
			all = append(all, &figures{Name: name, RunsPerSecond: v, CPUms: 1})
		}
		return all
	}
	var out bytes.Buffer
	report(&out, [][]*figures{rounds("guestflow", 50, 120, 60), rounds(loopName, 100, 200, 300)})
	want := fmt.Sprintf("%-33s%s", "runs per second", "60.0 (50.0 to 120)   0.50 (0.20 to 0.60)   200 (100 to 300)")
	if !strings.Contains(out.String(), want) {
		t.Errorf("no line %q:\n%s", want, out.String())
	}
}
