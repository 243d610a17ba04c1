// Bench measures guestflow beside a bare loop that makes the same calls to vCenter and stores the same events, and
// nothing else. NATS, a fake vCenter, guestflow and the loop are processes of their own. docs/develop/benchmarks.md
// says how to run it and how to read what it prints.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// settings are what the flags say.
type settings struct {
	modes    []string
	services []string // binaries
	runs     int      // of a round
	rounds   int
	inFlight int
	waiting  int // runs that wait, in the modes waiting, reaction and resume
	ends     int // Tasks that end, in the mode reaction
	rate     int // of them in a second
	profile  string
	json     string
}

// roles are what this program is, where its first argument says so: the processes that the benchmark starts.
func roles() map[string]func() error {
	return map[string]func() error{"nats": natsRole, "vcenter": vcenterRole, "loop": loopRole}
}

func main() {
	if len(os.Args) > 1 && roles()[os.Args[1]] != nil {
		if err := roles()[os.Args[1]](); err != nil {
			fmt.Fprintf(os.Stderr, "bench %s: %v\n", os.Args[1], err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// modes are what can be measured, by name.
var modes = map[string]func(*bench, context.Context) error{
	"check":    (*bench).check,
	"full":     (*bench).full,
	"waiting":  (*bench).waiting,
	"reaction": (*bench).reaction,
	"resume":   (*bench).resume,
}

func run(ctx context.Context, out io.Writer, args []string) error {
	var s settings
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	names := flags.String("modes", "check,full,waiting,reaction,resume", "what to measure, comma separated")
	services := flags.String("service", "bin/consumer", "the service's binary; several, comma separated, are compared")
	flags.IntVar(&s.runs, "runs", 1000, "runs of a round, in the modes check and full")
	flags.IntVar(&s.rounds, "rounds", 5, "rounds, in the modes check and full")
	flags.IntVar(&s.inFlight, "in-flight", 256, "runs at once, in the modes check and full")
	flags.IntVar(&s.waiting, "waiting", 10000,
		"runs that wait for their Tasks, in the modes waiting, reaction and resume")
	flags.IntVar(&s.ends, "ends", 2000, "Tasks that end, in the mode reaction")
	flags.IntVar(&s.rate, "rate", 100, "Tasks that end in a second, in the mode reaction; 0: all at once")
	flags.StringVar(&s.profile, "profile", "", "a folder for profiles of the service, which is built for that: "+
		"its figures are not to be compared")
	flags.StringVar(&s.json, "json", "", "a file for the figures of each round, one JSON object a line")
	if err := flags.Parse(args); err != nil {
		return err
	}
	s.modes, s.services = strings.Split(*names, ","), strings.Split(*services, ",")
	for _, name := range s.modes {
		if modes[name] == nil {
			return fmt.Errorf("-modes: there is no mode %q", name)
		}
	}

	b, err := newBench(s, out)
	if err != nil {
		return err
	}
	defer b.close()
	describeMachine(out)
	for _, name := range s.modes {
		if err = modes[name](b, ctx); err != nil {
			err = fmt.Errorf("mode %s: %w", name, err)
			break
		}
	}
	if err != nil {
		b.abandon()
		return err
	}
	return b.disperse(ctx)
}
