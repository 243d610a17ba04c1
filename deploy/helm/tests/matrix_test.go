package chart

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	"sigs.k8s.io/yaml"
)

// combinations are the values files of testdata/values: what people set together.
func combinations(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/values/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("testdata/values: %d files, %v", len(files), err)
	}
	all := map[string]string{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(file), ".yaml")] = string(b)
	}
	return all
}

// TestMatrix renders the chart with each combination of values, and holds each object against its schema.
func TestMatrix(t *testing.T) {
	s, err := loadSchemas()
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range combinations(t) {
		t.Run(name, func(t *testing.T) {
			rendered, files := manifests(t, values)
			seen := map[string]bool{}
			for _, o := range rendered {
				meta := o["metadata"].(object)
				id := fmt.Sprintf("%s %v", kindOf(o), meta["name"])
				if seen[id] {
					t.Errorf("%s is there twice", id)
				}
				seen[id] = true
				if meta["namespace"] != "guestflow" {
					t.Errorf("%s: namespace %v, want that of the release", id, meta["namespace"])
				}
				if withoutSchema[kindOf(o)] {
					continue
				}
				if err := s.validate(o); err != nil {
					t.Errorf("%s: %v", id, err)
				}
			}
			if notes := files["guestflow/templates/NOTES.txt"]; strings.Contains(notes, "<no value>") ||
				strings.Contains(notes, "<nil>") {
				t.Errorf("the notes have a hole:\n%s", notes)
			}
		})
	}
}

// TestLint runs helm lint with each combination, and with none. What it may say is that the NATS chart is not there: it
// comes from a registry.
func TestLint(t *testing.T) {
	all := combinations(t)
	all["no values"] = ""
	for name, values := range all {
		var v map[string]any
		if err := yaml.Unmarshal([]byte(values), &v); err != nil {
			t.Fatal(err)
		}
		for _, m := range lint.All(chartDir, v, "guestflow", true).Messages {
			known := strings.Contains(m.Error(), "icon is recommended") ||
				strings.Contains(m.Error(), "missing these dependencies: nats")
			if m.Severity > support.InfoSev && !known {
				t.Errorf("%s: %s", name, m)
			}
		}
	}
}

// TestEveryValue: each value is set in one combination at least.
func TestEveryValue(t *testing.T) {
	root, err := readSchema()
	if err != nil {
		t.Fatal(err)
	}
	var sets []map[string]any
	for _, values := range combinations(t) {
		var v map[string]any
		if err := yaml.Unmarshal([]byte(values), &v); err != nil {
			t.Fatal(err)
		}
		sets = append(sets, v)
	}
	var visit func(value)
	visit = func(v value) {
		for _, c := range v.children {
			visit(c)
		}
		if len(v.children) == 0 && !slices.ContainsFunc(sets, func(set map[string]any) bool {
			return isSet(set, v.path)
		}) {
			t.Errorf("%s is set in none of testdata/values", strings.Join(v.path, "."))
		}
	}
	for _, v := range root {
		visit(v)
	}
}

// isSet reports whether values hold something at a path, where <name> is any key.
func isSet(values any, path []string) bool {
	if len(path) == 0 {
		return true
	}
	m, _ := values.(map[string]any)
	if path[0] != "<name>" {
		below, there := m[path[0]]
		return there && isSet(below, path[1:])
	}
	for _, below := range m {
		if isSet(below, path[1:]) {
			return true
		}
	}
	return false
}
