package handler

import (
	"fmt"
	"regexp"
	"strings"
)

// nameRule is what a spec says of the guest's host name.
type nameRule struct {
	setting
	kind    nameKind
	windows bool
}

type nameKind int

const (
	noName nameKind = iota
	fixedName
	prefixName // CustomizationPrefixName: vCenter appends a number
	vmName     // CustomizationVirtualMachineName: vCenter makes it of the VM's name
)

// How long a host name may be. vCenter cuts a Windows computer name to 15 characters:
// https://developer.broadcom.com/xapis/vsphere-web-services-api/latest/vim.vm.customization.UserData.html
const (
	longestLabel        = 63
	longestComputerName = 15
)

// plainName is a name that can be a host name as it stands.
var plainName = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?$`)

// nameNumber is what vCenter appends to make a name unique.
var nameNumber = regexp.MustCompile(`^-?[0-9]+$`)

// held is the outcome of a comparison: it fits, it does not and says how, or nobody can tell and says why.
type held struct {
	mismatch string
	untold   string
}

// compare holds the host name that the guest shows against the rule. Names are compared by their first label, without
// case: VMware Tools report the domain too, and a domain given by DHCP need not be the spec's.
func (n nameRule) compare(shown, vm string, hide func(string) string) held {
	label, longest := firstLabel(shown), longestLabel
	if n.windows {
		longest = longestComputerName
	}
	differs := func(format string, args ...any) held {
		return held{mismatch: fmt.Sprintf("host name: want %s, the guest shows %s", fmt.Sprintf(format, args...),
			orNothing(hide(shown)))}
	}

	switch n.kind {
	case fixedName:
		want := firstLabel(n.text)
		if strings.EqualFold(want, label) || n.windows && strings.EqualFold(cutTo(want, longest), label) {
			return held{}
		}
		if n.secret != "" {
			return differs("%s", n.setting)
		}
		return differs("%s", want)
	case prefixName:
		return n.made(label, n.text, longest, true, func() held { return differs("%s and a number", n.setting) })
	case vmName:
		switch {
		case vm == "":
			return held{untold: "the VM's name is not known"}
		case strings.EqualFold(vm, label), strings.EqualFold(vm, shown):
			return held{}
		case !plainName.MatchString(vm) || nameNumber.MatchString(vm) || len(vm) > longest:
			return held{untold: fmt.Sprintf("it is not documented which host name vCenter makes of the VM name %q; "+
				"the guest shows %s", vm, orNothing(hide(shown)))}
		}

		return n.made(label, vm, longest, false, func() held { return differs("%s, the VM's name", vm) })
	}

	return held{}
}

// made compares with a name that vCenter makes: base, and a number "if necessary, to make it unique"
// (CustomizationVirtualMachineName), or always (CustomizationPrefixName):
//
//   - https://developer.broadcom.com/xapis/virtual-infrastructure-json-api/latest/
//     data-structures/CustomizationVirtualMachineName
//
//   - https://developer.broadcom.com/xapis/virtual-infrastructure-json-api/latest/
//     data-structures/CustomizationPrefixName
//
// The pages do not say how the number is written, hence with or without a hyphen; nor what is cut where both together
// are too long, nor what becomes of dots, underscores, blanks and escapes (%2f) in a VM's name. One report has its dots
// dropped (some.tld became sometld):
// https://github.com/nsidc/vagrant-vsphere/issues/215. No run fails for what is not known.
func (n nameRule) made(label, base string, longest int, always bool, differs func() held) held {
	if len(label) >= len(base) && strings.EqualFold(label[:len(base)], base) {
		if rest := label[len(base):]; nameNumber.MatchString(rest) || rest == "" && !always {
			return held{}
		}
	}

	const digits = 5
	if len(base)+digits > longest && strings.EqualFold(cutTo(label, longest-2*digits), cutTo(base, longest-2*digits)) {
		return held{untold: fmt.Sprintf("it is not documented how vCenter cuts a name that is longer than %d "+
			"characters with its number", longest)}
	}

	if !plainName.MatchString(strings.TrimRight(base, "-")) {
		return held{untold: "it is not documented which host name vCenter makes of such a prefix"}
	}
	return differs()
}

func cutTo(s string, n int) string { return s[:min(len(s), max(n, 0))] }

func firstLabel(host string) string {
	label, _, _ := strings.Cut(host, ".")
	return label
}

func orNothing(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
