package docs_test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/guestflow/guestflow/schemas"
)

// root is the module's, seen from this package.
const root = ".."

const coveragePage = "develop/coverage.md"

// row is a row of one of the document's tables.
type row struct {
	line        int
	what, tests string
}

var (
	quoted   = regexp.MustCompile("`([^`]+)`")
	testName = regexp.MustCompile(`^([a-z0-9]+)\.((?:Test|Fuzz|Benchmark|Example)\w+)(?:/(.+))?$`)
)

// tables are the document's rows by the heading that they stand under.
func tables(t *testing.T) map[string][]row {
	t.Helper()
	all, heading := map[string][]row{}, ""
	for i, line := range strings.Split(read(t, coveragePage), "\n") {
		if h, ok := strings.CutPrefix(line, "## "); ok {
			heading = h
		}
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| what |") {
			continue
		}
		cells := strings.Split(strings.ReplaceAll(strings.Trim(line, "| "), `\|`, "\x00"), " | ")
		if len(cells) != 2 {
			t.Errorf("%s:%d has %d cells, want what, test", coveragePage, i+1, len(cells))
			continue
		}
		all[heading] = append(all[heading], row{i + 1, cells[0], cells[1]})
	}
	return all
}

// tested is what the test files of the folders of one name have.
type tested struct {
	tests    map[string]bool
	literals strings.Builder // the names of subtests are among them
}

// testsByFolder are the tests of this module by the last name of their folder, as the page names them.
func testsByFolder(t *testing.T) map[string]*tested {
	t.Helper()
	all := map[string]*tested{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		switch name := d.Name(); {
		case err != nil:
			return err
		case d.IsDir() && (name == ".git" || name == "tools" || name == "testdata"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, "_test.go"):
			return nil
		}
		folder := filepath.Base(filepath.Dir(file))
		if all[folder] == nil {
			all[folder] = &tested{tests: map[string]bool{}}
		}
		return all[folder].add(file)
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// add parses a test file.
func (s *tested) add(file string) error {
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		return err
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Recv == nil {
				s.tests[n.Name.Name] = true
			}
		case *ast.BasicLit:
			if said, err := strconv.Unquote(n.Value); err == nil {
				s.literals.WriteString(said + "\n")
			}
		}
		return true
	})
	return nil
}

// coverage.md is true: each row says what tests it, and these tests are there.
func TestCoverageNamesWhatIsThere(t *testing.T) {
	t.Parallel()
	folders := testsByFolder(t)
	all, untested := 0, 0
	for heading, rows := range tables(t) {
		all += len(rows)
		for _, r := range rows {
			where := fmt.Sprintf("%s:%d (%s)", coveragePage, r.line, heading)
			names := quoted.FindAllStringSubmatch(r.tests, -1)
			if strings.Contains(r.tests, "no test") {
				untested++
				t.Logf("%s: %s: %s", heading, r.what, r.tests)
			} else if len(names) == 0 {
				t.Errorf("%s: it names no test; where there is none say: no test", where)
			}
			for _, name := range names {
				if wrong := missing(folders, name[1]); wrong != "" {
					t.Errorf("%s: %s", where, wrong)
				}
			}
		}
	}
	t.Logf("%d rows, of which %d have no test, or none of a part", all, untested)
}

// missing says what is not there of folder.TestName or folder.TestName/subtest; "" where all of it is.
func missing(folders map[string]*tested, name string) string {
	parts := testName.FindStringSubmatch(name)
	if parts == nil {
		return fmt.Sprintf("%q is not package.TestName or package.TestName/subtest", name)
	}
	s := folders[parts[1]]
	if s == nil || !s.tests[parts[2]] {
		return fmt.Sprintf("there is no test %s in %s", parts[2], parts[1])
	}
	if parts[3] != "" && !strings.Contains(s.literals.String(), parts[3]) {
		return fmt.Sprintf("the tests of %s do not name %q", parts[1], parts[3])
	}
	return ""
}

// Whoever adds something to the contract adds its row.
func TestCoverageIsComplete(t *testing.T) {
	t.Parallel()
	all := tables(t)
	for heading, want := range map[string][]string{
		"Errors of REST": keys(t, "internal/vcapi", "ALREADY_EXISTS"),
		"Kinds":          constants(t, "Kind"),
		"error.code":     constants(t, "Code"),
		"Event data": slices.Concat(
			fields(t, schemas.Run), constants(t, "Status"), constants(t, "State"), constants(t, "Waiting")),
		"Request":  fields(t, schemas.Requested),
		"Cancel":   fields(t, schemas.CancelRequested),
		"Settings": slices.Collect(maps.Keys(defaults())),
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
				t.Errorf("%s has no row for `%s` under %q", coveragePage, name, heading)
			}
		}
	}
}

// keys are those of the map in a folder that has one of them.
func keys(t *testing.T, folder, one string) (all []string) {
	t.Helper()
	inFolder(t, folder, func(n ast.Node) {
		literal, ok := n.(*ast.CompositeLit)
		if !ok {
			return
		}
		var found []string
		for _, element := range literal.Elts {
			if pair, ok := element.(*ast.KeyValueExpr); ok {
				found = append(found, text(pair.Key))
			}
		}
		if slices.Contains(found, one) {
			all = append(all, found...)
		}
	})
	return all
}

// inFolder walks a folder's Go files, but its tests.
func inFolder(t *testing.T, folder string, fn func(ast.Node)) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, folder, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool { fn(n); return true })
	}
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
