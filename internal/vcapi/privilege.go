package vcapi

import "context"

// MissingPrivileges are those of the wanted privileges (IDs such as VirtualMachine.Provisioning.Customize) that this
// client's login does not have on a VM. A privilege that vCenter does not know counts as missing. It may be repeated.
//
// Faults: ManagedObjectNotFound, NoPermission (System.Read on the VM is missing).
//
// Source: VI JSON, AuthorizationManager.HasPrivilegeOnEntities (vSphere API 5.5), with UserSession.key as sessionId.
func (c *Client) MissingPrivileges(ctx context.Context, vm string, wanted []string) ([]string, error) {
	type question struct {
		Entities  []moRef  `json:"entity"`
		SessionID string   `json:"sessionId"`
		Wanted    []string `json:"privId"`
	}

	var answer []struct {
		Availability []struct {
			ID      string `json:"privId"`
			Granted bool   `json:"isGranted"`
		} `json:"privAvailability"`
	}

	err := c.read(ctx, c.vimLogin, func(s *session) (*call, error) {
		return c.newVIMCall(s.service, authorizer, "AuthorizationManager", "HasPrivilegeOnEntities",
			question{[]moRef{refTo(virtualMachine, vm)}, s.name.Key, wanted})
	}, &answer)
	if err != nil {
		return nil, err
	}

	granted := map[string]bool{}
	for _, entity := range answer {
		for _, a := range entity.Availability {
			granted[a.ID] = a.Granted
		}
	}

	var missing []string
	for _, id := range wanted {
		if !granted[id] {
			missing = append(missing, id)
		}
	}

	return missing, nil
}
