package main

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What validate says of inputs out of public reports, and of others of their kind: what is wrong, where, and what to
// change.
func TestValidateCases(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../internal/events/testdata/cases/*.json")
	if err != nil {
		t.Fatal(err)
	}
	own, err := filepath.Glob("testdata/cases/*")
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, own...)
	slices.SortFunc(files, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) })
	if len(files) < 30 {
		t.Fatalf("%d files", len(files))
	}
	var said []string
	for _, file := range files {
		p := begin(t, nil, false, "", "validate", "--text", file).end()
		text := strings.ReplaceAll(p.out+p.err, file, filepath.Base(file))
		if strings.Contains(text, "hunter2") {
			t.Errorf("%s: a secret is printed: %s", file, text)
		}
		said = append(said, text)
	}
	golden(t, "validate-cases", strings.Join(said, ""))
}

// In a pipe the warnings are part of the object.
func TestValidateWarnings(t *testing.T) {
	t.Parallel()
	p := begin(t, nil, false, "", "validate", "../../internal/events/testdata/cases/warnings.json").end().want(t, 0)
	var got validation
	if err := json.Unmarshal([]byte(p.out), &got); err != nil || !got.Valid || len(got.Warnings) != 3 ||
		got.Warnings[0].Code != "UnknownType" {
		t.Errorf("%+v, %v", got, err)
	}
}

// A file for --spec that is no CustomizationSpec in JSON is named with what it is.
func TestSpecFiles(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spec, in string
		code     int
		says     []string
	}{
		"XML": {"testdata/cases/24-spec.xml", "", 4, []string{
			"--spec testdata/cases/24-spec.xml: it is XML, a specification exported from vCenter", "--spec-name"}},
		"YAML":    {"testdata/cases/24-spec.yaml", "", 4, []string{"it is YAML, and JSON is wanted"}},
		"no JSON": {"-", "{\n\n]", 4, []string{"--spec standard input: it is not valid JSON: line 3"}},
		"of REST": {"-", `{"configuration_spec":{}}`, 2, []string{
			"customize.spec: is the specification of the REST API"}},
		"a request":   {"-", `{"vm":"vm-29"}`, 2, []string{"customize.spec.identity: is required"}},
		"it is taken": {"-", "\ufeff" + spec, 4, []string{"Set NATS_URL"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin(t, map[string]string{"NATS_URL": "nats://127.0.0.1:1", "GUESTFLOW_VCENTERS": "lab"}, false, test.in,
				"submit", "--vm", "vm-29", "--secret", "linux-root", "--spec", test.spec).end().
				want(t, test.code, test.says...)
		})
	}
}
