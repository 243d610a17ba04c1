package events

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/guestflow/guestflow/internal/custspec"
)

// literal is a secret that stands in a request, where only its name may stand.
type literal struct {
	at   string // path
	what string // in words, without its value
}

// literals collects them. allowed are the paths that the request itself says are none.
type literals struct {
	found   []literal
	allowed map[string]bool
}

// maxLiterals bounds how many are told at once.
const maxLiterals = 16

func (l *literals) add(at, what string) {
	known := slices.ContainsFunc(l.found, func(f literal) bool { return f.at == at })
	if what == "" || known || l.allowed[at] || len(l.found) == maxLiterals {
		return
	}
	l.found = append(l.found, literal{at, what})
}

// literalSecrets finds what is a literal secret in a request: passwords wherever they stand, and what usually is one,
// where that is usual.
func literalSecrets(tree map[string]any) []literal {
	l := literals{allowed: allowedLiterals(tree)}
	l.passwords(tree, "", false)
	if customize, _ := tree["customize"].(map[string]any); customize != nil {
		l.passwords(customize, "customize", true)
		l.spec(customize["spec"], "customize.spec", "")
		l.options(customize["configParams"], "customize.configParams")
	}
	list, _ := tree["processes"].([]any)
	for i, item := range list {
		process, _ := item.(map[string]any)
		l.process(process, fmt.Sprintf("processes[%d]", i))
	}
	return l.found
}

// allowedLiterals are the paths that customize.allowLiteral and processes[].allowLiteral name.
func allowedLiterals(tree map[string]any) map[string]bool {
	allowed := map[string]bool{}
	add := func(section any, at string) {
		m, _ := section.(map[string]any)
		paths, _ := m["allowLiteral"].([]any)
		for _, p := range paths {
			if path, is := p.(string); is {
				allowed[at+"."+path] = true
			}
		}
	}
	add(tree["customize"], "customize")
	list, _ := tree["processes"].([]any)
	for i, item := range list {
		add(item, fmt.Sprintf("processes[%d]", i))
	}
	return allowed
}

// refuseLiterals tells of all at once, and how to name a secret.
func refuseLiterals(found []literal) *RejectError {
	say := func(l literal) string {
		_, below, _ := strings.Cut(l.at, ".")
		section, _, _ := strings.Cut(l.at, ".")
		text := "holds a literal password"
		if l.what != aPassword {
			text = "holds what looks like a literal secret, " + l.what
		}
		if section == "customize" || strings.HasPrefix(section, "processes[") {
			text += fmt.Sprintf(" (where it is none, list %q in %s.allowLiteral)", below, section)
		}
		return text
	}
	text := say(found[0])
	for _, l := range found[1:] {
		text += "; " + l.at + ": " + say(l)
	}
	how := `{"secretRef": "<name>", "key": "<key>"}`
	if strings.HasSuffix(found[0].at, ".run.arguments") {
		how = "as the value of a variable in environment, " + how
	}
	return &RejectError{Code: InvalidRequest, Field: found[0].at, Withhold: true,
		Message: text + "; secrets never travel: name one that guestflow holds, " + how + "" + NotKept}
}

// NotKept ends the refusal of a message whose data may hold a secret: its dead letter is without them.
const NotKept = ". The data of this message is not kept"

const aPassword = "a password"

// passwords finds literal passwords in v. In a CustomizationPassword (VI JSON: value is the password, plainText how it
// is written; one without its _typeName is one all the same), and where named is set in whatever is called a password,
// only the name of a secret may stand.
func (l *literals) passwords(v any, at string, named bool) {
	switch v := v.(type) {
	case map[string]any:
		is := v["_typeName"] == "CustomizationPassword"
		for name := range v {
			is = is || strings.EqualFold(name, "plainText")
		}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			inner, child := below(at, "."+name), v[name]
			if is && strings.EqualFold(name, "value") && child != nil && !isSecretRef(child) ||
				named && namesPassword(name) && isLiteral(child) {
				l.add(inner, aPassword)
				continue
			}
			l.passwords(child, inner, named)
		}
	case []any:
		for i, child := range v {
			l.passwords(child, below(at, fmt.Sprintf("[%d]", i)), named)
		}
	}
}

// below is a path one step further down; one that nobody can read any more stays as it is, for JSON may be nested ten
// thousand levels deep.
func below(at, step string) string {
	if len(at) > 8*maxPath {
		return at
	}
	return strings.TrimPrefix(at+step, ".")
}

// spec finds secrets in the texts of a CustomizationSpec: the member's name says how a text is to be read.
func (l *literals) spec(v any, at, member string) {
	switch v := v.(type) {
	case map[string]any:
		if v["key"] != nil && v["value"] != nil {
			l.option(v, at)
			return
		}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			inMember := name
			if v["_typeName"] == "CustomizationSysprepText" {
				inMember = "answerFile"
			}
			l.spec(v[name], below(at, "."+name), inMember)
		}
	case []any:
		for i, child := range v {
			l.spec(child, below(at, fmt.Sprintf("[%d]", i)), member)
		}
	case string:
		switch strings.ToLower(member) {
		case "userdata", "metadata", "scripttext":
			l.add(at, custspec.InUserData(v))
		case "answerfile":
			l.add(at, custspec.InAnswerFile(v))
		case "commandlist":
			l.add(at, custspec.InCommand(v))
		default:
			l.add(at, custspec.InValue(v))
		}
	}
}

// options finds secrets among OptionValues.
func (l *literals) options(v any, at string) {
	list, _ := v.([]any)
	for i, item := range list {
		if m, is := item.(map[string]any); is {
			l.option(m, fmt.Sprintf("%s[%d]", at, i))
		}
	}
}

// option looks at one OptionValue: its key says what its value is.
func (l *literals) option(m map[string]any, at string) {
	key, _ := m["key"].(string)
	value, at := m["value"], at+".value"
	if typed, is := value.(map[string]any); is && !isSecretRef(typed) {
		value, at = typed["_value"], at+"._value"
	}
	text, is := value.(string)
	switch lower := strings.ToLower(key); {
	case !is && custspec.NamesSecret(key) && isLiteral(value):
		l.add(at, "the value of "+Cut(key, 80))
	case !is:
	case custspec.NamesSecret(key) && custspec.SecretValue(text):
		l.add(at, "the value of "+Cut(key, 80))
	case strings.HasSuffix(lower, "userdata"), strings.HasSuffix(lower, "metadata"):
		l.add(at, custspec.InUserData(text))
	default:
		l.add(at, custspec.InValue(text))
	}
}

// process finds secrets in what a process is started with.
func (l *literals) process(process map[string]any, at string) {
	run, _ := process["run"].(map[string]any)
	if arguments, is := run["arguments"].(string); is {
		l.add(at+".run.arguments", custspec.InCommand(arguments))
	}
	environment, _ := run["environment"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(environment)) {
		value, is := environment[name].(string)
		switch {
		case !is:
		case custspec.NamesSecret(name) && custspec.SecretValue(value):
			l.add(at+".run.environment."+name, "the value of "+Cut(name, 80))
		default:
			l.add(at+".run.environment."+name, custspec.InValue(value))
		}
	}
}

// namesPassword reports whether a member of this name holds a password.
func namesPassword(name string) bool { return strings.HasSuffix(strings.ToLower(name), "password") }

// isLiteral reports whether v is a value, and not an object that says more.
func isLiteral(v any) bool {
	switch v := v.(type) {
	case nil, bool, map[string]any:
		return false
	case string:
		return v != ""
	case []any:
		return slices.ContainsFunc(v, isLiteral)
	}
	return true
}

// mayHoldSecret reports whether a message that is refused, whatever for, is to be kept without its data. Where the data
// cannot be read, the words alone decide.
func mayHoldSecret(data []byte) bool {
	data = custspec.WithoutBOM(data)
	if other := custspec.FromUTF16(data); other != nil {
		data = other
	}
	tree, err := strictJSON(data)
	if err != nil {
		lower := bytes.ReplaceAll(bytes.ToLower(data), []byte("secretref"), nil)
		for _, word := range []string{"password", "passwd", "passphrase", "pwd", "token", "secret", "private key",
			"apikey", "api_key"} {
			if bytes.Contains(lower, []byte(word)) {
				return true
			}
		}
		return false
	}
	var l literals
	l.passwords(tree, "", true)
	if len(l.found) > 0 || holdsSecret(tree) {
		return true
	}
	// the message, and the request in it
	for m, _ := tree.(map[string]any); m != nil; m, _ = m["data"].(map[string]any) {
		if len(literalSecrets(m)) > 0 {
			return true
		}
	}
	return false
}

// holdsSecret reports whether v has a literal where a secret belongs under another name than a password's: what
// somebody wrote who did not know that secrets are named.
func holdsSecret(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		for name, child := range v {
			lower := strings.ToLower(name)
			for _, word := range []string{"token", "secret", "credentials", "passwd", "passphrase"} {
				if strings.HasSuffix(lower, word) && isLiteral(child) {
					return true
				}
			}
			if holdsSecret(child) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(v, holdsSecret)
	}
	return false
}
