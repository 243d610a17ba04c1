package app_test

import (
	"encoding/json"
	"maps"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/guestflow/guestflow/"

// The simulated vCenter and the nats-server are for tests and the demo: neither may ever be linked into the service.
// The contract, and what decides by it, are free of NATS's client.
func TestLinkedPackages(t *testing.T) {
	t.Parallel()
	for pkg, not := range map[string][]string{ // and what is below it
		"cmd/consumer": {module + "internal/vcsim", "github.com/vmware/govmomi", "github.com/nats-io/nats-server",
			"testing", module + "internal/events/stream/natstest", module + "internal/events/stream/memstore",
			module + "internal/client", "github.com/spf13/cobra"},
		"internal/events":  {"github.com/nats-io"},
		"internal/handler": {"github.com/nats-io"},
	} {
		out, err := exec.Command("go", "list", "-deps", module+pkg).Output()
		if err != nil {
			t.Fatalf("go list -deps %s: %v", pkg, err)
		}
		for d := range strings.FieldsSeq(string(out)) {
			for _, n := range not {
				if d == n || strings.HasPrefix(d, n+"/") {
					t.Errorf("%s is linked with %s", pkg, d)
				}
			}
		}
	}
}

// listed is a package as go list tells of it.
type listed struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

// packages are those of the module, by their path in it.
func packages(t *testing.T) map[string]listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := map[string]listed{}
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p listed
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(p.ImportPath, module)] = p
	}
	return all
}

// named are the packages that a text of docs/develop/ARCHITECTURE.md names in backquotes: by their path, or by the last
// element of it.
func named(t *testing.T, text string, all map[string]listed) []string {
	t.Helper()
	var found []string
	for _, quoted := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(text, -1) {
		matches := slices.DeleteFunc(slices.Collect(maps.Keys(all)),
			func(name string) bool { return name != quoted[1] && path.Base(name) != quoted[1] })
		if len(matches) != 1 {
			t.Errorf("ARCHITECTURE.md speaks of the package %s, and there are %d such packages %v", quoted[1],
				len(matches), matches)
		}
		found = append(found, matches...)
	}
	return found
}

const architecturePage = "docs/develop/ARCHITECTURE.md"

// The map in docs/develop/ARCHITECTURE.md says which package imports which; each has a row, and no row says more than
// there is.
func TestImports(t *testing.T) {
	t.Parallel()
	all := packages(t)
	allowed, folders := map[string][]string{}, regexp.MustCompile("`([^`]+)`")
	rows := regexp.MustCompile(`(?m)^\| (.+?) \| .+ \| (.*)\|$`).FindAllStringSubmatch(page(t, architecturePage), -1)
	for _, row := range rows {
		for _, folder := range folders.FindAllStringSubmatch(row[1], -1) {
			for name := range all {
				if name == folder[1] || folder[1] == "examples" && strings.HasPrefix(name, "examples/") {
					allowed[name] = named(t, row[2], all)
				}
			}
		}
	}
	for name, p := range all {
		may, known := allowed[name]
		if !known {
			t.Errorf("%s has no row in the map of docs/develop/ARCHITECTURE.md", name)
		}
		for _, imported := range p.Imports {
			if inside, ok := strings.CutPrefix(imported, module); ok && !slices.Contains(may, inside) {
				t.Errorf("%s imports %s, and its row in docs/develop/ARCHITECTURE.md does not say so", name, inside)
			}
		}
		for _, inside := range may {
			if !slices.Contains(slices.Concat(p.Imports, p.TestImports, p.XTestImports), module+inside) {
				t.Errorf("%s does not import %s, as its row in docs/develop/ARCHITECTURE.md says", name, inside)
			}
		}
	}
}

// The sentences that say where NATS and HTTP are spoken are exactly true.
func TestProtocolsAreSpokenWhereThePageSays(t *testing.T) {
	t.Parallel()
	all := packages(t)
	libraries := map[string][]string{
		"NATS": {"github.com/nats-io/nats.go", "github.com/nats-io/nats.go/jetstream"},
		"HTTP": {"net/http"},
	}
	sentences := regexp.MustCompile(`(?ms)^- (NATS|HTTP) is spoken only in (.+?)\.$`).
		FindAllStringSubmatch(page(t, architecturePage), -1)
	if len(sentences) != len(libraries) {
		t.Fatalf("docs/develop/ARCHITECTURE.md has %d sentences of where NATS and HTTP are spoken", len(sentences))
	}
	for _, s := range sentences {
		said := named(t, s[2], all)
		for name, p := range all {
			speaks := slices.ContainsFunc(p.Imports,
				func(imported string) bool { return slices.Contains(libraries[s[1]], imported) })
			if speaks != slices.Contains(said, name) {
				t.Errorf("%s speaks %s: %v; docs/develop/ARCHITECTURE.md says %v", name, s[1], speaks, !speaks)
			}
		}
	}
}
