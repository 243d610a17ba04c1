package events

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/guestflow/guestflow/internal/custspec"
	"github.com/guestflow/guestflow/schemas"
)

// requestCheck holds a request's data against its schema, and against the rules that a schema cannot say.
type requestCheck struct {
	tree      map[string]any
	guest     map[string]any
	customize map[string]any
	processes []map[string]any

	problems []schemas.Problem
	warnings []Remark
}

func checkRequest(tree map[string]any) (warnings []Remark, err error) {
	c := &requestCheck{tree: tree, problems: checkVM(tree, schemas.Check(schemas.Requested, tree))}
	c.guest, _ = tree["guest"].(map[string]any)
	c.customize, _ = tree["customize"].(map[string]any)
	list, _ := tree["processes"].([]any)
	for _, item := range list {
		p, _ := item.(map[string]any)
		c.processes = append(c.processes, p)
	}

	c.credentials()
	c.durations()
	c.processNames()
	c.interactiveSession()
	c.secretRefs()
	c.problems, c.warnings = checkSpec(c.customize, c.problems)
	if vm, _ := tree["vm"].(string); objectID(vm) != "" && ValidVM(vm) {
		c.warnings = append(c.warnings, Remark{Code: custspec.DoubtfulValue, Field: "vm", Message: HintVM(vm)})
	}

	c.problems = exactlyOne(c.problems, "customize", "spec", "specName")
	for i := range c.processes {
		c.problems = exactlyOne(c.problems, processAt(i), "run", "watch")
	}
	return c.warnings, rejectProblems(c.problems)
}

// processAt is the path of a process.
func processAt(i int) string { return fmt.Sprintf("processes[%d]", i) }

// add notes what is wrong with a field, if anything is. What the schema has named already is not named twice.
func (c *requestCheck) add(field, message string) {
	named := slices.ContainsFunc(c.problems, func(p schemas.Problem) bool { return p.Field == field })
	if message != "" && !named {
		c.problems = append(c.problems, schemas.Problem{Field: field, Message: message})
	}
}

// credentials says which section needs them, where they are missing.
func (c *requestCheck) credentials() {
	needs := c.needsCredentials()
	if needs == "" {
		return
	}
	c.problems = slices.DeleteFunc(c.problems, func(p schemas.Problem) bool {
		return p.Message == "is required" && (p.Field == "guest" || p.Field == "guest.credentials")
	})
	c.problems = append(c.problems,
		schemas.Problem{Field: "guest.credentials", Message: "is required for " + needs})
}

// needsCredentials names the first section that speaks to the guest where the request has no credentials for it.
func (c *requestCheck) needsCredentials() string {
	if _, has := c.guest["credentials"]; has {
		return ""
	}
	for _, section := range []string{"customize", "network", "processes"} {
		v, there := c.tree[section]
		if list, isList := v.([]any); there && !(isList && len(list) == 0) {
			return section
		}
	}
	return ""
}

func (c *requestCheck) durations() {
	for _, at := range []string{
		"timeout", "guest.readyTimeout", "customize.timeout", "network.timeout", "verify.timeout",
	} {
		v := any(c.tree)
		for name := range strings.SplitSeq(at, ".") {
			m, _ := v.(map[string]any)
			v = m[name]
		}
		c.add(at, checkDuration(v, at == "guest.readyTimeout"))
	}
	for i, p := range c.processes {
		c.add(processAt(i)+".timeout", checkDuration(p["timeout"], false))
	}
}

func (c *requestCheck) processNames() {
	first := map[string]int{}
	for i, p := range c.processes {
		name, named := p["name"].(string)
		if Clean(name) != name { // it is in the run's events, word for word
			c.add(processAt(i)+".name", "holds control characters: leave them out")
		}
		if k, twice := first[name]; named && twice {
			c.add(processAt(i)+".name",
				fmt.Sprintf("is the name of %s as well: give each process its own", processAt(k)))
		} else if named {
			first[name] = i
		}
	}
}

// interactiveSession finds credentials that have no user name, which an interactive session needs.
func (c *requestCheck) interactiveSession() {
	if c.guest["interactiveSession"] != true {
		return
	}
	all := map[string]any{"guest.credentials": c.guest["credentials"]}
	for i, p := range c.processes {
		all[processAt(i)+".credentials"] = p["credentials"]
	}
	for _, at := range slices.Sorted(maps.Keys(all)) {
		if credentials, _ := all[at].(map[string]any); credentials["type"] == "SAML_BEARER_TOKEN" {
			c.add("guest.interactiveSession", "needs user name and password, and "+at+
				".type is SAML_BEARER_TOKEN: leave one of them out")
		}
	}
}

func (c *requestCheck) secretRefs() {
	for _, section := range []string{"spec", "configParams"} {
		if at := badSecretRef(c.customize[section], "customize."+section); at != "" {
			c.add(at, `must be {"secretRef": "<name>", "key": "<key>"} and nothing more; `+
				`names are letters, digits, '-', '.' and '_'`)
		}
	}
}

// exactlyOne says in one problem what the schema says in two, or in its own words, of two members of which at has to
// have one.
func exactlyOne(problems []schemas.Problem, at, one, other string) []schemas.Problem {
	about := func(p schemas.Problem) bool {
		return p.Field == at && strings.HasPrefix(p.Message, "'oneOf' failed") ||
			p.Message == "is required" && (p.Field == at+"."+one || p.Field == at+"."+other)
	}
	rest := slices.DeleteFunc(slices.Clone(problems), about)
	if len(rest) < len(problems) {
		rest = append(rest, schemas.Problem{Field: at, Message: "needs exactly one of " + one + ", " + other})
	}
	return rest
}

// checkDuration finds what the schema's pattern lets pass: a duration that overflows, and one that leaves no time at
// all.
func checkDuration(v any, zeroAllowed bool) string {
	s, ok := v.(string)
	if !ok {
		return ""
	}
	switch d, err := ParseDuration(s); {
	case err != nil:
		return "is too long for a duration: the longest is 2562047h"
	case d.Or(1) == 0 && !zeroAllowed:
		return "must be more than 0s"
	}
	return ""
}

// rejectProblems makes one refusal of all problems: the first names the field.
func rejectProblems(problems []schemas.Problem) error {
	if len(problems) == 0 {
		return nil
	}
	slices.SortStableFunc(problems, func(a, b schemas.Problem) int { return strings.Compare(a.String(), b.String()) })
	text := problems[0].Message
	for _, p := range problems[1:] {
		text += "; " + p.String()
	}
	return &RejectError{Code: InvalidRequest, Field: problems[0].Field, Message: text}
}
