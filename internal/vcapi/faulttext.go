package vcapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	maxMembers     = 8   // members of a fault that become text
	maxMemberBytes = 200 // of each
)

// hiddenMembers are members that mean nothing to people, or that they should not see.
var hiddenMembers = []string{"_typeName", "dynamicType", "dynamicProperty", "sessionID"}

// alwaysShown are members without which a text does not say what it is about.
var alwaysShown = []string{"invalidProperty", "task"}

// faultMessage is a fault's text, with its members where the text does not name them. Many faults have no text, and
// then all that helps is the task in TaskInProgress, the property in InvalidArgument, the states in InvalidPowerState.
func faultMessage(text string, data json.RawMessage) string {
	if text == "" {
		return describeMembers(data)
	}
	var members map[string]any
	if json.Unmarshal(data, &members) != nil {
		return text
	}

	for _, name := range alwaysShown {
		if v := describeValue(members[name]); v != "" && !strings.Contains(text, v) {
			text = strings.TrimSuffix(text, ".") + " (" + name + " " + v + ")"
		}
	}

	return text
}

// describeMembers are the members of data as text: "invalidProperty spec.identity.hostName".
func describeMembers(data json.RawMessage) string {
	var members map[string]any
	if json.Unmarshal(data, &members) != nil {
		return ""
	}

	inSpec, inVM := describeValue(members["numberOfNicsInSpec"]), describeValue(members["numberOfNicsInVM"])
	if inSpec != "" && inVM != "" { // NicSettingMismatch
		return fmt.Sprintf("adapters: %s in the spec, %s on the VM", inSpec, inVM)
	}

	var said []string
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if v := describeValue(members[name]); v != "" && !slices.Contains(hiddenMembers, name) &&
			len(said) < maxMembers {
			said = append(said, name+" "+v)
		}
	}

	return strings.Join(said, ", ")
}

// describeValue is a text, a number, a reference to an object, or a list of these, as text; "" for anything else.
func describeValue(v any) string {
	words := ""
	switch v := v.(type) {
	case string:
		words = v
	case bool, float64:
		words = fmt.Sprint(v)
		if n, ok := v.(float64); ok && n == float64(int64(n)) {
			words = fmt.Sprint(int64(n))
		}
	case map[string]any:
		if inner, ok := v["_value"]; ok { // an enumeration or a list where VI JSON has any
			return describeValue(inner)
		}
		if _, ref := v["type"].(string); ref { // ManagedObjectReference
			return describeValue(v["value"])
		}
	case []any:
		var all []string
		for _, item := range v[:min(len(v), maxMembers)] {
			if w := describeValue(item); w != "" {
				all = append(all, w)
			}
		}
		words = strings.Join(all, " ")
	}

	if len(words) > maxMemberBytes {
		words = strings.ToValidUTF8(words[:maxMemberBytes], "") + "…"
	}

	return words
}

// withArguments is the text of a message of which vCenter sent only the key and the arguments.
func withArguments(key string, args []any) string {
	if key == "" || len(args) == 0 {
		return key
	}
	return strings.TrimSuffix(key+": "+describeValue(args), ": ")
}
