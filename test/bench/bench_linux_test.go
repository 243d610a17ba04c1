package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What a process uses is read in /proc, so the benchmark is for Linux.

// The benchmark ends well, and says that each thing was done once, with few runs.
func TestBench(t *testing.T) {
	t.Parallel()
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
