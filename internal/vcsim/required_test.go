package vcsim

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What each call needs stands in the simulator's table and in the document for operators; the roles that they create
// hold these privileges and no others.
func TestRequiredPrivilegesAreDocumented(t *testing.T) {
	t.Parallel()
	const page = "../../docs/operate/vcenter-role.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}

	calls := rows(t, string(text), "## Every call")
	documented := map[string]need{}
	for _, row := range calls {
		for _, op := range names(row[0]) {
			if _, twice := documented[op]; twice {
				t.Errorf("%s: %s stands there twice", page, op)
			}
			documented[op] = need{root: names(row[1]), vm: names(row[2])}
		}
	}

	for op, n := range required {
		d, ok := documented[op]
		if !ok {
			t.Errorf("%s does not have %s", page, op)
			continue
		}

		if !same(d.root, n.root) || !same(d.vm, n.vm) {
			t.Errorf("%s says that %s needs %v, the simulator wants %v", page, op, d, n)
		}

		delete(documented, op)
	}

	for op := range documented {
		t.Errorf("%s has %s, which the simulator does not know", page, op)
	}

	var root, vm []string
	for _, n := range required {
		root, vm = append(root, n.root...), append(vm, n.vm...)
	}

	root, vm = inRole(root), inRole(vm)
	for file, want := range map[string][]string{"role-root.txt": root, "role-vm.txt": vm} {
		content, err := os.ReadFile("../../deploy/vcenter/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Fields(string(content)); !slices.Equal(got, want) {
			t.Errorf("%s holds %v, the calls need %v", file, got, want)
		}
	}

	var explained []string
	for _, row := range rows(t, string(text), "## The roles") {
		explained = append(explained, names(row[0])...)
	}

	if want := slices.Concat(root, vm); !same(explained, want) {
		t.Errorf("%s explains %v, the roles are %v", page, explained, want)
	}
}

// inRole are the privileges that a role must name, sorted.
func inRole(privileges []string) []string {
	slices.Sort(privileges)
	return slices.DeleteFunc(
		slices.Compact(privileges), func(p string) bool { return slices.Contains(systemPrivileges, p) },
	)
}

// rows are the rows of the first table behind a heading, by their cells.
func rows(t *testing.T, text, heading string) (cells [][]string) {
	t.Helper()
	_, text, found := strings.Cut(text, "\n"+heading+"\n")
	if !found {
		t.Fatalf("there is no heading %q", heading)
	}

	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "|"):
			cells = append(cells, strings.Split(strings.Trim(line, "|"), "|"))
		case len(cells) > 0 || strings.HasPrefix(line, "## "):
			return cells[min(2, len(cells)):] // without head and line
		}
	}

	return cells[min(2, len(cells)):]
}

var code = regexp.MustCompile("`([^`]+)`")

// names are what stands in a cell as code.
func names(cell string) (all []string) {
	for _, found := range code.FindAllStringSubmatch(cell, -1) {
		all = append(all, found[1])
	}
	return all
}

func same(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}
