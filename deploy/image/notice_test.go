package image

import (
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write NOTICE anew")

const noticeHead = `guestflow
Copyright 2026 The guestflow authors

Licensed under the Apache License, Version 2.0: see the file LICENSE.

The binaries contain the modules below. Each has its licence and its notice with it,
except the text of the Apache License, Version 2.0, which is that of the file LICENSE.
Go's runtime and standard library have the licence of golang.org/x/sys.
`

// Whoever passes the binaries on passes on the licences and notices of what is in them: NOTICE has all of them.
// After a change of go.mod: go test ./deploy/image -run TestNotice -update
func TestNotice(t *testing.T) {
	t.Parallel()
	var want strings.Builder
	want.WriteString(noticeHead)
	for _, m := range linked(t) {
		want.WriteString("\n" + strings.Repeat("-", 80) + "\n" + m.Path + "\n")
		texts := licences(t, m.Dir)
		if len(texts) == 0 {
			t.Errorf("module %s has no licence that could be passed on", m.Path)
		}
		for _, text := range texts {
			if isApache(text) {
				text = "Apache License, Version 2.0"
			}
			want.WriteString("\n" + strings.Trim(text, "\n") + "\n")
		}
	}

	file := filepath.Join(root, "NOTICE")
	if *update {
		if err := os.WriteFile(file, []byte(want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want.String() {
		t.Error("NOTICE is not that of the modules in the binaries: go test ./deploy/image -run TestNotice -update")
	}
}

type module struct{ Path, Dir string }

// linked are the modules in the two binaries on Linux, by path.
func linked(t *testing.T) (all []module) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=Module", "./cmd/consumer", "./cmd/guestflow")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			Module *struct {
				module
				Main bool
			}
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if p.Module != nil && !p.Module.Main && !slices.Contains(all, p.Module.module) {
			all = append(all, p.Module.module)
		}
	}
	slices.SortFunc(all, func(a, b module) int { return strings.Compare(a.Path, b.Path) })
	return all
}

// licences are the texts of a module's licences and notices, by the files' names, without blanks at the ends of lines.
func licences(t *testing.T, dir string) (texts []string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name := strings.ToUpper(f.Name())
		if f.IsDir() || !slices.ContainsFunc([]string{"LICENSE", "LICENCE", "COPYING", "NOTICE"},
			func(start string) bool {
				return strings.HasPrefix(name, start)
			}) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.ReplaceAll(string(b), "\r\n", "\n"), "\n")
		for i, l := range lines {
			lines[i] = strings.TrimRight(l, " \t\f")
		}
		texts = append(texts, strings.Join(lines, "\n"))
	}
	return texts
}

// isApache reports whether a text is that of the Apache License and nothing else.
func isApache(text string) bool {
	words := strings.Join(strings.Fields(text), " ")
	return strings.HasPrefix(words, "Apache License Version 2.0, January 2004") && len(words) < 12_000
}
