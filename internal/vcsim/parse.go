package vcsim

import (
	"net/http"
	"reflect"
	"strings"

	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/types"
)

// sessionHeader carries the token, in both directions.
const sessionHeader = "vmware-api-session-id"

// parse finds out what a request is about and how to carry it out.
func (v *VCenter) parse(r *http.Request, body []byte) parsedCall {
	switch {
	case strings.HasPrefix(r.URL.Path, vijsonPrefix):
		return v.parseVIJSON(r, body)
	case r.URL.Path == vim25.Path || strings.HasPrefix(r.URL.Path, vim25.Path+"/"):
		return v.parseSOAP(r, body)
	case r.URL.Path == guestFilePath:
		return v.parseFile(r)
	}
	return v.parseREST(r, body)
}

// vmOf is the VM of a call, "" where that cannot be seen.
func (v *VCenter) vmOf(this types.ManagedObjectReference, req any) string {
	switch this.Type {
	case "VirtualMachine":
		return this.Value
	case "Task":
		return v.tasks.entity(this.Value)
	}

	switch r := req.(type) {
	case nil:
	case *types.RetrievePropertiesEx:
		return v.vmOfSpecs(r.SpecSet)
	case *types.CreateFilter:
		return v.vmOfSpecs([]types.PropertyFilterSpec{r.Spec})
	case *types.CreateCollectorForTasks:
		if e := r.Filter.Entity; e != nil && e.Entity.Type == "VirtualMachine" {
			return e.Entity.Value
		}
	default:
		if f := reflect.ValueOf(req).Elem().FieldByName("Vm"); f.IsValid() {
			if ref, ok := f.Interface().(types.ManagedObjectReference); ok {
				return ref.Value
			}
		}
	}

	return ""
}

// vmOfSpecs is the VM of property specs about one object.
func (v *VCenter) vmOfSpecs(specs []types.PropertyFilterSpec) string {
	if len(specs) != 1 || len(specs[0].ObjectSet) != 1 {
		return ""
	}
	return v.vmOf(specs[0].ObjectSet[0].Obj, nil)
}

// pageResponse is the response of the proxy in front of vCenter for what is not served behind it.
func pageResponse(status int) response {
	return response{status: status, contentType: "text/plain; charset=utf-8", body: []byte(http.StatusText(status))}
}
