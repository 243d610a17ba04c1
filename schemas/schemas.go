// Package schemas holds the JSON Schemas (2020-12) of the data of guestflow's CloudEvents, for the service and for
// everybody else.
package schemas

import (
	"bytes"
	"cmp"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/guestflow/guestflow/internal/custspec"
)

// The schemas. Each is a file <name>.json here, and urn:guestflow:schema:<name> to the world.
const (
	Requested       = "requested.v1"
	CancelRequested = "cancel.requested.v1"
	Run             = "run.v1"
)

//go:embed *.json
var files embed.FS

// URN is the identifier of a schema, as an event's dataschema names it.
func URN(name string) string { return "urn:guestflow:schema:" + name }

// Source is the schema as it is written.
func Source(name string) ([]byte, error) {
	b, err := files.ReadFile(name + ".json")
	if err != nil {
		return nil, fmt.Errorf("schema %q: %w", name, err)
	}
	return b, nil
}

// Problem is one thing that is wrong with a document.
type Problem struct {
	Field   string // path, as processes[1].name; empty for the document as a whole
	Message string // plain words that follow the field: "is required"
}

// String is the field and what is wrong with it.
func (p Problem) String() string { return strings.TrimPrefix(p.Field+": "+p.Message, ": ") }

// Check holds a document against a schema and returns everything that is wrong with it, in the order of the fields. The
// document is made of map[string]any, []any, string, bool, nil and json.Number. No value of the document is quoted.
func Check(name string, doc any) []Problem { return check(compiled()[name], name, doc) }

// CheckStrict is Check, but refuses every field that the schema does not name, also where readers are to ignore it. It
// is for tests of what guestflow itself writes.
func CheckStrict(name string, doc any) []Problem { return check(compiledStrict()[name], name, doc) }

func check(s *jsonschema.Schema, name string, doc any) []Problem {
	if s == nil {
		return []Problem{{Message: fmt.Sprintf("there is no schema %q", name)}}
	}
	var invalid *jsonschema.ValidationError
	switch err := s.Validate(doc); {
	case err == nil:
		return nil
	case !errors.As(err, &invalid):
		return []Problem{{Message: err.Error()}}
	}
	found := map[Problem]bool{}
	collect(invalid, doc, found)
	problems := make([]Problem, 0, len(found))
	for p := range found {
		problems = append(problems, p)
	}
	sort.Slice(problems, func(i, k int) bool { return problems[i].String() < problems[k].String() })
	return problems
}

// compiled schemas never change; they are made when first needed.
var (
	compiled       = sync.OnceValue(func() map[string]*jsonschema.Schema { return compile(false) })
	compiledStrict = sync.OnceValue(func() map[string]*jsonschema.Schema { return compile(true) })
)

// compile panics where an embedded schema is broken: a fault of the program, which its first test shows.
func compile(strict bool) map[string]*jsonschema.Schema {
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	all := map[string]*jsonschema.Schema{}
	for _, name := range []string{Requested, CancelRequested, Run} {
		b, err := Source(name)
		if err != nil {
			panic(err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err != nil {
			panic(fmt.Errorf("schema %s: %w", name, err))
		}
		if strict {
			closeObjects(doc)
		}
		if err := c.AddResource(URN(name), doc); err != nil {
			panic(fmt.Errorf("schema %s: %w", name, err))
		}
		all[name] = c.MustCompile(URN(name))
	}
	return all
}

// closeObjects refuses unknown fields wherever a schema describes an object of its own and says nothing about them.
func closeObjects(node any) {
	switch node := node.(type) {
	case map[string]any:
		if _, said := node["additionalProperties"]; !said && node["type"] == "object" && node["properties"] != nil {
			node["additionalProperties"] = false
		}
		for key, child := range node {
			if key != "examples" {
				closeObjects(child)
			}
		}
	case []any:
		for _, child := range node {
			closeObjects(child)
		}
	}
}

// collect puts the innermost errors into found, in plain words.
func collect(e *jsonschema.ValidationError, doc any, found map[Problem]bool) {
	at := path(e.InstanceLocation, doc)
	_, oneOf := e.ErrorKind.(*kind.OneOf)
	for _, cause := range e.Causes {
		if _, is := constOf(cause); !oneOf || !is || len(e.Causes) == 1 {
			collect(cause, doc, found)
		}
	}
	// what is wrong is told of the form that was meant; where none is seen, both are named
	for _, cause := range e.Causes {
		if only, is := constOf(cause); oneOf && is {
			alsoAllowed(at, only, found)
		}
	}

	switch k := e.ErrorKind.(type) {
	case *kind.Required:
		for _, missing := range k.Missing {
			found[Problem{join(at, missing), "is required"}] = true
		}
	case *kind.AdditionalProperties:
		for _, unknown := range k.Properties {
			found[unknownField(at, unknown, e.SchemaURL)] = true
		}
	default:
		if text := inPlainWords(e); text != "" {
			found[Problem{at, text}] = true
		}
	}
}

// unknownField is what is wrong with a field that the schema does not have.
func unknownField(at, name, schemaURL string) Problem {
	if strings.HasSuffix(schemaURL, "/environment") {
		text := "%q is not a name that a variable can have: it may not be empty, nor have a '='"
		return Problem{at, fmt.Sprintf(text, name)}
	}
	return Problem{join(at, name), "is not a known field" + otherName(name, knownBy(schemaURL))}
}

// inPlainWords says what is wrong with a value; nothing where its parts say it.
func inPlainWords(e *jsonschema.ValidationError) string {
	switch k := e.ErrorKind.(type) {
	case *kind.FalseSchema:
		return "must not be there"
	case *kind.Type:
		want, got := article(strings.Join(k.Want, " or ")), article(k.Got)
		return fmt.Sprintf("must be %s, not %s%s", want, got, retyped(k.Want, k.Got))
	case *kind.Enum:
		return "must be one of " + words(k.Want)
	case *kind.Const:
		if text, is := k.Want.(string); is {
			return fmt.Sprintf("must be %q", text)
		}
		return fmt.Sprintf("must be %v", k.Want)
	case *kind.Pattern:
		if durations.MatchString(k.Want) {
			return "must be a duration such as 90s, 20m or 1h30m"
		}
		return "must " + inWords(k.Want)
	case *kind.MinLength:
		return fmt.Sprintf("must have at least %d characters", k.Want)
	case *kind.MaxLength:
		return fmt.Sprintf("must have at most %d characters, not %d", k.Want, k.Got)
	case *kind.MinItems:
		return fmt.Sprintf("must have at least %d items", k.Want)
	case *kind.MaxItems:
		return fmt.Sprintf("must have at most %d items, not %d", k.Want, k.Got)
	case *kind.Minimum:
		return "must be at least " + k.Want.RatString()
	case *kind.Maximum:
		return "must be at most " + k.Want.RatString()
	case *kind.Format:
		return "must be " + cmp.Or(formats[k.Want], article(k.Want))
	}
	if len(e.Causes) > 0 {
		return ""
	}
	return e.ErrorKind.LocalizedString(message.NewPrinter(language.English))
}

// constOf is the only value that was allowed, where an error is about that.
func constOf(e *jsonschema.ValidationError) (only any, is bool) {
	k, is := e.ErrorKind.(*kind.Const)
	if is {
		only = k.Want
	}
	return only, is
}

// alsoAllowed puts a value that is allowed beside a type into what is said of that type.
func alsoAllowed(at string, value any, found map[Problem]bool) {
	for p := range found {
		before, got, is := strings.Cut(p.Message, ", not ")
		if p.Field == at && is && strings.HasPrefix(p.Message, "must be a") {
			delete(found, p)
			got = strings.Replace(got, "a boolean", "true", 1)
			found[Problem{at, fmt.Sprintf("%s or %v, not %s", before, value, got)}] = true
		}
	}
}

// retyped is how to write a value as the type that is wanted.
func retyped(want []string, got string) string {
	if len(want) != 1 {
		return ""
	}
	switch want := want[0]; {
	case want == "array":
		return ": put [ ] around it"
	case want == "boolean" && got == "string":
		return ": write true or false, without quotes"
	case (want == "integer" || want == "number") && got == "string":
		return ": write it without quotes"
	}
	return ""
}

// knownBy are the names of an object's fields, where the schema at url says them.
func knownBy(url string) []string {
	urn, at, _ := strings.Cut(url, "#")
	var node any
	for _, name := range []string{Requested, CancelRequested, Run} {
		if b, err := Source(name); err == nil && URN(name) == urn {
			_ = json.Unmarshal(b, &node) // it is embedded, and compiled
		}
	}
	for token := range strings.SplitSeq(strings.TrimPrefix(at, "/"), "/") {
		switch of := node.(type) {
		case map[string]any:
			if token != "" {
				node = of[token]
			}
		case []any:
			if i, err := strconv.Atoi(token); err == nil && i >= 0 && i < len(of) {
				node = of[i]
			}
		}
	}
	object, _ := node.(map[string]any)
	properties, _ := object["properties"].(map[string]any)
	return slices.Sorted(maps.Keys(properties))
}

// otherName says which field was meant, or which there are.
func otherName(unknown string, known []string) string {
	if near := custspec.Nearest(unknown, known); near != "" {
		return ": is it " + near + "?"
	}
	if len(known) == 0 {
		return ""
	}
	return ": known here are " + strings.Join(known, ", ")
}

// inWords says what a pattern wants: nobody reads a regular expression.
func inWords(pattern string) string {
	switch pattern {
	case "^[A-Za-z0-9][A-Za-z0-9_-]{0,79}$":
		return "be a managed object ID, such as vm-42"
	case "^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$":
		return "consist of letters, digits, '-', '.' and '_', with a letter or digit first and last"
	}
	return "match " + pattern
}

// formats are what the formats of strings are called.
var formats = map[string]string{"date-time": "an RFC 3339 time, such as 2026-01-02T15:04:05Z"}

var (
	durations = regexp.MustCompile(`\|ms\|`)   // the pattern of a duration, of all patterns here
	plainName = regexp.MustCompile(`^[\w-]+$`) // a field that needs no quotes in a path
)

// path writes a location as people do: processes[1].name. The document tells an array's index from a field that is
// named by a number.
func path(location []string, doc any) string {
	at := ""
	for _, token := range location {
		switch node := doc.(type) {
		case []any:
			at += "[" + token + "]"
			if i, err := strconv.Atoi(token); err == nil && i >= 0 && i < len(node) {
				doc = node[i]
			}
		case map[string]any:
			at = join(at, token)
			doc = node[token]
		default:
			at = join(at, token)
		}
	}
	return at
}

func join(at, field string) string {
	if len(field) > 100 {
		field = strings.ToValidUTF8(field[:100], "") + "…"
	}
	if !plainName.MatchString(field) {
		field = strconv.Quote(field)
	}
	if at == "" {
		return field
	}
	return at + "." + field
}

func article(typ string) string {
	switch {
	case typ == "null":
		return typ
	case strings.ContainsRune("aeio", rune(typ[0])):
		return "an " + typ
	}
	return "a " + typ
}

func words(values []any) string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = fmt.Sprint(v)
	}
	return strings.Join(all, ", ")
}
