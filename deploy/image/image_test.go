// Package image holds the image to its promises: what needs no builder in every test run, the rest by `make
// image-test`.
package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"go/version"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	root       = "../.." // of the repository
	dockerfile = root + "/Dockerfile"
	user       = "65532:65532"
	mostBytes  = 25_000_000 // of the service's binary
)

// stage of the Dockerfile: what it starts from, and its instructions, each on one line.
type stage struct {
	name, from string
	lines      []string
}

// has are the arguments of the stage's instructions of a kind, such as ENV.
func (s stage) has(instruction string) (all []string) {
	for _, l := range s.lines {
		if rest, ok := strings.CutPrefix(l, instruction+" "); ok {
			all = append(all, rest)
		}
	}
	return all
}

// stages of the Dockerfile; the first, without a name, is what stands before them.
func stages(t *testing.T) []stage {
	t.Helper()
	b, err := os.ReadFile(dockerfile)
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for l := range strings.Lines(string(b)) {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "#") {
			kept = append(kept, l)
		}
	}
	all := []stage{{}}
	for l := range strings.Lines(strings.ReplaceAll(strings.Join(kept, "\n"), "\\\n", "")) {
		l = strings.TrimSpace(l)
		last := &all[len(all)-1]
		if from, ok := strings.CutPrefix(l, "FROM "); ok {
			fields := strings.Fields(from)
			if n := len(fields); n < 3 || fields[n-2] != "AS" {
				t.Fatalf("%s: a stage without a name", l)
			}
			all = append(all, stage{name: fields[len(fields)-1], from: strings.Join(fields[:len(fields)-2], " ")})
			continue
		}
		last.lines = append(last.lines, l)
	}
	return all
}

func find(t *testing.T, name string) stage {
	t.Helper()
	all := stages(t)
	i := slices.IndexFunc(all, func(s stage) bool { return s.name == name })
	if i < 0 {
		t.Fatalf("no stage %s in the Dockerfile", name)
	}
	return all[i]
}

func TestBaseIsPinned(t *testing.T) {
	t.Parallel()
	base, ok := strings.CutPrefix(find(t, "").has("ARG")[0], "GO_IMAGE=")
	pinned := regexp.MustCompile(`^docker\.io/library/golang:(\d+\.\d+\.\d+)@sha256:[0-9a-f]{64}$`).FindStringSubmatch(
		base)
	if !ok || pinned == nil {
		t.Fatalf("GO_IMAGE is %q, not golang with its whole version and its digest", base)
	}
	for _, s := range stages(t)[1:] {
		if strings.Contains(s.from, ":") {
			t.Errorf("stage %s starts from %s, an image that is not an ARG", s.name, s.from)
		}
	}
	var mod struct{ Go string }
	out, err := exec.Command("go", "mod", "edit", "-json", root+"/go.mod").Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	if version.Compare("go"+pinned[1], "go"+mod.Go) < 0 {
		t.Errorf("go.mod needs Go %s, the image has %s and fetches no other", mod.Go, pinned[1])
	}
}

// TestArgs: an ARG that a stage uses and does not name is empty there, and an image without a version, or for the wrong
// machine, is built all the same.
func TestArgs(t *testing.T) {
	t.Parallel()
	uses := regexp.MustCompile(`\$\{?([A-Z]+)`)
	for _, s := range stages(t)[1:] {
		named := map[string]bool{}
		for _, arg := range s.has("ARG") {
			if strings.Contains(arg, " ") {
				t.Errorf("stage %s: ARG %s: buildah 1.28 reads only the first of a line", s.name, arg)
			}
			name, _, _ := strings.Cut(arg, "=")
			named[name] = true
		}
		for _, l := range s.lines {
			for _, use := range uses.FindAllStringSubmatch(l, -1) {
				if !named[use[1]] {
					t.Errorf("stage %s uses $%s and has no ARG %s", s.name, use[1], use[1])
				}
			}
		}
	}
}

func TestFinalStages(t *testing.T) {
	t.Parallel()
	all := stages(t)
	if last := all[len(all)-1].name; last != "service" {
		t.Errorf("the last stage is %s: a build without --target does not make the service's image", last)
	}
	base := find(t, "base")
	if base.from != "scratch" {
		t.Errorf("stage base starts from %s, not from scratch", base.from)
	}
	for _, label := range []string{"source", "licenses", "version", "revision", "created"} {
		if !strings.Contains(strings.Join(base.has("LABEL"), " "), "org.opencontainers.image."+label+"=") {
			t.Errorf("no label %s", label)
		}
	}
	if !slices.Contains(find(t, "source").has("COPY"), "LICENSE NOTICE /image/") {
		t.Error("the image has no LICENSE or no NOTICE: what is in it may not be passed on without")
	}
	for name, binary := range map[string]string{"service": "consumer", "cli": "guestflow"} {
		s := find(t, name)
		if s.from != "base" {
			t.Errorf("stage %s starts from %s, not from base", name, s.from)
		}
		got := slices.Concat(base.lines, s.lines)
		got = slices.DeleteFunc(got, func(l string) bool {
			return strings.HasPrefix(l, "ARG ") || strings.HasPrefix(l, "LABEL ") || l == "EXPOSE 8080"
		})
		want := []string{"COPY --from=source /image/ /", "USER " + user,
			"COPY --from=" + name + "-build /src/bin/" + binary + " /" + binary, `ENTRYPOINT ["/` + binary + `"]`}
		if !slices.Equal(got, want) {
			t.Errorf("stage %s does more or less than\n%s\nnamely\n%s", name, strings.Join(want, "\n"),
				strings.Join(got, "\n"))
		}
	}
	if !slices.Contains(find(t, "service").lines, "EXPOSE 8080") {
		t.Error("the service's port is not exposed")
	}
}

// TestReproducible builds from the build context alone, in two folders of which one is a git repository.
func TestReproducible(t *testing.T) {
	t.Parallel()
	dirs := []string{t.TempDir(), filepath.Join(t.TempDir(), "deeper", "down")}
	sums := map[string]string{}
	for i, dir := range dirs {
		copyContext(t, dir)
		if i > 0 {
			repository(t, dir)
		}
		build := exec.Command("make", "consumer", "VERSION=v1.2.3", "COMMIT=c0ffee")
		build.Dir = dir
		build.Env = append(os.Environ(), "GOFLAGS=-buildvcs=auto", "GOOS=linux", "GOARCH=amd64")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("in the build context of the image: %v\n%s", err, out)
		}
		sums[sum(t, dir+"/bin/consumer")] = dir
	}
	if len(sums) != 1 {
		t.Errorf("one commit, two binaries: %v", slices.Collect(maps.Values(sums)))
	}
	info, err := os.Stat(dirs[0] + "/bin/consumer")
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() >= mostBytes {
		t.Errorf("the service has %d bytes, %d too many: see what it links with go list -deps ./cmd/consumer",
			info.Size(), info.Size()-mostBytes+1)
	}
}

// copyContext copies what .dockerignore leaves of the repository: the rules apply in their order, the last that fits
// decides.
func copyContext(t *testing.T, to string) {
	t.Helper()
	ignore, err := os.ReadFile(root + "/.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name == ".git" || name == "bin" {
				return fs.SkipDir
			}
			return nil
		}
		keep := true
		for rule := range strings.Lines(string(ignore)) {
			rule = strings.TrimSpace(rule)
			if rule == "" || strings.HasPrefix(rule, "#") {
				continue
			}
			pattern, kept := strings.CutPrefix(rule, "!")
			if fits(pattern, name) {
				keep = kept
			}
		}
		if !keep {
			return nil
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o755); err != nil {
			return err
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, name), b, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fits says whether a pattern of .dockerignore is of the file or of a folder that it is in.
func fits(pattern, name string) bool {
	parts := strings.Split(name, "/")
	if anywhere, ok := strings.CutPrefix(pattern, "**/"); ok {
		return slices.ContainsFunc(parts, func(part string) bool { ok, _ := path.Match(anywhere, part); return ok })
	}
	depth := strings.Count(pattern, "/") + 1
	if depth > len(parts) {
		return false
	}
	ok, _ := path.Match(pattern, strings.Join(parts[:depth], "/"))
	return ok
}

// repository makes the folder a git repository with a commit.
func repository(t *testing.T, dir string) {
	t.Helper()
	commit := []string{"-c", "user.name=test", "-c", "user.email=test@example.test", "-c", "commit.gpgsign=false",
		"commit", "-q", "-m", "all"}
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, commit} {
		git := exec.Command("git", args...)
		git.Dir = dir
		if out, err := git.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
}

func sum(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(b)
	return hex.EncodeToString(hash[:])
}
