//go:build tools

// Package nats pins the nats command, apart from the service's own modules.
package nats

import _ "github.com/nats-io/natscli/nats"
