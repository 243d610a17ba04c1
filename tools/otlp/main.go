// Otlp is the OpenTelemetry Collector's own OTLP receiver (HTTP). It listens on the address that it is given, and
// prints each batch of spans that it takes as one line of OTLP JSON.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(addr string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var mu sync.Mutex
	printed, err := consumer.NewTraces(func(_ context.Context, batch ptrace.Traces) error {
		line, err := (&ptrace.JSONMarshaler{}).MarshalTraces(batch)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		_, err = fmt.Printf("%s\n", line)
		return err
	})
	if err != nil {
		return err
	}
	factory := otlpreceiver.NewFactory()
	cfg, ok := factory.CreateDefaultConfig().(*otlpreceiver.Config)
	if !ok {
		return fmt.Errorf("the receiver's configuration is a %T", factory.CreateDefaultConfig())
	}
	cfg.GRPC = nil
	cfg.HTTP.ServerConfig.Endpoint = addr
	settings := receiver.Settings{ID: component.NewID(factory.Type()),
		TelemetrySettings: componenttest.NewNopTelemetrySettings()}
	r, err := factory.CreateTraces(ctx, settings, cfg, printed)
	if err != nil {
		return err
	}
	if err := r.Start(ctx, componenttest.NewNopHost()); err != nil {
		return err
	}
	<-ctx.Done()
	return r.Shutdown(context.WithoutCancel(ctx))
}
