// Guestflow is the command for the person at the keyboard: it sends requests, shows what becomes of them, and finds out
// what is wrong.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/sethvargo/go-envconfig"
	"golang.org/x/term"
)

// version and commit are stamped in by the build.
var (
	version = "dev"
	commit  = "unknown"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], terminal())
	stop()
	os.Exit(code)
}

// terminal is the console that this process has.
func terminal() console {
	out := int(os.Stdout.Fd())
	c := console{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: envconfig.OsLookuper(), tty: term.IsTerminal(out),
		errTTY: term.IsTerminal(int(os.Stderr.Fd()))}
	c.width = func() int {
		if w, _, err := term.GetSize(out); err == nil && w > 0 {
			return w
		}
		return 80
	}
	return c
}
