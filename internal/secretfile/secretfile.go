// Package secretfile reads files that hold one secret each, as Kubernetes and other stores mount them.
package secretfile

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"
)

// MaxSize is the most bytes that a secret may have.
const MaxSize = 64 << 10

// Read returns the content of a regular file of at most MaxSize bytes, without one trailing line end. When ctx ends it
// gives up and returns the cause of that. It refuses a FIFO, a device or a folder. An error of the file system is an
// *fs.PathError.
//
// The file is opened and read by a goroutine of its own, because a mount that hangs (NFS, a CSI driver) holds both for
// as long as it likes; that goroutine then ends when the mount does.
func Read(ctx context.Context, path string) (string, error) {
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}

	type result struct {
		content string
		err     error
	}

	done := make(chan result, 1)
	go func() {
		content, err := read(path)
		done <- result{content, err}
	}()

	select {
	case r := <-done:
		return r.content, r.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// timeout bounds ReadFile.
const timeout = 10 * time.Second

var errTimeout = fmt.Errorf("it could not be read within %s: see the mount that it is on", timeout)

// ReadFile is Read for callers without a context: it gives up after ten seconds.
func ReadFile(path string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), timeout, errTimeout)
	defer cancel()
	return Read(ctx, path)
}

func read(path string) (string, error) {
	// Not blocking: to open a FIFO would wait for who writes it.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}

	if !info.Mode().IsRegular() {
		return "", fmt.Errorf(
			"it is no regular file but %s: a secret is a file with the secret in it", kind(info.Mode()),
		)
	}

	content, err := io.ReadAll(io.LimitReader(file, MaxSize+1))
	if err != nil {
		return "", err
	}
	if len(content) > MaxSize {
		return "", fmt.Errorf("it is larger than %d KiB: a secret is at most that large", MaxSize>>10)
	}

	return strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r"), nil
}

func kind(mode os.FileMode) string {
	switch {
	case mode.IsDir():
		return "a folder"
	case mode&os.ModeNamedPipe != 0:
		return "a named pipe"
	case mode&os.ModeSocket != 0:
		return "a socket"
	}
	return "a device"
}
