// Package chart tests the chart with the code of Helm and of Kubernetes itself, in a module of its own: its
// dependencies are not the service's.
package chart

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"sigs.k8s.io/yaml"
)

const chartDir = ".."

// object is a Kubernetes object as it was rendered.
type object = map[string]any

// load reads the chart without its dependency, the NATS chart: it comes from a registry that not every machine reaches.
func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.LoadDir(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// render is what helm template does: values against the schema, then the templates.
func render(c *chart.Chart, values string) (map[string]string, error) {
	var v map[string]any
	if err := yaml.Unmarshal([]byte(values), &v); err != nil {
		return nil, err
	}
	release := chartutil.ReleaseOptions{Name: "guestflow", Namespace: "guestflow", Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(c, v, release, nil)
	if err != nil {
		return nil, err
	}
	return engine.Render(c, all)
}

// manifests are the objects that these values make, and the files that hold them.
func manifests(t *testing.T, values string) (all []object, files map[string]string) {
	t.Helper()
	files, err := render(load(t), values)
	if err != nil {
		t.Fatal(err)
	}
	if all, err = objects(files); err != nil {
		t.Fatal(err)
	}
	return all, files
}

// objects are what a rendering makes, without its notes.
func objects(files map[string]string) ([]object, error) {
	var all []object
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if path.Ext(name) != ".yaml" {
			continue
		}
		for _, doc := range strings.Split("\n"+files[name], "\n---") {
			var o object
			if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
				return nil, fmt.Errorf("%s: %w\n%s", name, err, doc)
			}
			if o != nil {
				all = append(all, o)
			}
		}
	}
	return all, nil
}

// TestChartLeavesItsTestsOut reads the chart as helm package does: .helmignore keeps the tests of the chart, and their
// modules, out of what users get.
func TestChartLeavesItsTestsOut(t *testing.T) {
	for _, file := range load(t).Raw {
		if strings.HasPrefix(file.Name, "tests/") || strings.HasSuffix(file.Name, ".go") ||
			path.Base(file.Name) == "go.mod" {
			t.Errorf("the chart holds %s", file.Name)
		}
	}
}
