// Package custspec reads a CustomizationSpec before anything is done with it: its shape by the types of VI JSON, its
// values by vSphere's rules. What vCenter surely refuses is refused with its path and the rule; what it only may
// refuse, and what this program does not know, is a warning: a newer vCenter may know it.
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

// Finding is one thing about a spec.
type Finding struct {
	Code    string // of a warning: one of those below
	Field   string // path
	Message string // plain words that follow the field, with what to change
}

// String is the field and what is to be said of it.
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

// Report is what was found: what vCenter surely refuses, and what it may refuse or pass over.
type Report struct {
	Refused  []Finding
	Warnings []Finding
}

// maxWarnings bounds how many warnings are told one by one: a run's events carry them.
const maxWarnings = 24

// Check reads a CustomizationSpec that stands at the path at. It is made of map[string]any, []any, string, bool, nil
// and json.Number.
func Check(spec any, at string) Report {
	r := &reader{}
	r.object(spec, at, "CustomizationSpec")
	return r.report(at)
}

// CheckParams reads an array of OptionValue.
func CheckParams(params any, at string) Report {
	r := &reader{}
	r.value(params, at, member{kind: object, of: "OptionValue", list: true})
	return r.report(at)
}

// CheckJSON is Check of a spec as vCenter gives it. What is no JSON has no findings: it is told where it is sent.
func CheckJSON(spec json.RawMessage, at string) Report { return Check(decode(spec), at) }

// decode reads JSON with its numbers as they are written; nil where it is none.
func decode(b json.RawMessage) (tree any) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if d.Decode(&tree) != nil {
		return nil
	}
	return tree
}

// reader collects findings.
type reader struct {
	Report
	more int // warnings that are not told one by one
}

func (r *reader) report(at string) Report {
	if r.more > 0 {
		r.Warnings = append(
			r.Warnings, Finding{DoubtfulValue, at, fmt.Sprintf("has %d more warnings, which are not told", r.more)},
		)
	}
	return r.Report
}

func (r *reader) refuse(at, format string, args ...any) {
	r.Refused = append(r.Refused, Finding{Field: at, Message: fmt.Sprintf(format, args...)})
}

func (r *reader) warn(code, at, format string, args ...any) {
	if len(r.Warnings) == maxWarnings {
		r.more++
		return
	}
	r.Warnings = append(r.Warnings, Finding{code, at, fmt.Sprintf(format, args...)})
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

// kind is what a member's value is in JSON.
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

// value reads what stands where m belongs.
func (r *reader) value(v any, at string, m member) {
	switch list, is := v.([]any); {
	case v == nil: // read as absent
	case !m.list:
		r.one(v, at, m)
	case !is:
		r.refuse(at, "must be an array, not %s: put [ ] around it%s", jsonKind(v), unwrapped(v))
	default:
		for i, item := range list {
			if at := fmt.Sprintf("%s[%d]", at, i); item == nil {
				r.refuse(at, "must be %s, not null: leave it out", kindNames[m.kind])
			} else {
				r.one(item, at, m)
			}
		}
	}
}

// unwrapped says where an array gets lost.
func unwrapped(v any) string {
	if _, is := v.(map[string]any); is {
		return " (in PowerShell @( ), which keeps an array of one item an array)"
	}
	return ""
}

// one reads a value that is no list.
func (r *reader) one(v any, at string, m member) {
	if isSecret(v) {
		if m.kind != text && m.kind != enum {
			r.refuse(at, "must be %s, not a secret: a secret stands for a string only", kindNames[m.kind])
		}
		return
	}

	switch m.kind {
	case object:
		r.object(v, at, m.of)
		return
	case anything:
		r.anything(v, at)
		return
	}

	if !fits(v, m.kind) {
		r.refuse(at, "must be %s, not %s%s", kindNames[m.kind], jsonKind(v), quoted(v, m.kind))
		return
	}

	if s, _ := v.(string); m.kind == enum && s != "" && !slices.Contains(enums[m.of], s) {
		r.warn(DoubtfulValue, at, "%.80q is none of the values that are known: %s", s, strings.Join(enums[m.of], ", "))
	}
}

// quoted says what is wrong with a number or boolean in quotes.
func quoted(v any, k kind) string {
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

// jsonKind is what v is in JSON, in words.
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

// isSecret reports whether v names a secret, which stands for a string. Whether it does so rightly is checked where
// requests are decoded.
func isSecret(v any) bool {
	m, is := v.(map[string]any)
	_, has := m["secretRef"]
	return is && has && m[typeName] == nil
}

// object reads what stands where the type of belongs.
func (r *reader) object(v any, at, of string) {
	m, is := v.(map[string]any)
	if !is {
		cut := ""
		if _, is := v.(string); is {
			cut = " (PowerShell's ConvertTo-Json makes strings of what is nested deeper than its -Depth, " +
				"2 where it is not said: give -Depth 10)"
		}
		r.refuse(at, "must be an object, not %s%s", jsonKind(v), cut)
		return
	}

	name, walk := r.typeOf(m, at, of)
	if !walk {
		return
	}

	t := dataTypes[name]
	for _, member := range slices.Sorted(maps.Keys(m)) {
		child := join(at, member)
		switch known, is := t.members[member]; {
		case is:
			r.value(m[member], child, known)
		case member != typeName:
			r.warn(
				UnknownMember,
				child,
				"is no member of %s that this guestflow knows%s; it is passed on",
				name,
				nearest(member, slices.Collect(maps.Keys(t.members))),
			)
		}
	}

	r.required(m, at, name)
	r.rules(name, m, at)
}

// typeOf finds which type m is of, where of belongs. Where that is not known, or wrong, its members are not read.
func (r *reader) typeOf(m map[string]any, at, of string) (name string, walk bool) {
	belongs := append([]string{of}, dataTypes[of].kinds...)
	if dataTypes[of].abstract() {
		belongs = belongs[1:]
	}

	v, said := m[typeName]
	name, is := v.(string)
	_, known := dataTypes[name]
	switch {
	case v != nil && !is:
		r.refuse(join(at, typeName), "must be a string, not %s", jsonKind(v))
	case (!said || v == nil) && dataTypes[of].abstract():
		r.refuse(at, "has no _typeName, which says what it is: %s%s", oneOf(belongs), guess(m, belongs))
	case !said || v == nil:
		return of, true
	case slices.Contains(belongs, name):
		return name, true
	case name == of:
		r.warn(
			UnknownType,
			join(at, typeName),
			"%s stands for its kinds and says nothing itself: give %s",
			name,
			oneOf(belongs),
		)
	case known:
		r.refuse(join(at, typeName), "is %s, which does not belong here: give %s", name, oneOf(belongs))
	default:
		r.warn(
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

// guess names the one type that has the members of m.
func guess(m map[string]any, among []string) string {
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

// needed are the members without which a spec says nothing: what vCenter refuses to be without. All others that VI JSON
// calls required are warned of.
var needed = map[string]bool{
	"CustomizationSpec.identity":          true,
	"CustomizationLinuxPrep.hostName":     true,
	"CustomizationUserData.computerName":  true,
	"CustomizationAdapterMapping.adapter": true,
	"CustomizationIPSettings.ip":          true,
	"CustomizationFixedName.name":         true,
	"CustomizationFixedIp.ipAddress":      true,
	"CustomizationFixedIpV6.ipAddress":    true,
}

// required tells which members are missing.
func (r *reader) required(m map[string]any, at, name string) {
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

		if needed[name+"."+member] {
			r.refuse(join(at, member), "is required%s", instead)
		} else {
			r.warn(
				MissingMember,
				join(at, member),
				"is missing, and VI JSON requires it of %s: vCenter may refuse the spec%s",
				name,
				instead,
			)
		}
	}
}

// primitives are the types that a value of any kind may be of, beside data types.
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

// anything reads a value of any type.
func (r *reader) anything(v any, at string) {
	m, is := v.(map[string]any)
	if !is {
		r.warn(
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
		r.refuse(at, `has no _typeName, which says what it is: for a text {"_typeName": "string", "_value": …}`)
	case primitive && has && !fit(value):
		r.refuse(join(at, "_value"), "must be what _typeName says, %s, not %s", name, jsonKind(value))
	case primitive && !has:
		r.warn(MissingMember, join(at, "_value"), "is missing: the value itself")
	case primitive:
	case known:
		r.object(v, at, name)
	default:
		r.warn(
			UnknownType,
			join(at, typeName),
			"%.80q is no type that this guestflow knows here%s; it is passed on",
			name,
			nearest(name, slices.Collect(maps.Keys(primitives))),
		)
	}
}

// join is the path of a member; of a name that is too long its beginning.
func join(at, member string) string {
	if len(member) > 80 {
		member = strings.ToValidUTF8(member[:80], "") + "…"
	}
	return strings.TrimPrefix(at+"."+member, ".")
}
