package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
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

// The benchmark ends well, and says that each thing was done once, with few runs.
func TestBench(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("what a process uses is read in /proc")
	}
	service := filepath.Join(t.TempDir(), "consumer")
	if said, err := exec.Command("go", "build", "-o", service, "../../cmd/consumer").CombinedOutput(); err != nil {
		t.Fatalf("build the service: %v\n%s", err, said)
	}
	var out bytes.Buffer
	err := run(t.Context(), &out, []string{"-service", service, "-modes", "check,full,reaction",
		"-runs", "8", "-rounds", "2", "-in-flight", "4", "-waiting", "12", "-ends", "4",
		"-json", filepath.Join(t.TempDir(), "figures")})
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if !regexp.MustCompile(`(?m)^CustomizeGuest_Task +1.00 +1.00$`).MatchString(out.String()) {
		t.Errorf("it does not say that each run customized its VM once:\n%s", out.String())
	}
	for _, want := range []string{
		"check: 2 rounds of 8 runs, 4 in flight",
		"full: 2 rounds of 8 runs, 4 in flight",
		"reaction: 4 Tasks end",
		"each of the 12 runs succeeded and has customized its VM once",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out.String())
		}
	}
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
