// Consumer is the guestflow service: it takes the requests of its vCenters from NATS JetStream to their ends.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/rs/zerolog"
	"github.com/sethvargo/go-envconfig"

	"github.com/guestflow/guestflow/internal/app"
)

// version and commit are stamped in by the build.
var (
	version = "dev"
	commit  = "unknown"
)

func main() {
	show := flag.Bool("version", false, "say which version this is, and end")
	flag.Parse()
	if *show {
		fmt.Printf("guestflow %s (commit %s, %s, %s/%s)\n", version, commit, runtime.Version(), runtime.GOOS,
			runtime.GOARCH)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, envconfig.OsLookuper())
	stop()
	if err != nil {
		log := zerolog.New(os.Stderr).With().Timestamp().Logger()
		log.Fatal().Err(err).Msg("guestflow stopped")
	}
}

// run is the service from its settings to its end.
func run(ctx context.Context, env envconfig.Lookuper) error {
	cfg, err := app.LoadConfig(env)
	if err != nil {
		return err
	}
	cfg.Version, cfg.Commit = version, commit
	log := app.NewLogger(cfg, os.Stderr)
	log.Info().Str("version", version).Str("commit", commit).Msg("guestflow starts")
	return app.Run(ctx, cfg, log)
}
