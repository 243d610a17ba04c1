package chart

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write values.yaml and the table in README.md anew")

const (
	tableBegin = "<!-- values: generated from values.schema.json -->\n"
	tableEnd   = "<!-- end of values -->\n"
)

// value is one property of values.schema.json.
type value struct {
	path        []string
	description string
	fallback    *yaml.Node // its default; nil: none
	example     *yaml.Node
	entry       bool // below a map's <name>: not in values.yaml
	children    []value
}

// TestValuesAndTable holds values.yaml and the README's table against the schema that both are made from.
func TestValuesAndTable(t *testing.T) {
	root, err := readSchema()
	if err != nil {
		t.Fatal(err)
	}
	var values bytes.Buffer
	fmt.Fprint(&values, "# Generated from values.schema.json, which holds what may be set: change it there.\n")
	for _, v := range root {
		v.yaml(&values)
	}
	agree(t, "values.yaml", values.String())

	old, err := os.ReadFile(filepath.Join(chartDir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begins := strings.Cut(string(old), tableBegin)
	_, after, ends := strings.Cut(rest, tableEnd)
	if !begins || !ends {
		t.Fatalf("README.md has no table between %q and %q", tableBegin, tableEnd)
	}
	var table strings.Builder
	fmt.Fprint(&table, "| value | default | |\n|---|---|---|\n")
	for _, v := range root {
		v.rows(&table)
	}
	agree(t, "README.md", before+tableBegin+table.String()+tableEnd+after)
}

// agree compares a file of the chart with what it should be, or writes it.
func agree(t *testing.T, name, want string) {
	t.Helper()
	file := filepath.Join(chartDir, name)
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != want {
		t.Errorf("%s is not what values.schema.json makes of it: run make chart-generate", name)
	}
}

// readSchema reads the properties in the order of the file, which is the order of values.yaml.
func readSchema() ([]value, error) {
	b, err := os.ReadFile(filepath.Join(chartDir, "values.schema.json"))
	if err != nil {
		return nil, err
	}
	var doc yaml.Node // JSON is YAML, and this keeps the order
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	s := schema{doc.Content[0]}
	return s.properties(s.root, nil, nil, false)
}

type schema struct{ root *yaml.Node }

// field is the value of a key of a mapping; nil where there is none.
func field(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func text(n *yaml.Node) string {
	if n == nil {
		return ""
	}
	return n.Value
}

// properties are those of a node, with their defaults from the node's own default where that has them.
func (s schema) properties(n *yaml.Node, path []string, defaults *yaml.Node, entry bool) ([]value, error) {
	props := field(n, "properties")
	if props == nil {
		return nil, nil
	}
	var all []value
	for i := 0; i < len(props.Content); i += 2 {
		name, p := props.Content[i].Value, props.Content[i+1]
		v := value{path: append(slices.Clone(path), name), description: text(field(p, "description")),
			fallback: field(p, "default"), entry: entry}
		if d := field(defaults, name); d != nil {
			v.fallback = d
		}
		if examples := field(p, "examples"); examples != nil {
			v.example = examples.Content[0]
		}
		if v.description == "" {
			return nil, fmt.Errorf("values.schema.json: %s has no description", strings.Join(v.path, "."))
		}
		if err := s.expand(&v, p); err != nil {
			return nil, err
		}
		if len(v.children) == 0 && v.fallback == nil && !entry {
			return nil, fmt.Errorf("values.schema.json: %s has no default", strings.Join(v.path, "."))
		}
		all = append(all, v)
	}
	return all, nil
}

// expand finds the children of a property that are values of their own: those of an object without a default or with
// one for each of them, and of the entries of a map of objects.
func (s schema) expand(v *value, p *yaml.Node) (err error) {
	if ref := text(field(p, "$ref")); ref != "" && v.fallback != nil && len(v.fallback.Content) > 0 {
		p = s.root
		for _, key := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
			p = field(p, key)
		}
		v.children, err = s.properties(p, v.path, v.fallback, v.entry)
		return err
	}
	if field(p, "default") == nil {
		v.children, err = s.properties(p, v.path, nil, v.entry)
		return err
	}
	if entry := field(p, "additionalProperties"); field(entry, "required") != nil && v.example != nil {
		v.children, err = s.properties(entry, append(slices.Clone(v.path), "<name>"), nil, true)
	}
	return err
}

// yaml writes the value as values.yaml has it, its description above it.
func (v value) yaml(w *bytes.Buffer) {
	indent := strings.Repeat("  ", len(v.path)-1)
	if len(v.path) == 1 {
		fmt.Fprintln(w)
	}
	for _, line := range wrap(v.description, 140-len(indent)) {
		fmt.Fprintf(w, "%s# %s\n", indent, line)
	}
	if v.example != nil {
		for line := range strings.Lines(asYAML(v.example)) {
			fmt.Fprintf(w, "%s#   %s", indent, line)
		}
	}
	key := v.path[len(v.path)-1]
	if v.fallback == nil || (len(v.children) > 0 && !v.children[0].entry) {
		fmt.Fprintf(w, "%s%s:\n", indent, key)
		for _, c := range v.children {
			c.yaml(w)
		}
		return
	}
	if len(v.fallback.Content) == 0 {
		fmt.Fprintf(w, "%s%s: %s\n", indent, key, asJSON(v.fallback))
		return
	}
	fmt.Fprintf(w, "%s%s:\n", indent, key)
	for line := range strings.Lines(asYAML(v.fallback)) {
		fmt.Fprintf(w, "%s  %s", indent, line)
	}
}

// rows writes the value's rows of the table.
func (v value) rows(w *strings.Builder) {
	if len(v.children) == 0 || v.children[0].entry {
		fallback := ""
		if v.fallback != nil {
			fallback = "`" + asJSON(v.fallback) + "`"
		}
		fmt.Fprintf(w, "| `%s` | %s | %s |\n", strings.Join(v.path, "."), fallback, v.description)
	}
	for _, c := range v.children {
		c.rows(w)
	}
}

// asYAML is a node of the schema in the order that it has there, one line per field.
func asYAML(n *yaml.Node) string {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(plain(n)); err != nil {
		panic(err) // a node of a document that was parsed
	}
	return b.String()
}

// plain is a node without the brackets and quotes of JSON; what needs quotes gets them again.
func plain(n *yaml.Node) *yaml.Node {
	c := *n
	c.Style = 0
	c.Content = nil
	for _, child := range n.Content {
		c.Content = append(c.Content, plain(child))
	}
	return &c
}

func asJSON(n *yaml.Node) string {
	var v any
	if err := n.Decode(&v); err != nil {
		panic(err) // a node of a document that was parsed
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// wrap breaks a text into lines.
func wrap(s string, width int) []string {
	lines := []string{""}
	for _, word := range strings.Fields(s) {
		last := &lines[len(lines)-1]
		switch {
		case *last == "":
			*last = word
		case len(*last)+1+len(word) <= width:
			*last += " " + word
		default:
			lines = append(lines, word)
		}
	}
	return lines
}
