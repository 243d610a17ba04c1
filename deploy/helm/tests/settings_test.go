package chart

import (
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

const configFile = "../../../internal/app/config.go"

// neverSet are settings that the chart has no value for, and why.
var neverSet = map[string]string{"VCENTER_<NAME>_PASSWORD": "a password is a file from a Secret: PASSWORD_FILE"}

var ofVCenter = regexp.MustCompile(`^VCENTER_(LAB|EU_PROD)_`)

// settings are the service's settings with their defaults, as its source has them.
func settings(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), configFile, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{"GUESTFLOW_VCENTERS": ""}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		of, ok := spec.Type.(*ast.StructType)
		if !ok {
			return false
		}
		for _, f := range of.Fields.List {
			if f.Tag == nil {
				continue
			}
			name, rest, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("env"), ",")
			if name == "" {
				continue
			}
			if spec.Name.Name == "VCenter" {
				name = "VCENTER_<NAME>_" + name
			}
			_, all[name], _ = strings.Cut(rest, "default=")
		}
		return false
	})
	if len(all) < 30 {
		t.Fatalf("%s: only %d settings were found", configFile, len(all))
	}
	return all
}

// environment is what a rendering gives the service, by the settings' names.
func environment(t *testing.T, values string) map[string]string {
	t.Helper()
	env := map[string]string{}
	all, _ := manifests(t, values)
	for _, o := range all {
		if o["kind"] != "Deployment" {
			continue
		}
		pod := o["spec"].(object)["template"].(object)["spec"].(object)
		for _, e := range pod["containers"].([]any)[0].(object)["env"].([]any) {
			name := e.(object)["name"].(string)
			value, _ := e.(object)["value"].(string)
			env[ofVCenter.ReplaceAllString(name, "VCENTER_<NAME>_")] = value
		}
	}
	return env
}

// TestEverySetting holds the chart against the service's source: every setting has its value, and nothing is set that
// the service does not read.
func TestEverySetting(t *testing.T) {
	known := settings(t)
	set := map[string]bool{}
	for _, values := range combinations(t) {
		for name := range environment(t, values) {
			set[name] = true
		}
	}
	for name := range known {
		if !set[name] && neverSet[name] == "" {
			t.Errorf("%s: no values set it: give it a value, and set that in testdata/values", name)
		}
	}
	for name := range set {
		if _, ok := known[name]; !ok && !strings.HasPrefix(name, "OTEL_") && name != "EXTRA" {
			t.Errorf("%s: the service has no such setting", name)
		}
		if neverSet[name] != "" {
			t.Errorf("%s is set: %s", name, neverSet[name])
		}
	}
}

// TestDefaults: who sets nothing gets what the service does where nothing is set.
func TestDefaults(t *testing.T) {
	env := environment(t, combinations(t)["minimal"])
	for name, fallback := range settings(t) {
		if value, set := env[name]; set && fallback != "" && name != "NATS_URL" && value != fallback {
			t.Errorf("%s is %q without values, and the service's own default is %q", name, value, fallback)
		}
	}
}
