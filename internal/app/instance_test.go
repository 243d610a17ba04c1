package app_test

import (
	"os"
	"testing"

	"github.com/guestflow/guestflow/internal/app"
)

// A replica that is not given a name is called by its host's.
func TestInstanceIsTheHostName(t *testing.T) {
	t.Parallel()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, given := range []string{"-", "", "pod-a"} {
		want := host
		if given == "pod-a" {
			want = given
		}
		cfg, err := app.LoadConfig(settings(t, map[string]string{"GUESTFLOW_INSTANCE": given}))
		if err != nil || cfg.Service.Instance != want {
			t.Errorf("GUESTFLOW_INSTANCE %q: instance %q, %v; want %q", given, cfg.Service.Instance, err, want)
		}
	}
}
