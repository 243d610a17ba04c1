package app_test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/guestflow/guestflow/internal/app"
	"github.com/guestflow/guestflow/schemas"
)

// root is the module's, seen from this package.
const root = "../.."

// places are the folders that docs/develop/coverage.md calls by their last name. Others it calls by their path.
var places = map[string]string{"app": "internal/app", "events": "internal/events", "handler": "internal/handler", "memstore": "internal/events/memstore",
	"natstest": "internal/events/natstest", "tracing": "internal/tracing", "vcapi": "internal/vcapi", "vcsim": "internal/vcsim", "consumer": "cmd/consumer",
	"e2e": "test/e2e", "custspec": "internal/custspec"}

func place(name string) string {
	first, rest, _ := strings.Cut(name, "/")
	if at, ok := places[first]; ok {
		first = at
	}
	return filepath.Join(root, first, rest)
}

// row is a row of one of the document's tables.
type row struct {
	line              int
	what, code, tests string
}

var (
	quoted   = regexp.MustCompile("`([^`]+)`")
	testName = regexp.MustCompile(`^([a-z0-9]+)\.((?:Test|Fuzz|Benchmark)\w+)(?:/(.+))?$`)
)

// tables are the document's rows by the heading that they stand under.
func tables(t *testing.T) map[string][]row {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(root, "docs/develop/coverage.md"))
	if err != nil {
		t.Fatal(err)
	}
	all, heading := map[string][]row{}, ""
	for i, line := range strings.Split(string(page), "\n") {
		if h, ok := strings.CutPrefix(line, "## "); ok {
			heading = h
		}
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| what |") {
			continue
		}
		cells := strings.Split(strings.ReplaceAll(strings.Trim(line, "| "), `\|`, "\x00"), " | ")
		if len(cells) != 3 {
			t.Errorf("docs/develop/coverage.md:%d has %d cells, want what, code, test", i+1, len(cells))
			continue
		}
		all[heading] = append(all[heading], row{i + 1, cells[0], cells[1], cells[2]})
	}
	return all
}

// source is what a folder's Go files declare.
type source struct {
	tests    map[string]bool
	literals strings.Builder            // of its tests: the names of subtests are among them
	declared map[string]map[string]bool // by file
}

// read parses a folder.
func read(t *testing.T, folder string) *source {
	t.Helper()
	s := &source{tests: map[string]bool{}, declared: map[string]map[string]bool{}}
	files, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		isTest, names := strings.HasSuffix(file, "_test.go"), map[string]bool{}
		ast.Inspect(parsed, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				names[n.Name.Name] = true
				if isTest && n.Recv == nil {
					s.tests[n.Name.Name] = true
				}
			case *ast.TypeSpec:
				names[n.Name.Name] = true
			case *ast.ValueSpec:
				for _, name := range n.Names {
					names[name.Name] = true
				}
			case *ast.Field:
				for _, name := range n.Names {
					names[name.Name] = true
				}
			case *ast.BasicLit:
				if said, err := strconv.Unquote(n.Value); err == nil && isTest {
					s.literals.WriteString(said + "\n")
				}
			}
			return true
		})
		s.declared[filepath.Base(file)] = names
	}
	return s
}

// docs/develop/coverage.md is true: each row says where something is and what tests it, and all that it names is there.
func TestCoverageNamesWhatIsThere(t *testing.T) {
	t.Parallel()
	sources := map[string]*source{}
	of := func(folder string) *source {
		if sources[folder] == nil {
			sources[folder] = read(t, folder)
		}
		return sources[folder]
	}
	all, untested := 0, 0
	for heading, rows := range tables(t) {
		all += len(rows)
		for _, r := range rows {
			wrong := func(format string, args ...any) {
				t.Errorf("docs/develop/coverage.md:%d (%s): %s", r.line, heading, fmt.Sprintf(format, args...))
			}
			code := quoted.FindAllStringSubmatch(r.code, -1)
			if len(code) == 0 {
				wrong("it does not say where")
			}
			for _, at := range code {
				words := strings.Fields(at[1])
				file := place(words[0])
				content, err := os.ReadFile(file)
				if err != nil {
					wrong("%v", err)
					continue
				}
				for _, name := range words[1:] {
					declared := strings.Contains(string(content), name)
					if strings.HasSuffix(file, ".go") {
						declared = of(filepath.Dir(file)).declared[filepath.Base(file)][name]
					}
					if !declared {
						wrong("%s declares no %s", words[0], name)
					}
				}
			}
			tests := quoted.FindAllStringSubmatch(r.tests, -1)
			if strings.Contains(r.tests, "no test") {
				untested++
				t.Logf("%s: %s: %s", heading, r.what, r.tests)
			} else if len(tests) == 0 {
				wrong("it names no test; where there is none say: no test")
			}
			for _, name := range tests {
				parts := testName.FindStringSubmatch(name[1])
				if parts == nil {
					wrong("%q is not package.TestName or package.TestName/subtest", name[1])
					continue
				}
				s := of(place(parts[1]))
				if !s.tests[parts[2]] {
					wrong("there is no test %s in %s", parts[2], parts[1])
				}
				if parts[3] != "" && !strings.Contains(s.literals.String(), parts[3]) {
					wrong("the tests of %s do not name %q", parts[1], parts[3])
				}
			}
		}
	}
	t.Logf("%d rows, of which %d have no test, or none of a part", all, untested)
}

// Whoever adds something to the contract adds its row.
func TestCoverageIsComplete(t *testing.T) {
	t.Parallel()
	all := tables(t)
	for heading, want := range map[string][]string{
		"Errors of REST": keys(t, "internal/vcapi/fault.go", "restKinds"),
		"Kinds":          constants(t, "Kind"),
		"error.code":     constants(t, "Code"),
		"Event data":     slices.Concat(fields(t, schemas.Run), constants(t, "Status"), constants(t, "State"), constants(t, "Waiting")),
		"Request":        fields(t, schemas.Requested),
		"Cancel":         fields(t, schemas.CancelRequested),
		"Settings":       append(settingsOf(), "GUESTFLOW_VCENTERS"),
	} {
		if len(want) < 4 {
			t.Errorf("%s: only %v was found in the code", heading, want)
		}
		named := map[string]bool{}
		for _, r := range all[heading] {
			for _, name := range quoted.FindAllStringSubmatch(r.what, -1) {
				named[name[1]] = true
			}
		}
		for _, name := range want {
			if !named[name] {
				t.Errorf("docs/develop/coverage.md has no row for `%s` under %q", name, heading)
			}
		}
	}
}

// constants are the values of the constants of a type of package events.
func constants(t *testing.T, typ string) (values []string) {
	t.Helper()
	inFile(t, "internal/events/run.go", func(n ast.Node) {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return
		}
		if is, ok := spec.Type.(*ast.Ident); !ok || is.Name != typ {
			return
		}
		for _, v := range spec.Values {
			values = append(values, text(v))
		}
	})
	return values
}

// keys are those of a map.
func keys(t *testing.T, file, name string) (all []string) {
	t.Helper()
	inFile(t, file, func(n ast.Node) {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || spec.Names[0].Name != name {
			return
		}
		for _, element := range spec.Values[0].(*ast.CompositeLit).Elts {
			all = append(all, text(element.(*ast.KeyValueExpr).Key))
		}
	})
	return all
}

func inFile(t *testing.T, file string, fn func(ast.Node)) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(parsed, func(n ast.Node) bool { fn(n); return true })
}

func text(e ast.Expr) string {
	literal, ok := e.(*ast.BasicLit)
	if !ok {
		return fmt.Sprintf("%T", e)
	}
	s, err := strconv.Unquote(literal.Value)
	if err != nil {
		return literal.Value
	}
	return s
}

// fields are those of a schema, as paths: processes[].run.path.
func fields(t *testing.T, schema string) []string {
	t.Helper()
	b, err := schemas.Source(schema)
	if err != nil {
		t.Fatal(err)
	}
	var whole map[string]any
	if err := json.Unmarshal(b, &whole); err != nil {
		t.Fatal(err)
	}
	defs, _ := whole["$defs"].(map[string]any)
	found := map[string]bool{}
	inside := map[string]bool{} // the definitions that the walk is in: one that holds itself is walked once
	var walk func(node any, at string)
	walk = func(node any, at string) {
		object, _ := node.(map[string]any)
		if ref, ok := object["$ref"].(string); ok && !inside[ref] {
			inside[ref] = true
			walk(defs[strings.TrimPrefix(ref, "#/$defs/")], at)
			delete(inside, ref)
		}
		members, _ := object["properties"].(map[string]any)
		for name, member := range members {
			path := strings.TrimPrefix(at+"."+name, ".")
			found[path] = true
			walk(member, path)
		}
		if items, ok := object["items"]; ok {
			walk(items, at+"[]")
		}
		either, _ := object["oneOf"].([]any)
		for _, one := range either {
			walk(one, at)
		}
	}
	walk(whole, "")
	return slices.Sorted(maps.Keys(found))
}

// settingsOf are the names of all settings, those of a vCenter with <NAME> for its name.
func settingsOf() (names []string) {
	for _, of := range []struct {
		prefix string
		typ    reflect.Type
	}{{"", reflect.TypeFor[app.NATS]()}, {"", reflect.TypeFor[app.Service]()}, {"VCENTER_<NAME>_", reflect.TypeFor[app.VCenter]()}} {
		for i := range of.typ.NumField() {
			if name, _, _ := strings.Cut(of.typ.Field(i).Tag.Get("env"), ","); name != "" {
				names = append(names, of.prefix+name)
			}
		}
	}
	return names
}
