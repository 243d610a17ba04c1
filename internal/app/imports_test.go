package app_test

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/guestflow/guestflow/"

// dependencies lists what a package is linked from.
func dependencies(t *testing.T, pkg string) []string {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", module+pkg).Output()
	if err != nil {
		t.Fatalf("go list -deps %s: %v", pkg, err)
	}
	return strings.Fields(string(out))
}

// The simulated vCenter and the nats-server are for tests and the demo: neither may ever be linked into the service.
func TestServiceIsLinkedFromServiceOnly(t *testing.T) {
	t.Parallel()
	for _, d := range dependencies(t, "cmd/consumer") {
		for _, not := range []string{module + "internal/vcsim", "github.com/vmware/govmomi", "github.com/nats-io/nats-server", "testing",
			module + "internal/events/natstest", module + "internal/events/memstore", module + "internal/client", "github.com/spf13/cobra"} {
			if d == not || strings.HasPrefix(d, not+"/") {
				t.Errorf("cmd/consumer is linked with %s", d)
			}
		}
	}
}

// Who may import whom; see docs/develop/ARCHITECTURE.md.
func TestImports(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	may := map[string][]string{
		"cmd/consumer":             {"internal/app"},
		"cmd/demo":                 {"internal/vcsim", "internal/events/natstest"},
		"cmd/guestflow":            {"sandbox", "internal/app", "internal/client", "internal/events", "internal/vcapi", "internal/secretfile"},
		"deploy/image":             {},
		"docs":                     {},
		"examples/go":              {},
		"sandbox":                  {"internal/app", "internal/vcsim", "internal/events/natstest"},
		"internal/app":             {"internal/handler", "internal/events", "internal/vcapi", "internal/tracing", "internal/secretfile"},
		"internal/handler":         {"internal/events", "internal/custspec", "internal/vcapi", "internal/tracing", "internal/secretfile"},
		"internal/client":          {"internal/events", "internal/custspec"},
		"internal/custspec":        {},
		"internal/events":          {"schemas", "internal/custspec", "internal/secretfile"},
		"internal/events/memstore": {"internal/events"},
		"internal/events/natstest": {},
		"internal/secretfile":      {},
		"internal/tracing":         {},
		"internal/vcapi":           {},
		"internal/vcsim":           {},
		"schemas":                  {"internal/custspec"},
		"test/e2e":                 {},
	}
	outside := map[string]string{"github.com/nats-io/nats.go": "internal/events", "net/http": "internal/vcapi"}
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	for decoder.More() {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := decoder.Decode(&p); err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, module)
		allowed, known := may[name]
		if !known {
			t.Errorf("%s is not in the table of packages: say here what it may import", name)
		}
		for _, imported := range p.Imports {
			if inside, ok := strings.CutPrefix(imported, module); ok && !contains(allowed, inside) {
				t.Errorf("%s imports %s", name, inside)
			}
			if only, ok := outside[imported]; ok && name == "internal/handler" {
				t.Errorf("%s imports %s, which is for %s", name, imported, only)
			}
		}
	}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}
