//go:build image

package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/guestflow/guestflow/sandbox"
)

const (
	standIn = "localhost/golang"
	release = "v1.2.3"
	commit  = "c0ffee0000000000000000000000000000c0ffee"
	epoch   = "1700000000" // 2023-11-14T22:13:20Z
	number  = 65532
)

// TestImage builds the service's image for both architectures as `make image` does, but for the base, which is this
// machine's own Go and CA certificates; again from another folder; the binaries without any image; and starts the
// service from its image. That of the command is made the same way: once, for this machine.
func TestImage(t *testing.T) {
	storage(t)
	makeStandIn(t)
	first, second := t.TempDir(), filepath.Join(t.TempDir(), "deeper", "down")
	for _, dir := range []string{first, second} {
		copyContext(t, dir)
		output(t, "", "cp", dockerfile, root+"/.dockerignore", dir)
	}
	repository(t, second)

	one, two := build(t, first, "image", "amd64", "arm64"), build(t, second, "image", "amd64", "arm64")
	if diff := cmp.Diff(one.digests(t), two.digests(t)); diff != "" {
		t.Errorf("one commit, two images (-one folder +another):\n%s", diff)
	}
	t.Logf("from two folders: %v", one.digests(t))
	for _, arch := range []string{"amd64", "arm64"} {
		dir := one.check(t, first, arch, "consumer", map[string]struct{}{"8080/tcp": {}})
		if arch == runtime.GOARCH {
			t.Run("start", func(t *testing.T) { start(t, dir) })
		}
	}
	cli := build(t, first, "image-cli", runtime.GOARCH)
	cli.check(t, first, runtime.GOARCH, "guestflow", nil)
}

// check holds the image for an architecture to what was asked for, and returns its root file system.
func (l layout) check(t *testing.T, source, arch, binary string, ports map[string]struct{}) string {
	t.Helper()
	img := l.image(t, arch)
	const label, created = "org.opencontainers.image.", "2023-11-14T22:13:20Z"
	// buildah's own, in every image
	path := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	want := imageConfig{User: user, Env: path, Entrypoint: []string{"/" + binary}, ExposedPorts: ports,
		Labels: map[string]string{
			label + "source": "https://github.com/guestflow/guestflow", label + "licenses": "Apache-2.0", label +
				"version": release, label + "revision": commit, label + "created": created,
			label + "title": img.Config.Labels[label+"title"], label + "description": img.Config.Labels[label+
				"description"]}}
	if diff := cmp.Diff(want, img.Config); diff != "" {
		t.Errorf("%s for %s (-want +got):\n%s", binary, arch, diff)
	}
	if img.Created != created || img.Architecture != arch {
		t.Errorf("%s for %s: made at %s for %s", binary, arch, img.Created, img.Architecture)
	}
	dir := t.TempDir()
	img.unpack(t, dir)
	checkFiles(t, dir, binary)
	checkBinary(t, source, dir, binary, arch)
	t.Logf("%s for %s: %d bytes to pull; the binary has %d", binary, arch, img.size,
		fileSize(t, filepath.Join(dir, binary)))
	return dir
}

// storage gives buildah a storage and caches of the test's own: nothing is built before.
func storage(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "storage.conf")
	text := fmt.Sprintf("[storage]\ndriver = %q\ngraphroot = %q\nrunroot = %q\n", "vfs", dir+"/storage", dir+"/run")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+"/tmp", 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_STORAGE_CONF", conf)
	t.Setenv("STORAGE_DRIVER", "vfs")
	t.Setenv("BUILDAH_ISOLATION", "chroot")
	t.Setenv("TMPDIR", dir+"/tmp")
}

// makeStandIn makes the image that stands in for golang: this machine's Go, its CA certificates, and the few programs
// that the build runs.
func makeStandIn(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for _, folder := range []string{"/tmp", "/root", "/go", "/bin", "/etc/ssl/certs", "/usr/local"} {
		if err := os.MkdirAll(dir+"/root"+folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	goroot := strings.TrimSpace(output(t, "", "go", "env", "GOROOT"))
	output(t, "", "cp", "-a", goroot, dir+"/root/usr/local/go")
	output(t, "", "cp", "-L", "/etc/ssl/certs/ca-certificates.crt", dir+"/root/etc/ssl/certs/")
	for _, name := range []string{"bash", "make", "mkdir", "cp", "chmod"} {
		program, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		output(t, "", "install", "-D", program, dir+"/root/bin/"+name)
		for _, field := range strings.Fields(output(t, "", "ldd", program)) {
			if strings.HasPrefix(field, "/") {
				output(t, "", "install", "-D", field, dir+"/root"+field)
			}
		}
	}
	if err := os.Symlink("bash", dir+"/root/bin/sh"); err != nil {
		t.Fatal(err)
	}
	containerfile := "FROM scratch\nCOPY root /\nENV PATH=/usr/local/go/bin:/bin GOPATH=/go\n"
	if err := os.WriteFile(dir+"/Containerfile", []byte(containerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	output(t, dir, "buildah", "build", "-t", standIn, ".")
}

func output(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var out, wrong bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &wrong
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %v: %v\n%s%s", name, args, err, out.Bytes(), wrong.Bytes())
	}
	return out.String()
}

// layout is a folder as the OCI's image layout has it: what a registry would hold.
type layout struct {
	dir, digest string
}

// image of one architecture.
type image struct {
	Architecture string
	Created      string
	Config       imageConfig

	dir    string
	layers []string // digests
	size   int64    // of its blobs
}

type imageConfig struct {
	User         string
	Env          []string
	Entrypoint   []string
	Cmd          []string
	WorkingDir   string
	ExposedPorts map[string]struct{}
	Volumes      map[string]struct{}
	Labels       map[string]string
}

type descriptor struct {
	Digest   string
	Size     int64
	Platform struct{ Architecture string }
}

// build makes an image and puts it, with the list of its architectures, into a layout.
func build(t *testing.T, dir, target string, archs ...string) layout {
	t.Helper()
	platforms := "linux/" + strings.Join(archs, ",linux/")
	output(t, dir, "make", target, "PLATFORMS="+platforms, "IMAGE=localhost/image",
		"GO_IMAGE="+standIn, "VERSION="+release, "COMMIT="+commit, "SOURCE_DATE_EPOCH="+epoch)
	to := t.TempDir()
	output(t, "", "buildah", "manifest", "push", "--all", "localhost/"+target+":"+release, "oci:"+to)
	var index struct{ Manifests []descriptor }
	read(t, to+"/index.json", &index)
	if len(index.Manifests) != 1 {
		t.Fatalf("%s: %d entries in the layout's index, not one", target, len(index.Manifests))
	}
	l := layout{to, index.Manifests[0].Digest}
	if got := slices.Sorted(maps.Keys(l.digests(t))); !slices.Equal(got, archs) {
		t.Errorf("%s is for %v, not %v", target, got, archs)
	}
	return l
}

func (l layout) manifests(t *testing.T) []descriptor {
	t.Helper()
	var list struct{ Manifests []descriptor }
	read(t, blob(l.dir, l.digest), &list)
	return list.Manifests
}

// digests are those of the images, by architecture: buildah lists them in any order.
func (l layout) digests(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, entry := range l.manifests(t) {
		all[entry.Platform.Architecture] = entry.Digest
	}
	return all
}

func blob(dir, digest string) string {
	return filepath.Join(dir, "blobs", strings.ReplaceAll(digest, ":", "/"))
}

func read(t *testing.T, file string, into any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

func (l layout) image(t *testing.T, arch string) image {
	t.Helper()
	for _, entry := range l.manifests(t) {
		if entry.Platform.Architecture != arch {
			continue
		}
		var manifest struct {
			Config descriptor
			Layers []descriptor
		}
		read(t, blob(l.dir, entry.Digest), &manifest)
		img := image{dir: l.dir, size: entry.Size + manifest.Config.Size}
		read(t, blob(l.dir, manifest.Config.Digest), &img)
		for _, layer := range manifest.Layers {
			img.layers = append(img.layers, layer.Digest)
			img.size += layer.Size
		}
		return img
	}
	t.Fatalf("no image for %s", arch)
	return image{}
}

// unpack makes the image's root file system, owners and modes included.
func (i image) unpack(t *testing.T, dir string) {
	t.Helper()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, layer := range i.layers {
		file, err := os.Open(blob(i.dir, layer))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		zip, err := gzip.NewReader(bufio.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		for layer := tar.NewReader(zip); ; {
			header, err := layer.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			extract(t, filepath.Join(dir, header.Name), header, layer)
		}
	}
}

func extract(t *testing.T, name string, header *tar.Header, content io.Reader) {
	t.Helper()
	var err error
	switch header.Typeflag {
	case tar.TypeDir:
		err = os.MkdirAll(name, 0o755)
	case tar.TypeReg:
		var b []byte
		if b, err = io.ReadAll(content); err == nil {
			err = os.WriteFile(name, b, 0o600)
		}
	default:
		t.Fatalf("%s is neither a file nor a folder: type %q", header.Name, header.Typeflag)
	}
	if err := errors.Join(err, os.Chown(name, header.Uid, header.Gid),
		os.Chmod(name, header.FileInfo().Mode())); err != nil {
		t.Fatal(err)
	}
}

// checkFiles: the image has these files and no other, of root, and nobody else may write to them.
func checkFiles(t *testing.T, dir, binary string) {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		owner := info.Sys().(*syscall.Stat_t)
		got[strings.TrimPrefix(file, dir)] = fmt.Sprintf("%v %d:%d", info.Mode(), owner.Uid, owner.Gid)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const folder, file, program = "drwxr-xr-x 0:0", "-rw-r--r-- 0:0", "-rwxr-xr-x 0:0"
	want := map[string]string{"": folder, "/" + binary: program, "/LICENSE": file, "/NOTICE": file, "/etc": folder,
		"/etc/passwd": file, "/etc/group": file,
		"/etc/ssl": folder, "/etc/ssl/certs": folder, "/etc/ssl/certs/ca-certificates.crt": file}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	roots, err := os.ReadFile(dir + "/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		t.Fatal(err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(roots) {
		t.Error("no certificate in ca-certificates.crt")
	}
	for name, want := range map[string]string{"passwd": "guestflow:x:65532:65532:guestflow:/:/sbin/nologin\n",
		"group": "guestflow:x:65532:\n"} {
		if got, err := os.ReadFile(dir + "/etc/" + name); err != nil || string(got) != want {
			t.Errorf("/etc/%s: %q, %v", name, got, err)
		}
	}
}

// checkBinary: it is for the machine that the image is for, has the stamps, and is what the same commit makes without
// an image, with other caches.
func checkBinary(t *testing.T, source, dir, binary, arch string) {
	t.Helper()
	info, err := buildinfo.ReadFile(filepath.Join(dir, binary))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, s := range info.Settings {
		got[s.Key] = s.Value
	}
	level := map[string]string{"amd64": "GOAMD64", "arm64": "GOARM64"}[arch]
	want := map[string]string{"-buildmode": "exe", "-compiler": "gc", "-trimpath": "true", "CGO_ENABLED": "0",
		"GOOS": "linux", "GOARCH": arch, level: got[level]}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s for %s: build settings (-want +got):\n%s", binary, arch, diff)
	}
	output(t, source, "env", "GOARCH="+arch, "make", binary, "BIN="+dir+".host", "VERSION="+release, "COMMIT="+commit)
	if here, there := sum(t, dir+".host/"+binary), sum(t, filepath.Join(dir, binary)); here != there {
		t.Errorf("%s for %s: %s in the image, %s without one", binary, arch, there, here)
	} else {
		t.Logf("%s for %s: sha256 %s in the image, and without one", binary, arch, here)
	}
	if err := os.RemoveAll(dir + ".host"); err != nil {
		t.Fatal(err)
	}
}

func fileSize(t *testing.T, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// start runs the service in its root file system, which nobody can write to, as the image's user, on the sandbox's NATS
// and vCenter. It has no /proc, /dev or /tmp, and beside the image only the folder with secrets, mounted read-only:
// less than a container runtime gives it.
func start(t *testing.T, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	secrets := t.TempDir()
	s, err := sandbox.Start(ctx, sandbox.Options{NoService: true, Dir: secrets})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	output(t, "", "chown", "-R", strconv.Itoa(number), secrets)
	if err := os.MkdirAll(dir+secrets, 0o755); err != nil { // as a container runtime makes its mount points
		t.Fatal(err)
	}
	mountReadOnly(t, dir, dir)
	mountReadOnly(t, secrets, dir+secrets)
	if err := os.WriteFile(dir+"/new", nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("the root file system can be written to: %v", err)
	}
	out, err := inImage(ctx, dir, "-version").Output()
	if want := fmt.Sprintf("guestflow %s (commit %s, %s, linux/%s)\n", release, commit, runtime.Version(),
		runtime.GOARCH); err != nil || string(out) != want {
		t.Errorf("-version says %q, not %q: %v", out, want, err)
	}
	const starts = 10
	var took, rss []int64
	for range starts {
		ready, kept := serve(t, ctx, dir, s)
		took, rss = append(took, ready.Milliseconds()), append(rss, kept)
	}
	t.Logf("from the start of the process to a ready service, in ms: %d the first time, which makes the streams; "+
		"later %v",
		took[0], slices.Sorted(slices.Values(took[1:])))
	t.Logf("resident memory ten seconds after: %v kB", slices.Sorted(slices.Values(rss)))
}

func mountReadOnly(t *testing.T, from, to string) {
	t.Helper()
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(to, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", to, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV,
		""); err != nil {
		t.Fatal(err)
	}
}

// inImage is the service as a process with the image's root file system and user.
func inImage(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/consumer", args...)
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir, Credential: &syscall.Credential{Uid: number, Gid: number}}
	return cmd
}

// serve runs the service until it was ready for ten seconds, and says how soon it was, and its resident memory in kB.
func serve(t *testing.T, ctx context.Context, dir string, s *sandbox.Sandbox) (time.Duration, int64) {
	t.Helper()
	var log bytes.Buffer
	cmd := inImage(ctx, dir)
	cmd.Env, cmd.Stderr = s.Env(), &log
	cmd.Cancel = func() error { return cmd.Process.Kill() }
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for get(ctx, s.URL()+"/readyz") == "" {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not ready: %v\n%s", ctx.Err(), log.String())
		}
	}
	ready := time.Since(began)
	status := procStatus(t, cmd.Process.Pid)
	for key, want := range map[string]string{"Uid": "65532 65532 65532 65532", "Gid": "65532 65532 65532 65532",
		"CapEff": "0000000000000000"} {
		if status[key] != want {
			t.Errorf("%s of the process: %s, not %s", key, status[key], want)
		}
	}
	for up := false; !up; { // logged in at the vCenter: its password and CA are read in the image
		select {
		case <-tick.C:
			up = strings.Contains(get(ctx, s.URL()+"/metrics"), `guestflow_vcenter_up{vcenter="lab"} 1`)
		case <-ctx.Done():
			t.Fatalf("no login at the vCenter: %v\n%s", ctx.Err(), log.String())
		}
	}
	rest := time.NewTimer(10 * time.Second)
	select {
	case <-rest.C:
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	memory, err := strconv.ParseInt(strings.TrimSuffix(procStatus(t, cmd.Process.Pid)["VmRSS"], " kB"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, log.String())
	}
	return ready, memory
}

func procStatus(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for l := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(l, ":")
		all[key] = strings.Join(strings.Fields(value), " ")
	}
	return all
}

// get is the body of a 200, else empty.
func get(ctx context.Context, url string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return ""
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil && resp.StatusCode == http.StatusOK {
		return string(b)
	}
	return ""
}
