package vcapi

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTravelTime: the kernel knows how long an effect may travel, and discards what is unsent when the connection is
// closed.
func TestTravelTime(t *testing.T) {
	t.Parallel()
	f := newFake(t, "9.0.0.0")
	cfg := f.config()
	cfg.TravelTime = 1234 * time.Millisecond
	conn, tcp, err := newClient(t, cfg).dialEffect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}

	var timeout int
	var linger *unix.Linger
	if err := raw.Control(func(fd uintptr) {
		timeout, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		linger, _ = unix.GetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER)
	}); err != nil {
		t.Fatal(err)
	}

	if timeout != 1234 || linger == nil || linger.Onoff == 0 || linger.Linger != 0 {
		t.Errorf("TCP_USER_TIMEOUT %d ms, SO_LINGER %+v", timeout, linger)
	}
}
