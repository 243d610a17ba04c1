package app_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/guestflow/guestflow/internal/app"
)

// LOG_LEVEL and LOG_FORMAT decide what is written, and how; every line names the instance.
func TestNewLogger(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		level, format string
		lines         int
	}{{"info", "json", 2}, {"warn", "json", 1}, {"debug", "json", 3}, {"info", "console", 2}} {
		var out bytes.Buffer
		log := app.NewLogger(
			app.Config{Service: app.Service{Instance: "pod-a", LogLevel: row.level, LogFormat: row.format}}, &out)
		log.Debug().Msg("one")
		log.Info().Msg("two")
		log.Warn().Msg("three")
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != row.lines {
			t.Errorf("%s %s: %d lines, want %d:\n%s", row.level, row.format, len(lines), row.lines, &out)
		}
		for _, line := range lines {
			if isJSON := json.Valid(
				[]byte(line),
			); isJSON != (row.format == "json") ||
				!strings.Contains(line, "pod-a") {
				t.Errorf("%s %s: %s", row.level, row.format, line)
			}
		}
	}
}
