// Consumer is the guestflow service: it takes the requests of its vCenters from NATS JetStream to their ends.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/rs/zerolog"
	"github.com/sethvargo/go-envconfig"

	"github.com/guestflow/guestflow/internal/app"
)

// version is stamped in by the build.
var version = "dev"

func main() {
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
	log := app.NewLogger(cfg, os.Stderr)
	log.Info().Str("version", version).Msg("guestflow starts")
	return app.Run(ctx, cfg, log)
}
