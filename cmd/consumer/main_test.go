package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sethvargo/go-envconfig"
)

func TestWrongSettingsEndTheStart(t *testing.T) {
	t.Parallel()
	err := run(t.Context(), envconfig.MapLookuper(map[string]string{"GUESTFLOW_VCENTERS": "lab", "LOG_LEVEL": "loud"}))
	for _, want := range []string{"VCENTER_LAB_URL", "VCENTER_LAB_USERNAME", "VCENTER_LAB_PASSWORD_FILE", "LOG_LEVEL"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}
