//go:build !linux

package vcapi

import (
	"syscall"
	"time"
)

// userTimeout does nothing where there is no TCP_USER_TIMEOUT: the operating system's own patience bounds how long a
// sent call can travel.
func userTimeout(time.Duration) func(network, address string, raw syscall.RawConn) error { return nil }
