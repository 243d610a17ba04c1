package handler

import (
	"flag"
	"testing"

	"go.uber.org/goleak"
)

var allSchedules = flag.Bool("all-schedules", false,
	"run the tables of two events, such as two crashes, in full, not a third of each")

// sampled reports whether a table of two events has the m-th second one for the n-th first one: a third of its rows, in
// which each first one and each second one comes with every third of the others, in turn.
func sampled(n, m int) bool { return *allSchedules || n%3 == m%3 }

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
