package secretfile

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What is no secret is refused with the reason, and is neither read whole nor waited for.
func TestRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, content string) {
		if err := os.WriteFile(at(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	write("secret", "s3cret\n")
	write("dos", "s3cret\n\r\n")
	write("largest", strings.Repeat("x", MaxSize))
	write("larger", strings.Repeat("x", MaxSize+1))
	write("huge", "")
	if err := os.Truncate(at("huge"), 4<<30); err != nil { // a file with a hole: nothing is stored of it
		t.Fatal(err)
	}

	for link, to := range map[string]string{"link": "secret", "to-fifo": "fifo"} { // as Kubernetes mounts a Secret
		if err := os.Symlink(to, at(link)); err != nil {
			t.Fatal(err)
		}
	}

	if err := syscall.Mkfifo(at("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}

	for _, row := range []struct{ path, content, err string }{
		{at("secret"), "s3cret", ""},
		{at("link"), "s3cret", ""},
		{at("dos"), "s3cret\n", ""},
		{at("largest"), strings.Repeat("x", MaxSize), ""},
		{at("larger"), "", "larger than 64 KiB"},
		{at("huge"), "", "larger than 64 KiB"},
		{at("fifo"), "", "a named pipe"},
		{at("to-fifo"), "", "a named pipe"},
		{dir, "", "a folder"},
		{os.DevNull, "", "a device"},
		{at("nothing"), "", "no such file"},
	} {
		content, err := Read(context.Background(), row.path)
		switch {
		case row.err == "" && (err != nil || content != row.content):
			t.Errorf("%s: %d bytes, %v", row.path, len(content), err)
		case row.err != "" && (err == nil || !strings.Contains(err.Error(), row.err)):
			t.Errorf("%s: %v, want %q", row.path, err, row.err)
		}
	}

	if _, err := Read(context.Background(), at("nothing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// A file that cannot be read now is given up with its caller.
func TestReadGivesUp(t *testing.T) {
	t.Parallel()
	why := errors.New("the run was canceled")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(why)

	if _, err := Read(ctx, t.TempDir()); !errors.Is(err, why) {
		t.Errorf("got %v, want why the context has ended", err)
	}
}
