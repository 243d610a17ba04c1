package events

import (
	"fmt"
	"slices"
	"strings"

	"github.com/guestflow/guestflow/internal/custspec"
	"github.com/guestflow/guestflow/schemas"
)

// checkSpec reads what a request gives to vCenter word for word. What it finds wrong takes the place of what the schema
// found there, in fewer words.
func checkSpec(customize map[string]any, problems []schemas.Problem) ([]schemas.Problem, []Remark) {
	var report custspec.Report
	if spec, there := customize["spec"]; there {
		if foreign := custspec.Foreign(spec); foreign != "" {
			const at = "customize.spec"
			problems = slices.DeleteFunc(problems, func(p schemas.Problem) bool {
				return p.Field == at || strings.HasPrefix(p.Field, at+".")
			})
			report.Refused = []custspec.Finding{{Field: at, Message: foreign}}
		} else {
			report = custspec.Check(spec, "customize.spec")
		}
	}
	if params, there := customize["configParams"]; there {
		more := custspec.CheckParams(params, "customize.configParams")
		report.Refused = append(report.Refused, more.Refused...)
		report.Warnings = append(report.Warnings, more.Warnings...)
	}
	for _, f := range report.Refused {
		problems = slices.DeleteFunc(problems, func(p schemas.Problem) bool { return p.Field == f.Field })
		problems = append(problems, schemas.Problem{Field: f.Field, Message: f.Message})
	}
	return problems, Remarks(report.Warnings)
}

// Remarks are a spec's warnings as the check tells them.
func Remarks(warnings []custspec.Finding) []Remark {
	var remarks []Remark
	for _, w := range warnings {
		remarks = append(remarks, Remark{Code: w.Code, Message: Cut(w.Message, maxPath), Field: Cut(w.Field, maxPath)})
	}
	return remarks
}

// FindVM is how to find a managed object ID.
const FindVM = "the vSphere Client shows it in the address of the VM's page; govc: govc ls -i vm/NAME"

// NotVM says why a text is no managed object ID, and what to give.
func NotVM(vm string) string {
	if id := objectID(vm); id != "" {
		return fmt.Sprintf("%.90q is not a managed object ID: give %q alone (%s)", vm, id, FindVM)
	}
	return fmt.Sprintf("%.90q is not a managed object ID, such as vm-42 (%s)", vm, FindVM)
}

// HintVM says what may be wrong with a managed object ID that vCenter does not know; "" where nothing seems to be.
func HintVM(vm string) string {
	id := objectID(vm)
	if id == "" {
		return ""
	}
	return fmt.Sprintf("the managed object ID seems to be %s, without its type before it", id)
}

// objectID is the ID alone in how other programs write a reference: VirtualMachine:vm-42 (govc), VirtualMachine-vm-42
// (PowerCLI), and with the vCenter's UUID behind it (urn:vmomi:VirtualMachine:vm-42:UUID, as the vSphere Client's
// addresses have it).
func objectID(vm string) string {
	_, rest, found := strings.Cut(vm, "VirtualMachine")
	if !found || rest == "" || !strings.ContainsAny(rest[:1], ":-") {
		return ""
	}
	id, _, _ := strings.Cut(rest[1:], ":")
	if !ValidVM(id) {
		return ""
	}
	return id
}

// namesOfVM are the members in which others look for the VM.
var namesOfVM = []string{"vmId", "vm_id", "vmid", "VM", "Vm", "vmMoid", "vm_moid", "moid", "moref", "vmRef", "vmName",
	"vm_name", "virtualMachine", "name", "id"}

// checkVM says of vm what the schema cannot: what to give in its place.
func checkVM(tree map[string]any, problems []schemas.Problem) []schemas.Problem {
	for i, p := range problems {
		if p.Field != "vm" {
			continue
		}
		vm, is := tree["vm"].(string)
		switch {
		case tree["vm"] == nil:
			message := "is required: the VM's managed object ID, such as vm-42"
			if other := slices.IndexFunc(namesOfVM, func(name string) bool { return tree[name] != nil }); other >= 0 {
				message += "; " + namesOfVM[other] + " is there, and the field is called vm"
			}
			problems[i].Message = message
		case is:
			problems[i].Message = NotVM(vm)
		}
	}
	return problems
}

// CheckVM says what is wrong with the VM that a request's data names; "" where nothing is.
func CheckVM(tree map[string]any) string {
	if vm, is := tree["vm"].(string); is && ValidVM(vm) {
		return ""
	}
	problems := checkVM(tree, []schemas.Problem{{Field: "vm", Message: "must be a string"}})
	return problems[0].Message
}
