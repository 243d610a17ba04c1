package chart

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/yaml"
)

// The modules that carry the schemas: Kubernetes' OpenAPI document and the operators' CRDs. They are downloaded, not
// built.
const (
	kubernetes         = "k8s.io/kubernetes@v1.36.3"
	prometheusOperator = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
	keda               = "github.com/kedacore/keda/v2@v2.21.0"
	externalSecrets    = "github.com/external-secrets/external-secrets@v1.3.2"
)

var crds = map[string][]string{
	prometheusOperator: {
		"example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
		"example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
	},
	keda:            {"config/crd/bases/keda.sh_scaledobjects.yaml"},
	externalSecrets: {"config/crds/bases/external-secrets.io_externalsecrets.yaml"},
}

// withoutSchema is what no Go module has a schema of. What the chart makes of these is compared field by field:
// TestNACK.
var withoutSchema = map[string]bool{"jetstream.nats.io/v1beta2/Stream": true,
	"jetstream.nats.io/v1beta2/Consumer": true}

// schemas are the schemas of Kubernetes' objects, made strict: a field that they do not know is refused.
type schemas struct {
	compiler *jsonschema.Compiler
	where    map[string]string // by group/version/kind
}

var loadSchemas = sync.OnceValues(func() (*schemas, error) {
	modules := []string{kubernetes}
	for m := range crds {
		modules = append(modules, m)
	}
	dirs, err := download(modules)
	if err != nil {
		return nil, err
	}
	s := &schemas{compiler: jsonschema.NewCompiler(), where: map[string]string{}}
	s.compiler.DefaultDraft(jsonschema.Draft4) // what OpenAPI 2 and 3.0 build on
	if err := s.core(filepath.Join(dirs[kubernetes], "api/openapi-spec/swagger.json")); err != nil {
		return nil, err
	}
	for module, files := range crds {
		for _, file := range files {
			if err := s.crd(filepath.Join(dirs[module], file)); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
})

// download brings modules into the module cache and says where they are.
func download(modules []string) (map[string]string, error) {
	cmd := exec.Command("go", append([]string{"mod", "download", "-json"}, modules...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go mod download %s: %w: %s", strings.Join(modules, " "), err, out)
	}
	dirs := map[string]string{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var m struct{ Path, Version, Dir string }
		if err := dec.Decode(&m); err != nil {
			return nil, err
		}
		dirs[m.Path+"@"+m.Version] = m.Dir
	}
	return dirs, nil
}

// core takes the schemas of Kubernetes' own kinds.
func (s *schemas) core(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var doc struct {
		Definitions map[string]object `json:"definitions"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return err
	}
	definitions := object{}
	for name, d := range doc.Definitions {
		if strings.HasSuffix(name, ".IntOrString") || strings.HasSuffix(name, ".Quantity") {
			d = object{"type": []any{"string", "number"}} // said to be a string, and taken as a number too
		}
		definitions[name] = strict(d)
		kinds, _ := d["x-kubernetes-group-version-kind"].([]any)
		for _, k := range kinds {
			k := k.(object)
			s.where[gvk(fmt.Sprint(k["group"]), fmt.Sprint(k["version"]), fmt.Sprint(k["kind"]))] =
				"kubernetes.json#/definitions/" + name
		}
	}
	return s.compiler.AddResource("kubernetes.json", object{"definitions": definitions})
}

// crd takes the schemas of a custom resource.
func (s *schemas) crd(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var doc struct {
		Spec struct {
			Group    string
			Names    struct{ Kind string }
			Versions []struct {
				Name   string
				Schema struct{ OpenAPIV3Schema object }
			}
		}
	}
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, v := range doc.Spec.Versions {
		key := gvk(doc.Spec.Group, v.Name, doc.Spec.Names.Kind)
		s.where[key] = strings.ReplaceAll(key, "/", "_") + ".json"
		if err := s.compiler.AddResource(s.where[key], strict(v.Schema.OpenAPIV3Schema)); err != nil {
			return err
		}
	}
	return nil
}

// strict forbids, in a schema and all below it, fields that it does not name.
func strict(schema any) any {
	switch s := schema.(type) {
	case object:
		_, named := s["properties"]
		_, others := s["additionalProperties"]
		if named && !others && s["x-kubernetes-preserve-unknown-fields"] == nil && (s["type"] == "object" ||
			s["type"] == nil) {
			s["additionalProperties"] = false
		}
		for key, below := range s {
			if key != "default" && key != "enum" {
				s[key] = strict(below)
			}
		}
	case []any:
		for i := range s {
			s[i] = strict(s[i])
		}
	}
	return schema
}

func gvk(group, version, kind string) string {
	return strings.TrimPrefix(group+"/"+version+"/"+kind, "/")
}

func kindOf(o object) string { return fmt.Sprintf("%v/%v", o["apiVersion"], o["kind"]) }

// validate checks an object as an API server would that refuses unknown fields.
func (s *schemas) validate(o object) error {
	where, known := s.where[kindOf(o)]
	if !known {
		return fmt.Errorf("there is no schema for %s", kindOf(o))
	}
	schema, err := s.compiler.Compile(where)
	if err != nil {
		return err
	}
	return schema.Validate(o)
}

// TestSchemasRefuse shows that the validation finds what an API server would find.
func TestSchemasRefuse(t *testing.T) {
	s, err := loadSchemas()
	if err != nil {
		t.Fatal(err)
	}
	for name, doc := range map[string]string{
		"misspelt field": `{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {portz: []}}`,
		"wrong type": `{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: a}, spec: ` +
			`{selector: a}}`,
		"unknown kind": `{apiVersion: v1, kind: Servic, metadata: {name: a}}`,
		"missing in a CRD": `{apiVersion: keda.sh/v1alpha1, kind: ScaledObject, metadata: {name: a}, spec: ` +
			`{scaleTargetRef: {name: a}}}`,
		"misspelt in a CRD": `{apiVersion: monitoring.coreos.com/v1, kind: ServiceMonitor, metadata: {name: a}, ` +
			`spec: {selector: {}, endpoints: [{prt: http}]}}`,
		"misspelt deep down": `{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, ` +
			`volumeMounts: [{name: a, path: b}]}]}}`,
	} {
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		if err := s.validate(o); err == nil {
			t.Errorf("%s: taken: %s", name, doc)
		}
	}
}
