package app

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// NewLogger makes the service's log as the settings ask for it.
func NewLogger(cfg Config, out io.Writer) zerolog.Logger {
	if cfg.Service.LogFormat == "console" {
		out = zerolog.ConsoleWriter{Out: out, TimeFormat: time.TimeOnly}
	}
	level := cfg.logLevel
	if level == nil {
		level = newLogLevel(cfg.Service.LogLevel)
	}
	return zerolog.New(out).Hook(level).With().Timestamp().Str("instance", cfg.Service.Instance).Logger()
}

// logLevel is the lowest level of the lines that are written. It can be changed while the service runs.
type logLevel struct{ least atomic.Int32 }

func newLogLevel(name string) *logLevel {
	l := &logLevel{}
	level, ok := levelOf(name)
	if !ok { // LoadConfig returns an error for it
		level = zerolog.InfoLevel
	}
	l.least.Store(int32(level))
	return l
}

// Run implements zerolog.Hook.
func (l *logLevel) Run(e *zerolog.Event, level zerolog.Level, _ string) {
	if level < l.level() {
		e.Discard()
	}
}

func (l *logLevel) level() zerolog.Level {
	return zerolog.Level(l.least.Load()) //nolint:gosec // what was stored was a level
}

// show answers GET /loglevel.
func (l *logLevel) show(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, l.level()) }

// set answers PUT /loglevel, whose body is the level's name. It accepts requests from the pod itself only, for example
// through kubectl port-forward.
func (l *logLevel) set(log zerolog.Logger) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		// Not every loopback address: the sidecar of a mesh delivers requests from outside from other ones.
		host, _, err := net.SplitHostPort(req.RemoteAddr)
		if err != nil || host != "127.0.0.1" && host != "::1" {
			http.Error(w, "the log level is set from the pod itself only: kubectl port-forward", http.StatusForbidden)
			return
		}
		const longest = 16 // of a level's name
		body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, longest))
		level, ok := levelOf(strings.TrimSpace(string(body)))
		if err != nil || !ok {
			http.Error(w, "the body is none of "+levelNames, http.StatusBadRequest)
			return
		}
		before := zerolog.Level(l.least.Swap(int32(level))) //nolint:gosec // what was stored was a level
		log.WithLevel(zerolog.NoLevel).Stringer("from", before).Stringer("to", level).Msg("log level changed")
		_, _ = fmt.Fprintln(w, level)
	}
}

// levelOf is the level of a name, in whatever case.
func levelOf(name string) (zerolog.Level, bool) {
	level, ok := levels[strings.ToLower(name)]
	return level, ok
}

const levelNames = "trace, debug, info, warn, error"

var levels = map[string]zerolog.Level{
	"trace": zerolog.TraceLevel,
	"debug": zerolog.DebugLevel,
	"info":  zerolog.InfoLevel,
	"warn":  zerolog.WarnLevel,
	"error": zerolog.ErrorLevel,
}
