package custspec

import (
	"encoding/base64"
	"encoding/xml"
	"errors"
	"io"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// NamesSecret reports whether something of this name usually holds a secret: DB_PASSWORD, dbPassword, API_TOKEN,
// CLIENT_SECRET, AWS_SECRET_ACCESS_KEY; not names that only refer to one, such as PASSWORD_FILE, TOKEN_URL and PWD.
func NamesSecret(name string) bool {
	words := wordsOf(name)
	if len(words) == 0 {
		return false
	}

	last, before := words[len(words)-1], words[:len(words)-1]
	for _, ending := range []string{
		"password", "passwords", "passwd", "passphrase", "passcode",
		"token", "tokens", "secret", "secrets", "apikey", "credentials",
	} {
		if strings.HasSuffix(last, ending) {
			return true
		}
	}

	if last == "pwd" || last == "pass" || last == "pw" {
		return len(before) > 0 || last == "pass" // PWD is the working directory
	}

	if last == "key" || last == "keys" {
		for _, word := range before {
			switch word {
			case "secret", "private", "api", "access", "encryption", "signing", "master", "account":
				return true
			}
		}
	}

	return false
}

// wordsOf are the words of a name in lower case. They are separated by signs, or by a capital after a small letter.
// Digits at the end are ignored.
func wordsOf(name string) []string {
	var words []string
	var word strings.Builder
	end := func() {
		if word.Len() > 0 {
			words = append(words, word.String())
		}
		word.Reset()
	}

	small := false
	for _, c := range strings.TrimRight(name, "0123456789") {
		if !unicode.IsLetter(c) && !unicode.IsDigit(c) || small && unicode.IsUpper(c) {
			end()
		}
		small = unicode.IsLower(c)
		if unicode.IsLetter(c) || unicode.IsDigit(c) {
			word.WriteRune(unicode.ToLower(c))
		}
	}

	end()
	return words
}

// SecretValue reports whether a text may be a secret, given a name that says so: not where it is empty, a switch or a
// template.
func SecretValue(s string) bool {
	s = strings.Trim(strings.TrimSpace(s), `"'`)
	switch strings.ToLower(s) {
	case "", "true", "false", "yes", "no", "null", "~", "none", "*", "!", "!!", "*sensitive*data*deleted*":
		return false
	}
	return !strings.HasPrefix(s, "{{")
}

// isShellVariable reports whether a text is a shell variable. A password hash begins with a dollar, too.
func isShellVariable(s string) bool {
	s = strings.Trim(strings.TrimSpace(s), `"'`)
	return strings.HasPrefix(s, "$") && !hash.MatchString(s)
}

var (
	// hash is a password as /etc/shadow holds it: who has it can try passwords.
	hash = regexp.MustCompile(`^\$(1|2[abxy]?|5|6|7|y|gy|argon2id?)\$`)
	// urlPassword is a password in a URL.
	urlPassword = regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#:@"']*:([^\s/?#@"']+)@`)
	privateKey  = regexp.MustCompile(`-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY-----`)
	// option is a value that is given to a program by name: --password=x, --token x, /password:x, PASSWORD=x.
	option = regexp.MustCompile(`(?i)(?:^|[\s"';&|(])((?:--?|/)?[a-z][\w.-]*)(=|:|\s+)("[^"]*"|'[^']*'|[^\s"';&|)]+)`)
	// yamlValue is a member and its value in YAML or JSON, on one line.
	yamlValue = regexp.MustCompile(
		`["']?([A-Za-z_][\w.-]*)["']?\s*:[ \t]+("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s,}\]#][^,}\]\n]*)`,
	)
	jsonValue = regexp.MustCompile(`"([A-Za-z_][\w.-]*)"\s*:\s*("(?:[^"\\]|\\.)*")`)
	// inner is a line of YAML that has members or items of its own.
	inner    = regexp.MustCompile(`^\s*(-(\s|$)|["']?[\w.-]+["']?:(\s|$)|[{\[])`)
	iniValue = regexp.MustCompile(`(?m)^\s*([A-Za-z_][\w.-]*)\s*=[ \t]*("[^"\n]*"|[^\s;#][^\n;#]*)`)
	// chpasswd and passwd --stdin read passwords, chpasswd pairs of user:password.
	chpasswdRun = regexp.MustCompile(
		`(?m)(\|\s*(?:sudo\s+)?|^\s*(?:sudo\s+)?|[;&]\s*)(?:/usr/s?bin/|/s?bin/)?` +
			`chpasswd\b[^:\n]*(?:<<|$)|passwd\s+--stdin`,
	)
	chpasswdPair = regexp.MustCompile(`^[\s\-\["']*([a-z_][\w.-]*):([^\s"',\]]+)`)
	xmlPassword  = regexp.MustCompile(`(?i)<(?:\w+:)?\w*passwor[dt][^<>/]*>\s*(?:<(?:\w+:)?value>)?\s*([^<\s][^<]*)<`)
)

// InValue says which secret a plain text holds, wherever it is used: a private key, or a password in a URL; "" for
// none.
func InValue(s string) string {
	if privateKey.MatchString(s) {
		return "a private key"
	}

	for _, m := range urlPassword.FindAllStringSubmatch(s, -1) {
		if SecretValue(m[1]) && !isShellVariable(m[1]) && !strings.HasPrefix(m[1], "{") &&
			!strings.HasPrefix(m[1], "<") {
			return "a password in a URL"
		}
	}
	return ""
}

// InCommand says which secret a command line holds; "" for none.
func InCommand(s string) string {
	if found := InValue(s); found != "" {
		return found
	}

	for rest := s; ; {
		at := option.FindStringSubmatchIndex(rest)
		if at == nil {
			return ""
		}

		name, sign, value := rest[at[2]:at[3]], rest[at[4]:at[5]], rest[at[6]:at[7]]
		dashed := strings.HasPrefix(name, "-") || strings.HasPrefix(name, "/")
		if (dashed || sign == "=") && NamesSecret(strings.TrimLeft(name, "-/")) && isLiteral(value) {
			return "the value of " + cutName(name)
		}

		rest = rest[at[3]:]
	}
}

// isLiteral reports whether a command line's value is a value itself, and not the name of a variable, an option or a
// place that holds it.
func isLiteral(value string) bool {
	value = strings.Trim(value, `"'`)
	return SecretValue(value) && !isShellVariable(value) && !strings.ContainsAny(value[:1], "-<{`@%")
}

func cutName(name string) string {
	if len(name) > 40 {
		return strings.ToValidUTF8(name[:40], "") + "…"
	}
	return name
}

// InUserData says which secret cloud-init's user-data or metadata hold, as YAML, JSON or a script, plain or in base64;
// "" for none.
func InUserData(s string) string {
	if b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), "")); err == nil && len(b) > 0 &&
		utf8.Valid(b) {
		if found := inUserData(string(b)); found != "" {
			return found
		}
	}
	return inUserData(s)
}

func inUserData(s string) string {
	if found := InValue(s); found != "" {
		return found
	}
	if chpasswdRun.MatchString(s) {
		return "passwords for chpasswd"
	}

	r := userData{script: strings.HasPrefix(strings.TrimSpace(s), "#!")}
	for line := range strings.Lines(s) {
		code := strings.TrimRight(line, "\r\n\t ")
		if trimmed := strings.TrimSpace(code); trimmed == "" || strings.HasPrefix(trimmed, "#") {
			continue
		}
		if found := r.scanLine(code); found != "" {
			return found
		}
	}

	return ""
}

// userData is the state in which the lines of user-data are scanned.
type userData struct {
	script bool
	block  string // the member whose lines these are: chpasswd, or one whose name is a secret's
	indent int    // how far that is set in
}

// scanLine says which secret a line holds; "" for none.
func (r *userData) scanLine(code string) string {
	depth := len(code) - len(strings.TrimLeft(code, " "))
	if r.block != "" && depth <= r.indent {
		r.block = ""
	}

	name, value, member := strings.Cut(strings.TrimLeft(code, " -"), ":")
	name, value = strings.Trim(name, `"' `), strings.TrimSpace(value)
	opensBlock := member && r.block == "" &&
		(name == "chpasswd" || NamesSecret(name) && (value == "" || strings.ContainsAny(value[:1], "|>")))
	switch {
	case r.block == "chpasswd":
		if _, list, found := strings.Cut(code, "list:"); found {
			code = list
		}

		if pair := chpasswdPair.FindStringSubmatch(code); pair != nil && !isRandomMarker(pair[2]) &&
			SecretValue(pair[2]) {
			return "passwords of chpasswd"
		}
	case r.block != "" && !inner.MatchString(code): // a value on lines of its own
		return "the value of " + cutName(r.block)
	case opensBlock:
		r.block, r.indent = name, depth
		if _, list, found := strings.Cut(value, "list:"); found {
			return r.scanLine(strings.Repeat(" ", depth+1) + "list:" + list)
		}
	}

	if name := r.secretMember(code); name != "" {
		return "the value of " + cutName(name)
	}

	return InCommand(code)
}

// secretMember finds a member on the line, of YAML or JSON, whose value is a secret; "" for none.
func (r *userData) secretMember(code string) (name string) {
	for _, m := range append(yamlValue.FindAllStringSubmatch(code, -1), jsonValue.FindAllStringSubmatch(code, -1)...) {
		v := m[2]
		if !NamesSecret(m[1]) || strings.ContainsAny(v[:1], "|>{[") || !SecretValue(v) || isRandomMarker(v) {
			continue
		}
		if r.script && isShellVariable(v) {
			continue
		}
		return m[1]
	}
	return ""
}

// isRandomMarker reports whether chpasswd makes a random password of a text.
func isRandomMarker(s string) bool {
	s = strings.Trim(strings.TrimSpace(s), `"'`)
	return s == "R" || s == "RANDOM"
}

// InAnswerFile says which secret the text of a sysprep answer file holds, as XML or in the older form of an INI file;
// "" for none.
func InAnswerFile(s string) string {
	if found := InValue(s); found != "" {
		return found
	}
	if found, err := inXML(s); err == nil || found != "" {
		return found
	}
	if m := xmlPassword.FindStringSubmatch(s); m != nil && SecretValue(m[1]) {
		return "a password"
	}

	for _, m := range iniValue.FindAllStringSubmatch(s, -1) {
		if NamesSecret(m[1]) && SecretValue(m[2]) {
			return "the value of " + cutName(m[1])
		}
	}

	return ""
}

// inXML finds the first element that is called a password, or is inside one, and has a text.
func inXML(s string) (string, error) {
	d := xml.NewDecoder(strings.NewReader(s))
	d.Strict = false
	d.CharsetReader = func(_ string, in io.Reader) (io.Reader, error) { return in, nil }
	var open []string
	elements := 0

	for {
		token, err := d.Token()
		if err != nil {
			if errors.Is(err, io.EOF) && elements > 0 {
				err = nil
			}
			return "", err
		}

		switch token := token.(type) {
		case xml.StartElement:
			elements++
			open = append(open, token.Name.Local)
		case xml.EndElement:
			open = open[:max(0, len(open)-1)]
		case xml.CharData:
			if len(open) == 0 || !SecretValue(string(token)) || strings.EqualFold(open[len(open)-1], "PlainText") {
				continue
			}

			for _, name := range open[max(0, len(open)-2):] {
				if NamesSecret(name) && !strings.EqualFold(name, "Credentials") {
					return "the value of " + cutName(name), nil
				}
			}

			if strings.EqualFold(open[len(open)-1], "CommandLine") || strings.EqualFold(open[len(open)-1], "Path") {
				if found := InCommand(string(token)); found != "" {
					return found, nil
				}
			}
		}
	}
}
