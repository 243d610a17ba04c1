package vcsim

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // vCenter has a list of its own

	"github.com/vmware/govmomi/vim25/types"
)

// The rules by which vCenter refuses what a specification asks for. They are written from vSphere's pages and from what
// vCenters answered in public reports, and share nothing with what guestflow checks itself: a simulator that shares a
// client's beliefs finds none of its mistakes.
//
// Sources: "Virtual Machine Administration", Customizing Guest Operating Systems (a computer name: alphanumeric
// characters and the hyphen, no periods or blanks, not digits only, up to 63); the pages of CustomizationLinuxPrep
// (timeZone: case-sensitive, of the tz database), CustomizationIPSettings, CustomizationUnknownName and
// CustomizationUnknownIpGenerator (the user must be asked first), CustomizationCustomName (a program that vpxd.cfg
// names), NicSettingMismatch (the number of adapter settings does not match the VM's).

var (
	computerName = regexp.MustCompile(`^[A-Za-z0-9-]{1,63}$`)
	onlyDigits   = regexp.MustCompile(`^[0-9]*$`)
)

// hostNameFault is the fault for a host name that vCenter does not take; nil where it does.
func hostNameFault(name types.BaseCustomizationName) types.BaseMethodFault {
	wrong := &types.InvalidArgument{InvalidProperty: "spec.identity.hostName"}
	switch n := name.(type) {
	case *types.CustomizationFixedName:
		if !computerName.MatchString(n.Name) || onlyDigits.MatchString(n.Name) {
			return wrong
		}
	case nil, *types.CustomizationUnknownName:
		return wrong
	case *types.CustomizationCustomName:
		return new(types.IpHostnameGeneratorError)
	}
	return nil
}

// timeZoneFault is the fault for a time zone of Linux that is not in vCenter's list.
func timeZoneFault(zone string) types.BaseMethodFault {
	if zone == "" {
		return nil
	}
	if _, err := time.LoadLocation(zone); err != nil || zone == "Local" {
		return &types.InvalidArgument{InvalidProperty: "spec.identity.timeZone"}
	}
	return nil
}

// adapterFault is the fault for what an adapter asks for.
func adapterFault(i int, s types.CustomizationIPSettings) types.BaseMethodFault {
	wrong := func(what string) types.BaseMethodFault {
		return &types.InvalidArgument{InvalidProperty: fmt.Sprintf("spec.nicSettingMap[%d].adapter.%s", i, what)}
	}
	switch ip := s.Ip.(type) {
	case nil, *types.CustomizationUnknownIpGenerator:
		return wrong("ip")
	case *types.CustomizationCustomIpGenerator:
		return new(types.IpHostnameGeneratorError)
	case *types.CustomizationFixedIp:
		if _, ok := parseIPv4(ip.IpAddress); !ok && !strings.Contains(ip.IpAddress, ":") {
			return wrong("ip")
		}
		if s.SubnetMask != "" && !isMask(s.SubnetMask) {
			return wrong("subnetMask")
		}
	}

	if s.IpV6Spec == nil {
		return nil
	}

	for _, ip := range s.IpV6Spec.Ip {
		switch ip := ip.(type) {
		case *types.CustomizationUnknownIpV6Generator:
			return wrong("ipV6Spec.ip")
		case *types.CustomizationFixedIpV6:
			if strings.ContainsAny(ip.IpAddress, "/ ") || !strings.Contains(ip.IpAddress, ":") || ip.SubnetMask < 1 ||
				ip.SubnetMask > 128 {
				return wrong("ipV6Spec.ip")
			}
		}
	}

	return nil
}

// parseIPv4 reads four decimal numbers, each without a zero in front.
func parseIPv4(s string) (n uint32, ok bool) {
	parts := strings.Split(s, ".")
	if len(parts) != 4 {
		return 0, false
	}

	for _, part := range parts {
		b, err := strconv.ParseUint(part, 10, 8)
		if err != nil || strconv.FormatUint(b, 10) != part {
			return 0, false
		}
		n = n<<8 | uint32(b)
	}

	return n, true
}

// isMask reports whether a subnet mask is ones and then zeros.
func isMask(s string) bool {
	n, ok := parseIPv4(s)
	hosts := ^n
	return ok && hosts&(hosts+1) == 0
}
