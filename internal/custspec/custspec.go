// Package custspec checks a CustomizationSpec before anything is done with it: its shape against the types of VI JSON,
// its values against vSphere's rules, and its texts for secrets in plain text. What vCenter is certain to refuse is an
// error with its path and the rule. What vCenter only may refuse is a warning, and so is what this program does not
// know, because a newer vCenter may know it.
package custspec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Finding is one problem in a spec.
type Finding struct {
	Code    string // of a warning: one of those below
	Field   string // path
	Message string // plain words that follow the field, with what to change
}

// String is the field and the message.
func (f Finding) String() string { return strings.TrimPrefix(f.Field+": "+f.Message, ": ") }

// The codes of warnings.
const (
	UnknownType         = "UnknownType"
	UnknownMember       = "UnknownMember"
	MissingMember       = "MissingMember"
	DoubtfulValue       = "DoubtfulValue"
	UnsupportedIdentity = "UnsupportedIdentity"
	IgnoredByGuest      = "IgnoredByGuest"
)

// Report is the result of a check: what vCenter is certain to refuse, and what it may refuse or ignore.
type Report struct {
	Refused  []Finding
	Warnings []Finding
}

// maxWarnings is how many warnings are listed one by one: a run's events carry them.
const maxWarnings = 24

// Check checks a CustomizationSpec; at is its path, which begins the paths of the findings. The spec is made of
// map[string]any, []any, string, bool, nil and json.Number.
func Check(spec any, at string) Report {
	c := &checker{}
	c.checkObject(spec, at, "CustomizationSpec")
	return c.report(at)
}

// CheckParams checks an array of OptionValue.
func CheckParams(params any, at string) Report {
	c := &checker{}
	c.checkValue(params, at, member{kind: object, of: "OptionValue", list: true})
	return c.report(at)
}

// CheckJSON is Check of a spec as vCenter sends it. Text that is not JSON has no findings: the call that sends it
// reports it.
func CheckJSON(spec json.RawMessage, at string) Report { return Check(decode(spec), at) }

// decode decodes JSON and keeps its numbers as they are written; nil where it is not JSON.
func decode(b json.RawMessage) (tree any) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if d.Decode(&tree) != nil {
		return nil
	}
	return tree
}

// checker collects findings.
type checker struct {
	Report
	more int // warnings that are not listed one by one
}

func (c *checker) report(at string) Report {
	if c.more > 0 {
		c.Warnings = append(
			c.Warnings, Finding{DoubtfulValue, at, fmt.Sprintf("has %d more warnings, which are not listed", c.more)},
		)
	}
	return c.Report
}

func (c *checker) refuse(at, format string, args ...any) {
	c.Refused = append(c.Refused, Finding{Field: at, Message: fmt.Sprintf(format, args...)})
}

func (c *checker) warn(code, at, format string, args ...any) {
	if len(c.Warnings) == maxWarnings {
		c.more++
		return
	}
	c.Warnings = append(c.Warnings, Finding{code, at, fmt.Sprintf(format, args...)})
}

// A data type of VI JSON, and a member of one.
type (
	dataType struct {
		kinds   []string // what may stand in its place
		members map[string]member
	}
	member struct {
		kind           kind
		of             string // the data type, or the enumeration
		list, required bool
	}
)

// kind is the JSON type of a member's value.
type kind int

const (
	text kind = iota
	enum
	boolean
	integer
	binary
	object
	anything
)

var kindNames = [...]string{
	text:     "a string",
	enum:     "a string",
	boolean:  "true or false",
	integer:  "an integer",
	binary:   "an array of bytes",
	object:   "an object",
	anything: "a value with its _typeName",
}

// abstract reports whether a type only stands for others: VI JSON then needs a _typeName.
func (t dataType) abstract() bool { return len(t.kinds) > 0 && len(t.members) == 0 }

const typeName = "_typeName"

// checkValue checks the value of the member m.
func (c *checker) checkValue(v any, at string, m member) {
	switch list, is := v.([]any); {
	case v == nil: // read as absent
	case !m.list:
		c.checkSingle(v, at, m)
	case !is:
		c.refuse(at, "must be an array, not %s: put [ ] around it%s", jsonKind(v), lostArrayHint(v))
	default:
		for i, item := range list {
			if at := fmt.Sprintf("%s[%d]", at, i); item == nil {
				c.refuse(at, "must be %s, not null: leave it out", kindNames[m.kind])
			} else {
				c.checkSingle(item, at, m)
			}
		}
	}
}

// lostArrayHint says where an array gets lost.
func lostArrayHint(v any) string {
	if _, is := v.(map[string]any); is {
		return " (in PowerShell @( ), which keeps an array of one item an array)"
	}
	return ""
}

// checkSingle checks a value that is not a list.
func (c *checker) checkSingle(v any, at string, m member) {
	if isSecret(v) {
		if m.kind != text && m.kind != enum {
			c.refuse(at, "must be %s, not a secret: a secret stands for a string only", kindNames[m.kind])
		}
		return
	}

	switch m.kind {
	case object:
		c.checkObject(v, at, m.of)
		return
	case anything:
		c.checkAny(v, at)
		return
	}

	if !fits(v, m.kind) {
		c.refuse(at, "must be %s, not %s%s", kindNames[m.kind], jsonKind(v), quotedHint(v, m.kind))
		return
	}

	if s, _ := v.(string); m.kind == enum && s != "" && !slices.Contains(enums[m.of], s) {
		c.warn(DoubtfulValue, at, "%.80q is none of the values that are known: %s", s, strings.Join(enums[m.of], ", "))
	}
}

// quotedHint says what is wrong with a number or boolean in quotes.
func quotedHint(v any, k kind) string {
	if s, is := v.(string); is && (k == integer && isInt32(s) || k == boolean && (s == "true" || s == "false")) {
		return ": leave out the quotes"
	}
	if _, is := v.(json.Number); is && k == text {
		return ": put it into quotes"
	}
	return ""
}

// fits reports whether v is of the kind k.
func fits(v any, k kind) bool {
	switch v := v.(type) {
	case string:
		return k == text || k == enum || k == binary // binary: as base64
	case bool:
		return k == boolean
	case json.Number:
		return k == integer && isInt32(v.String())
	case []any:
		return k == binary
	}
	return false
}

func isInt32(s string) bool {
	_, err := strconv.ParseInt(s, 10, 32)
	return err == nil
}

// jsonKind is the JSON type of v as text.
func jsonKind(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case json.Number:
		if f, err := v.Float64(); err == nil && f == math.Trunc(f) && !isInt32(v.String()) &&
			!strings.ContainsAny(v.String(), ".eE") {
			return "a number out of its range"
		}
		return "a number"
	case []any:
		return "an array"
	}

	return "an object"
}

// isSecret reports whether v is the name of a secret, which may stand for a string. Whether it is well formed is
// checked where requests are decoded.
func isSecret(v any) bool {
	m, is := v.(map[string]any)
	_, has := m["secretRef"]
	return is && has && m[typeName] == nil
}

// checkObject checks a value whose type is of, or a subtype of it.
func (c *checker) checkObject(v any, at, of string) {
	m, is := v.(map[string]any)
	if !is {
		cut := ""
		if _, is := v.(string); is {
			cut = " (PowerShell's ConvertTo-Json makes strings of what is nested deeper than its -Depth, " +
				"2 where it is not said: give -Depth 10)"
		}
		c.refuse(at, "must be an object, not %s%s", jsonKind(v), cut)
		return
	}

	name, walk := c.typeOf(m, at, of)
	if !walk {
		return
	}

	t := dataTypes[name]
	for _, member := range slices.Sorted(maps.Keys(m)) {
		child := join(at, member)
		switch known, is := t.members[member]; {
		case is:
			c.checkValue(m[member], child, known)
		case member != typeName:
			c.warn(
				UnknownMember,
				child,
				"is no member of %s that this guestflow knows%s; it is passed on",
				name,
				nearest(member, slices.Collect(maps.Keys(t.members))),
			)
		}
	}

	c.checkRequired(m, at, name)
	c.checkRules(name, m, at)
}

// typeOf finds the type of m, where the type of is wanted. Where the type is unknown or wrong, its members are not
// checked.
func (c *checker) typeOf(m map[string]any, at, of string) (name string, walk bool) {
	belongs := append([]string{of}, dataTypes[of].kinds...)
	if dataTypes[of].abstract() {
		belongs = belongs[1:]
	}

	v, said := m[typeName]
	name, is := v.(string)
	_, known := dataTypes[name]
	switch {
	case v != nil && !is:
		c.refuse(join(at, typeName), "must be a string, not %s", jsonKind(v))
	case (!said || v == nil) && dataTypes[of].abstract():
		c.refuse(at, "has no _typeName, which says what it is: %s%s", oneOf(belongs), guessType(m, belongs))
	case !said || v == nil:
		return of, true
	case slices.Contains(belongs, name):
		return name, true
	case name == of:
		c.warn(
			UnknownType,
			join(at, typeName),
			"%s stands for its kinds and says nothing itself: give %s",
			name,
			oneOf(belongs),
		)
	case known:
		c.refuse(join(at, typeName), "is %s, which does not belong here: give %s", name, oneOf(belongs))
	default:
		c.warn(
			UnknownType,
			join(at, typeName),
			"%.80q is no type that this guestflow knows here%s; it is passed on",
			name,
			nearest(name, belongs),
		)
	}

	return "", false
}

func oneOf(names []string) string {
	// Refused all the same.
	names = slices.DeleteFunc(
		slices.Clone(names), func(name string) bool { return strings.HasPrefix(name, "CustomizationUnknown") },
	)
	if len(names) == 1 {
		return names[0]
	}
	return "one of " + strings.Join(names, ", ")
}

// guessType is the one type that has the members of m.
func guessType(m map[string]any, among []string) string {
	var fit []string
	for _, name := range among {
		has := len(m) > 0
		for member := range m {
			_, known := dataTypes[name].members[member]
			has = has && (known || member == typeName)
		}
		if has {
			fit = append(fit, name)
		}
	}

	if len(fit) != 1 {
		return ""
	}

	return fmt.Sprintf(`; it looks like "_typeName": %q`, fit[0])
}

// alwaysRequired are the members without which vCenter refuses a spec. For all others that VI JSON calls required,
// there is a warning.
var alwaysRequired = map[string]bool{
	"CustomizationSpec.identity":          true,
	"CustomizationLinuxPrep.hostName":     true,
	"CustomizationUserData.computerName":  true,
	"CustomizationAdapterMapping.adapter": true,
	"CustomizationIPSettings.ip":          true,
	"CustomizationFixedName.name":         true,
	"CustomizationFixedIp.ipAddress":      true,
	"CustomizationFixedIpV6.ipAddress":    true,
}

// checkRequired reports which members are missing.
func (c *checker) checkRequired(m map[string]any, at, name string) {
	var unknown []string
	for member := range m {
		if _, known := dataTypes[name].members[member]; !known && member != typeName {
			unknown = append(unknown, member)
		}
	}

	for _, member := range slices.Sorted(maps.Keys(dataTypes[name].members)) {
		if !dataTypes[name].members[member].required || m[member] != nil {
			continue
		}

		instead := ""
		if near := Nearest(member, unknown); near != "" {
			instead = fmt.Sprintf(": %.80s is there, but VI JSON calls it %s", near, member)
		}

		if alwaysRequired[name+"."+member] {
			c.refuse(join(at, member), "is required%s", instead)
		} else {
			c.warn(
				MissingMember,
				join(at, member),
				"is missing, and VI JSON requires it of %s: vCenter may refuse the spec%s",
				name,
				instead,
			)
		}
	}
}

// primitives are the types besides data types that a value of any type may have.
var primitives = map[string]func(v any) bool{
	"string":   isString,
	"dateTime": isString,
	"binary":   isString,
	"boolean":  func(v any) bool { _, is := v.(bool); return is },
	"byte":     bits(16),
	"short":    bits(16),
	"int":      bits(32),
	"long":     bits(64),
	"float":    isNumber,
	"double":   isNumber,
}

func isString(v any) bool { _, is := v.(string); return is || isSecret(v) }

func isNumber(v any) bool { _, is := v.(json.Number); return is }

func bits(n int) func(v any) bool {
	return func(v any) bool {
		number, is := v.(json.Number)
		_, err := strconv.ParseInt(number.String(), 10, n)
		return is && err == nil
	}
}

// checkAny checks a value of any type.
func (c *checker) checkAny(v any, at string) {
	m, is := v.(map[string]any)
	if !is {
		c.warn(
			DoubtfulValue,
			at,
			`is %s without its type, which vCenter may refuse: write {"_typeName": "string", "_value": …}`,
			jsonKind(v),
		)
		return
	}

	name, is := m[typeName].(string)
	fit, primitive := primitives[name]
	_, known := dataTypes[name]
	value, has := m["_value"]

	switch {
	case !is:
		c.refuse(at, `has no _typeName, which says what it is: for a text {"_typeName": "string", "_value": …}`)
	case primitive && has && !fit(value):
		c.refuse(join(at, "_value"), "must be what _typeName says, %s, not %s", name, jsonKind(value))
	case primitive && !has:
		c.warn(MissingMember, join(at, "_value"), "is missing: the value itself")
	case primitive:
	case known:
		c.checkObject(v, at, name)
	default:
		c.warn(
			UnknownType,
			join(at, typeName),
			"%.80q is no type that this guestflow knows here%s; it is passed on",
			name,
			nearest(name, slices.Collect(maps.Keys(primitives))),
		)
	}
}

// join is the path of a member. A name that is too long is cut.
func join(at, member string) string {
	if len(member) > 80 {
		member = strings.ToValidUTF8(member[:80], "") + "…"
	}
	return strings.TrimPrefix(at+"."+member, ".")
}
