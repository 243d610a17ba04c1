package vcapi

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi/vim25/types"
)

// TestFaultFamilies: the table has the family of every fault, as in govmomi's types.
func TestFaultFamilies(t *testing.T) {
	t.Parallel()
	want := map[string]family{}
	typeOf := types.TypeFunc()
	for _, name := range govmomiTypes(t) {
		kind, known := typeOf(name)
		if !known {
			continue // not a type of the wire
		}

		switch reflect.New(kind).Interface().(type) {
		case types.BaseInvalidState:
			want[name] = invalidState
		case types.BaseCustomizationFault:
			want[name] = customizationFault
		case types.BaseGuestOperationsFault:
			want[name] = guestOperationsFault
		case types.BaseHostCommunication:
			want[name] = hostCommunication
		}
	}

	if diff := cmp.Diff(want, families); diff != "" {
		t.Errorf("families, - govmomi, + the table:\n%s", diff)
	}
}

// govmomiTypes are the names of all of govmomi's types, but those that only wrap a fault for SOAP.
func govmomiTypes(t *testing.T) []string {
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-f", "{{.Dir}}", "github.com/vmware/govmomi/"+
		"vim25/types").
		Output()
	if err != nil {
		t.Fatal(err)
	}

	file, err := parser.ParseFile(
		token.NewFileSet(),
		filepath.Join(string(bytes.TrimSpace(dir)), "types.go"),
		nil,
		parser.SkipObjectResolution,
	)
	if err != nil {
		t.Fatal(err)
	}

	var names []string
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok {
			if base, wraps := strings.CutSuffix(spec.Name.Name, "Fault"); !wraps || families[base] == noFamily {
				names = append(names, spec.Name.Name)
			}
		}
		return true
	})

	if len(names) < 1000 {
		t.Fatalf("only %d types found", len(names))
	}

	return names
}
