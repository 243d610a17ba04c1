package app

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

// The level is changed while the service runs, by who is in the pod's network alone.
func TestLogLevel(t *testing.T) {
	t.Parallel()
	var said strings.Builder
	level := newLogLevel("warn")
	log := NewLogger(Config{Service: Service{LogFormat: "json"}, logLevel: level}, &said)
	put := func(from, body string) int {
		req := httptest.NewRequest(http.MethodPut, "/loglevel", strings.NewReader(body))
		req.RemoteAddr = from
		answer := httptest.NewRecorder()
		level.set(log)(answer, req)
		return answer.Code
	}
	log.Info().Msg("hidden")
	log.Warn().Msg("first")
	for _, test := range []struct {
		from, body string
		status     int
		is         zerolog.Level
	}{
		{"10.0.0.7:4711", "debug", http.StatusForbidden, zerolog.WarnLevel},
		{"not an address", "debug", http.StatusForbidden, zerolog.WarnLevel},
		{"127.0.0.6:4711", "debug", http.StatusForbidden, zerolog.WarnLevel},
		{"127.0.0.1:4711", "loud", http.StatusBadRequest, zerolog.WarnLevel},
		{"127.0.0.1:4711", strings.Repeat("debug", 10), http.StatusBadRequest, zerolog.WarnLevel},
		{"127.0.0.1:4711", "Debug\n", http.StatusOK, zerolog.DebugLevel},
		{"[::1]:4711", "info", http.StatusOK, zerolog.InfoLevel},
	} {
		if status := put(test.from, test.body); status != test.status || level.level() != test.is {
			t.Errorf("PUT %.10q from %s: %d, the level is %s; want %d, %s", test.body, test.from, status, level.level(),
				test.status, test.is)
		}
	}
	log.Debug().Msg("hidden")
	log.Info().Msg("second")
	answer := httptest.NewRecorder()
	level.show(answer, httptest.NewRequest(http.MethodGet, "/loglevel", nil))
	if answer.Body.String() != "info\n" {
		t.Errorf("GET: %q", answer.Body)
	}
	var messages []string
	for line := range strings.Lines(said.String()) {
		_, message, _ := strings.Cut(line, `"message":"`)
		messages = append(messages, strings.TrimSuffix(strings.TrimSpace(message), `"}`))
	}
	if got := strings.Join(messages, ", "); got != "first, log level changed, log level changed, second" {
		t.Errorf("the log says %s:\n%s", got, said.String())
	}
}
