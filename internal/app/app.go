package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/handler"
	"github.com/guestflow/guestflow/internal/tracing"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// Run is the service: it takes requests until ctx ends, then gives back what it has in hand and returns. Neither NATS nor a vCenter needs to be
// there when it starts; streams or consumers that an administrator made and that do not fit end it with an error that names every difference.
func Run(ctx context.Context, cfg Config, log zerolog.Logger) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	m := newMetrics(cfg.Version, cfg.Commit)
	tracer, err := traces(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), traceFlushTimeout)
		defer cancel()
		if err := tracer.Close(closing); err != nil {
			log.Warn().Err(err).Msg("the last traces were not sent")
		}
	}()

	conn, err := stream.Connect(ctx, stream.Config{URL: cfg.NATS.URL, CredsFile: cfg.NATS.CredsFile, NKeyFile: cfg.NATS.NKeyFile, User: cfg.NATS.User,
		PasswordFile: cfg.NATS.PasswordFile, CAFile: cfg.NATS.CAFile, CertFile: cfg.NATS.CertFile, KeyFile: cfg.NATS.KeyFile, JSDomain: cfg.NATS.JSDomain,
		JSAPIPrefix: cfg.NATS.JSAPIPrefix, InboxPrefix: cfg.NATS.InboxPrefix, EventMode: cfg.Service.EventMode,
		Hooks: m.streamHooks(), Name: "guestflow " + cfg.Service.Instance}, log)
	if err != nil {
		return err
	}
	defer conn.Close()

	m.registerNATS(conn)
	h := &health{conn: conn}
	web, err := serve(ctx, cfg, h, m, log, stop)
	if err != nil {
		return err
	}
	defer web()

	streams := stream.Settings{Replicas: cfg.Service.StreamReplicas, EventsMaxAge: cfg.Service.EventsMaxAge, EventsMaxBytes: cfg.Service.EventsMaxBytes,
		DeadlettersMaxAge: cfg.Service.DeadlettersMaxAge, DeadlettersMaxBytes: cfg.Service.DeadlettersMaxBytes, QueuePerVM: cfg.Service.QueuePerVM, AckWait: cfg.Service.AckWait,
		MaxInFlight: map[string]int{}, Provision: cfg.Service.Provision}
	for _, v := range cfg.VCenters {
		streams.MaxInFlight[v.Name] = v.MaxInFlight
	}
	if err := conn.Provision(ctx, streams); err != nil {
		if ctx.Err() != nil {
			return stopCause(ctx)
		}
		return err
	}

	m.registry.MustRegister(&streamCollector{conn: conn, vcenters: cfg.names(), log: log})
	journal := stream.NewJournal(conn, cfg.Service.EventMode)
	var loops sync.WaitGroup
	loops.Go(func() { conn.Watch(ctx) })
	for _, v := range cfg.VCenters {
		speak := v.Client()
		speak.TravelTime, speak.Tracer = v.TravelTime, tracer.Tracer()
		speak.OnCall, speak.OnLogin, speak.OnAnswer = m.onCall(v.Name), m.onLogin(v.Name, log), onReachable(v.Name, log)
		client, err := vcapi.New(speak)
		if err != nil {
			return fmt.Errorf("vCenter %s: %w", v.Name, err)
		}
		m.registerVCenter(v.Name, client)
		meter := m.forVCenter(v.Name)
		settings := handler.Settings{VCenter: v.Name, Instance: cfg.Service.Instance, SendWindow: v.SendWindow, TravelTime: v.TravelTime,
			VisibilityLag: v.VisibilityLag, AckWait: cfg.Service.AckWait, Drain: cfg.Service.DrainTimeout, Meter: meter, Tracer: tracer}
		run := handler.New(settings, client, journal, conn.RequestQueue(), handler.Secrets(filepath.Join(cfg.Service.SecretsDir, v.Name)),
			log.With().Str("vcenter", v.Name).Logger())

		// The long poll outlives the consumers: runs that come to their end while the service drains still watch.
		polling, endPoll := context.WithCancel(context.WithoutCancel(ctx))
		polled := make(chan struct{})
		go func() {
			defer close(polled)
			_ = client.Run(polling) // it ends with polling only
		}()
		var takers sync.WaitGroup
		takers.Go(func() {
			stopOnError(ctx, stop, conn.Consume(ctx, v.Name, func(ctx context.Context, r *events.Request) error {
				defer meter.InFlight()()
				return run.Handle(ctx, r)
			}))
		})
		takers.Go(func() {
			stopOnError(ctx, stop, conn.ConsumeCancels(ctx, v.Name, run.HandleCancel))
		})
		takers.Go(func() { closeOrphans(ctx, conn.RequestQueue(), run, v.Name, log) })
		loops.Go(func() {
			takers.Wait()
			endPoll()
			<-polled
			client.Close(context.WithoutCancel(ctx))
		})
	}
	h.started.Store(true)
	log.Info().Int("vcenters", len(cfg.VCenters)).Str("http", cfg.Service.HTTPAddr).Msg("guestflow takes requests")
	<-ctx.Done()
	log.Info().Msg("guestflow stops: nothing new is taken, what is in hand is given back")
	h.started.Store(false)
	loops.Wait()
	return stopCause(ctx)
}

// traces makes the spans that the settings ask for, or none.
func traces(ctx context.Context, cfg Config, log zerolog.Logger) (tracing.Tracer, error) {
	if !cfg.traces {
		return tracing.Tracer{}, nil
	}
	return tracing.New(ctx, cfg.Version, cfg.Service.Instance, log)
}

// traceFlushTimeout bounds the sending of the last traces.
const traceFlushTimeout = 3 * time.Second

// stopOnError ends the service where one of its loops cannot go on.
func stopOnError(ctx context.Context, stop context.CancelCauseFunc, err error) {
	if err != nil && ctx.Err() == nil {
		stop(err)
	}
}

// sweepInterval is how often orphans are looked for after the start: what one read of the journal does not show another one does.
const sweepInterval = time.Hour

// closeOrphans closes, at the start and now and then, the runs that nobody will be handed again.
func closeOrphans(ctx context.Context, queue *stream.RequestQueue, run *handler.Handler, vcenter string, log zerolog.Logger) {
	for ctx.Err() == nil {
		round, cancel := context.WithTimeout(ctx, sweepInterval)
		vms, err := queue.RunningVMs(round, vcenter)
		if err == nil {
			err = run.Sweep(round, vms)
		}
		if err != nil && ctx.Err() == nil {
			log.Error().Err(err).Str("vcenter", vcenter).Msg("orphaned runs were not looked for to the end: who needs one of their VMs closes them")
		}
		<-round.Done()
		cancel()
	}
}

// stopCause is why the service stopped: nil where it was told to.
func stopCause(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// serve answers /livez, /readyz, /metrics and /loglevel until the returned function is called.
func serve(ctx context.Context, cfg Config, h *health, m *metrics, log zerolog.Logger, failed context.CancelCauseFunc) (func(), error) {
	addr := cfg.Service.HTTPAddr
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("HTTP_ADDR %s: %w", addr, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", h.live)
	mux.HandleFunc("GET /readyz", h.ready)
	mux.Handle("GET /metrics", m.handler())
	mux.HandleFunc("GET /loglevel", cfg.logLevel.show)
	mux.HandleFunc("PUT /loglevel", cfg.logLevel.set(log))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			failed(fmt.Errorf("HTTP server at %s: %w", addr, err))
		}
	}()
	return func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = server.Shutdown(closing)
		<-done
	}, nil
}
