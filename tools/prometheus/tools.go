//go:build tools

// Package prometheus pins Prometheus. Its engine tests the alerts and reads the dashboards' queries (make rules); server and promtool are built for
// make dashboard-look only.
package prometheus

import (
	_ "github.com/prometheus/prometheus/cmd/prometheus"
	_ "github.com/prometheus/prometheus/cmd/promtool"
)
