package vcapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
)

const guestCustomizationManager = "VirtualMachineGuestCustomizationManager"

// StoredSpec is the CustomizationSpec that is stored in vCenter under a name, as vCenter wrote it. It may be repeated.
//
// Faults: NotFound where there is none of that name, NoPermission, CustomizationFault.
//
// Source: VI JSON, CustomizationSpecManager.GetCustomizationSpec. Privilege: VirtualMachine.Provisioning.ReadCustSpecs.
func (c *Client) StoredSpec(ctx context.Context, name string) (json.RawMessage, error) {
	var item struct {
		Spec json.RawMessage `json:"spec"`
	}
	in := struct {
		Name string `json:"name"`
	}{name}
	err := c.callVIM(ctx, specManager, "CustomizationSpecManager", "GetCustomizationSpec", in, &item)
	return item.Spec, err
}

// CheckCustomization asks vCenter whether a VM can be customized. It changes nothing and may be repeated. vm is a
// managed object ID.
//
// New in vSphere API 9.0.0.0: an older vCenter answers NOT_FOUND or OPERATION_NOT_FOUND. Errors: UNAUTHENTICATED,
// UNAUTHORIZED (System.View on the VM is missing), NOT_FOUND, SERVICE_UNAVAILABLE.
//
// Source: Vcenter Vm Guest Customization check.
func (c *Client) CheckCustomization(ctx context.Context, vm string) (Check, error) {
	var wire struct {
		Status              string `json:"check_status"`
		SupportedGuestOS    *bool  `json:"supported_guest_os"`
		SupportedPowerState *bool  `json:"supported_power_state"`
	}

	err := c.callREST(ctx, &wire, func(*session) (*call, error) {
		return newRESTCall("guest/customization check", http.MethodPost, vm, "/guest/customization?action=check", nil)
	})
	return Check(wire), err
}

// CustomizationStatus is what the guest reports about its customization, see GuestCustomization. It may be repeated.
//
// Errors: UNAUTHENTICATED, UNAUTHORIZED (System.View on the VM is missing), NOT_FOUND, SERVICE_UNAVAILABLE.
//
// Source: Vcenter Vm Guest Customization Get (Info since 7.0.0, IDLE since 7.0.3).
func (c *Client) CustomizationStatus(ctx context.Context, vm string) (GuestCustomization, error) {
	var wire struct {
		Status    string   `json:"status"`
		Error     string   `json:"error"`
		StartTime wireTime `json:"start_time"`
		EndTime   wireTime `json:"end_time"`
	}

	err := c.callREST(ctx, &wire, func(*session) (*call, error) {
		return newRESTCall("GET guest/customization", http.MethodGet, vm, "/guest/customization", nil)
	})
	return GuestCustomization{
		Status:    wire.Status,
		Error:     c.secrets.redactor().text(wire.Error),
		StartTime: wire.StartTime.at,
		EndTime:   wire.EndTime.at,
	}, err
}

// CustomizeGuest starts CustomizeGuest_Task on a running VM and returns the Task; it does not wait for it. An effect,
// see the package comment.
//
// Not to be repeated: two calls renew the guest's identity and network twice. vm is a managed object ID; spec
// (CustomizationSpec) and configParams (array of OptionValue, or nil) are VI JSON and are sent byte for byte. Faults:
// TaskInProgress, InvalidPowerState, InvalidState (VMware Tools not running), InvalidGuestLogin, GuestPermissionDenied,
// CustomizationFault and its subtypes; NotSupported, not sent, where this vCenter has no such manager.
//
// Source: VI JSON 9.0.0.0, VirtualMachineGuestCustomizationManager.CustomizeGuest_Task. Privilege:
// VirtualMachine.Provisioning.Customize.
func (c *Client) CustomizeGuest(
	ctx context.Context, fence Fence, vm string, auth GuestAuth, spec, configParams json.RawMessage,
) (task string, err error) {
	return c.startTask(ctx, fence, func(s *session) (*call, error) {
		more := []member{{"spec", spec}}
		if len(configParams) > 0 {
			more = append(more, member{"configParams", configParams})
		}
		cl, err := c.guestCall(s, "CustomizeGuest_Task", vm, auth, more...)
		if err == nil {
			cl.secrets = append(cl.secrets, passwordsIn(spec)...)
		}
		return cl, err
	})
}

// AbortCustomization starts AbortCustomization_Task and returns the Task: it ends the engine in the guest and removes
// its lock. The guest may be left half customized, which the next customization repairs. An effect, see the package
// comment; it may be repeated. Faults as for CustomizeGuest.
//
// Source: VI JSON, VirtualMachineGuestCustomizationManager.AbortCustomization_Task.
func (c *Client) AbortCustomization(
	ctx context.Context, fence Fence, vm string, auth GuestAuth,
) (task string, err error) {
	return c.startTask(
		ctx, fence, func(s *session) (*call, error) { return c.guestCall(s, "AbortCustomization_Task", vm, auth) },
	)
}

// member is one member of a JSON object, with its value as the caller gave it.
type member struct {
	name  string
	value json.RawMessage
}

// guestCall builds a call of the guest customization manager. The values of more are copied into the body byte for
// byte.
func (c *Client) guestCall(s *session, method, vm string, auth GuestAuth, more ...member) (*call, error) {
	vmRef, err := encode(refTo(virtualMachine, vm))
	if err != nil {
		return nil, err
	}

	guest, err := encode(auth.vim())
	if err != nil {
		return nil, err
	}

	var body bytes.Buffer
	body.WriteString(`{"vm":`)
	body.Write(vmRef)
	body.WriteString(`,"auth":`)
	body.Write(guest)

	for _, m := range more {
		if !json.Valid(m.value) {
			e := &Error{
				Class:   Permanent,
				Sent:    NotSent,
				Message: m.name + " is no JSON",
				Err:     errors.New(m.name + " is no JSON"),
			}
			return nil, e.withCall(method, "", c.host)
		}

		body.WriteString(`,"` + m.name + `":`)
		body.Write(m.value)
	}

	body.WriteByte('}')
	cl, err := c.newVIMCall(s.service, customizer, guestCustomizationManager, method, json.RawMessage(body.Bytes()))
	if err != nil {
		return nil, err
	}

	cl.secrets = auth.secrets()
	return cl, nil
}

// vim is the guest login in VI JSON: NamePasswordAuthentication, or SAMLTokenAuthentication.
func (a GuestAuth) vim() any {
	if a.SAMLToken != "" {
		return struct {
			TypeName    string `json:"_typeName"`
			Interactive bool   `json:"interactiveSession"`
			Token       string `json:"token"`
			Username    string `json:"username,omitempty"`
		}{"SAMLTokenAuthentication", a.Interactive, a.SAMLToken, a.Username}
	}

	return struct {
		TypeName    string `json:"_typeName"`
		Interactive bool   `json:"interactiveSession"`
		Username    string `json:"username"`
		Password    string `json:"password"`
	}{"NamePasswordAuthentication", a.Interactive, a.Username, a.Password}
}

func (a GuestAuth) secrets() secrets { return append(secrets{a.Password, a.SAMLToken}, a.Redact...) }

// passwordsIn finds the values of all CustomizationPassword objects in a spec.
func passwordsIn(spec json.RawMessage) (found secrets) {
	var doc any
	if json.Unmarshal(spec, &doc) != nil {
		return nil
	}

	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, element := range v {
				walk(element)
			}
		case map[string]any:
			if value, ok := v["value"].(string); ok && v["_typeName"] == "CustomizationPassword" {
				found = append(found, value)
			}
			for _, element := range v {
				walk(element)
			}
		}
	}

	walk(doc)
	return found
}
