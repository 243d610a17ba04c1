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

// Run is the service: it takes requests until ctx ends, then gives back those that it works on, and returns.
//
// Neither NATS nor a vCenter needs to be there when it starts. If an administrator has made the streams or consumers
// and they do not fit, it returns an error that names every difference.
func Run(ctx context.Context, cfg Config, log zerolog.Logger) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)

	tracer, err := newTracer(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer flushTraces(ctx, tracer, log)

	m := newMetrics(cfg.Version, cfg.Commit)
	natsCfg := cfg.NATS.Stream("guestflow " + cfg.Service.Instance)
	natsCfg.EventMode, natsCfg.Hooks = cfg.Service.EventMode, m.streamHooks()
	conn, err := stream.Connect(ctx, natsCfg, log)
	if err != nil {
		return err
	}
	defer conn.Close()
	m.registerNATS(conn)

	h := &health{conn: conn}
	closeHTTP, err := serve(ctx, cfg, h, m, log, stop)
	if err != nil {
		return err
	}
	defer closeHTTP()

	if err := conn.Provision(ctx, cfg.Streams()); err != nil {
		if ctx.Err() != nil {
			return stopCause(ctx)
		}
		return err
	}
	m.registry.MustRegister(&streamCollector{conn: conn, vcenters: cfg.names(), log: log})

	s := &service{
		cfg: cfg, conn: conn, journal: stream.NewJournal(conn, cfg.Service.EventMode),
		metrics: m, tracer: tracer, log: log, stop: stop,
	}
	s.loops.Go(func() { conn.Watch(ctx) })
	for _, v := range cfg.VCenters {
		if err := s.startVCenter(ctx, v); err != nil {
			return err
		}
	}

	h.started.Store(true)
	log.Info().Int("vcenters", len(cfg.VCenters)).Str("http", cfg.Service.HTTPAddr).Msg("guestflow takes requests")
	<-ctx.Done()
	log.Info().Msg("guestflow stops: it takes no more requests, and gives back those that it works on")
	h.started.Store(false)
	s.loops.Wait()
	return stopCause(ctx)
}

// service is what the vCenters of one process share.
type service struct {
	cfg     Config
	conn    *stream.Conn
	journal *stream.Journal
	metrics *metrics
	tracer  tracing.Tracer
	log     zerolog.Logger
	stop    context.CancelCauseFunc // ends the service, because of an error
	loops   sync.WaitGroup
}

// startVCenter starts what one vCenter needs: a client with its long poll, a handler, and the consumers of its requests
// and cancels.
func (s *service) startVCenter(ctx context.Context, v VCenter) error {
	client, err := vcapi.New(s.clientConfig(v))
	if err != nil {
		return fmt.Errorf("vCenter %s: %w", v.Name, err)
	}
	s.metrics.registerVCenter(v.Name, client)

	meter := s.metrics.forVCenter(v.Name)
	settings := s.cfg.handler(v)
	settings.Meter, settings.Tracer = meter, s.tracer
	h := handler.New(
		settings, client, s.journal, s.conn.RequestQueue(),
		handler.Secrets(filepath.Join(s.cfg.Service.SecretsDir, v.Name)),
		s.log.With().Str("vcenter", v.Name).Logger())

	// The long poll outlives the consumers: runs that end while the service drains still need it.
	pollCtx, endPoll := context.WithCancel(context.WithoutCancel(ctx))
	polled := make(chan struct{})
	go func() {
		defer close(polled)
		_ = client.Run(pollCtx) // its error is always that of pollCtx
	}()

	var consumers sync.WaitGroup
	consumers.Go(func() {
		s.stopOnError(ctx, s.conn.Consume(ctx, v.Name, func(ctx context.Context, r *events.Request) error {
			defer meter.InFlight()()
			return h.Handle(ctx, r)
		}))
	})
	consumers.Go(func() {
		s.stopOnError(ctx, s.conn.ConsumeCancels(ctx, v.Name, h.HandleCancel))
	})
	consumers.Go(func() { s.closeOrphans(ctx, h, v.Name) })

	s.loops.Go(func() {
		consumers.Wait()
		endPoll()
		<-polled
		client.Close(context.WithoutCancel(ctx))
	})
	return nil
}

// clientConfig is that of the client of a vCenter.
func (s *service) clientConfig(v VCenter) vcapi.Config {
	cfg := v.Client()
	cfg.Tracer = s.tracer.Tracer()
	cfg.OnCall = s.metrics.onCall(v.Name)
	cfg.OnLogin = s.metrics.onLogin(v.Name, s.log)
	cfg.OnAnswer = onReachable(v.Name, s.log)
	return cfg
}

// stopOnError ends the service if one of its loops has ended with an error.
func (s *service) stopOnError(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil {
		s.stop(err)
	}
}

// sweepInterval is how often orphaned runs are looked for: one read of the journal may not show what a later one shows.
const sweepInterval = time.Hour

// closeOrphans closes, at the start and then every sweepInterval, the runs whose requests will not be delivered again.
func (s *service) closeOrphans(ctx context.Context, h *handler.Handler, vcenter string) {
	for ctx.Err() == nil {
		round, cancel := context.WithTimeout(ctx, sweepInterval)
		vms, err := s.conn.RequestQueue().RunningVMs(round, vcenter)
		if err == nil {
			err = h.Sweep(round, vms)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Error().Err(err).Str("vcenter", vcenter).Msg("the search for orphaned runs failed before its end: " +
				"the next search is in an hour, and the next request for a VM closes the orphaned run of that VM")
		}
		<-round.Done()
		cancel()
	}
}

// newTracer makes the tracer that the settings ask for; without settings for it, one that does nothing.
func newTracer(ctx context.Context, cfg Config, log zerolog.Logger) (tracing.Tracer, error) {
	if !cfg.traces {
		return tracing.Tracer{}, nil
	}
	return tracing.New(ctx, cfg.Version, cfg.Service.Instance, log)
}

// traceFlushTimeout bounds the sending of the last traces.
const traceFlushTimeout = 3 * time.Second

// flushTraces sends the last traces.
func flushTraces(ctx context.Context, tracer tracing.Tracer, log zerolog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), traceFlushTimeout)
	defer cancel()
	if err := tracer.Close(ctx); err != nil {
		log.Warn().Err(err).Msg("the last traces were not sent")
	}
}

// stopCause is why the service stopped: nil if its caller told it to.
func stopCause(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// serve answers /livez, /readyz, /metrics and /loglevel until the returned function is called. onError is called if the
// server fails.
func serve(
	ctx context.Context, cfg Config, h *health, m *metrics, log zerolog.Logger, onError context.CancelCauseFunc,
) (closeServer func(), err error) {
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
			onError(fmt.Errorf("HTTP server at %s: %w", addr, err))
		}
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
		<-done
	}, nil
}
