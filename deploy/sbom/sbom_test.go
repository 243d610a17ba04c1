// Package sbom holds a bill of materials against its schema and against the binary that it is of: `make sbom` does.
package sbom

import (
	"debug/buildinfo"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

var (
	binary = flag.String("binary", "", "the binary")
	bill   = flag.String("sbom", "", "its bill of materials, CycloneDX 1.6 as JSON")
)

// TestSchema needs no network: the CycloneDX module carries the schemas.
func TestSchema(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/CycloneDX/cyclonedx-go").Output()
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	for name, file := range map[string]string{"bom-1.6.schema.json": "bom-1.6.schema.json",
		"spdx.schema.json":     "spdx.schema.json",
		"jsf-0.82.schema.json": "jsf-0.82.schemax.json"} {
		if err := compiler.AddResource("http://cyclonedx.org/schema/"+name,
			document(t, filepath.Join(strings.TrimSpace(string(dir)), "schema", file))); err != nil {
			t.Fatal(err)
		}
	}
	schema, err := compiler.Compile("http://cyclonedx.org/schema/bom-1.6.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(document(t, *bill)); err != nil {
		t.Error(err)
	}
}

func document(t *testing.T, file string) any {
	t.Helper()
	r, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	doc, err := jsonschema.UnmarshalJSON(r)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return doc
}

// TestComplete holds it against what the linker wrote into the binary, which `go version -m` shows.
func TestComplete(t *testing.T) {
	info, err := buildinfo.ReadFile(*binary)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"std@" + info.GoVersion}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		want = append(want, m.Path+"@"+m.Version)
	}
	raw, err := os.ReadFile(*bill)
	if err != nil {
		t.Fatal(err)
	}
	type component struct {
		Name, Version, PURL string
		Licenses            []any
		Evidence            struct{ Licenses []any }
	}
	var doc struct {
		Metadata   struct{ Component component }
		Components []component
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Metadata.Component.Name != info.Main.Path {
		t.Errorf("the bill is of %q, the binary of %q", doc.Metadata.Component.Name, info.Main.Path)
	}
	var got []string
	for _, c := range doc.Components {
		got = append(got, c.Name+"@"+c.Version)
		if !strings.HasPrefix(c.PURL, "pkg:golang/"+strings.ToLower(c.Name)+"@") &&
			!strings.HasPrefix(c.PURL, "pkg:golang/"+c.Name+"@") {
			t.Errorf("%s: package URL %q", c.Name, c.PURL)
		}
		if c.Name != "std" && len(c.Licenses)+len(c.Evidence.Licenses) == 0 {
			t.Errorf("%s: its licence was not found", c.Name)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("modules (-binary +bill):\n%s", diff)
	}
}
