package vcsim

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strconv"
)

const redacted = "***"

var xmlSecrets = regexp.MustCompile(
	`(?s)(<(?:\w+:)?(password|token|samlToken)\b[^>]*>)(.*?)(</(?:\w+:)?(?:password|token|samlToken)>)`,
)

// redact is a body without its passwords and tokens.
func redact(body []byte) string {
	body = bytes.TrimSpace(body)
	if len(body) == 0 {
		return ""
	}
	if body[0] == '<' {
		return xmlSecrets.ReplaceAllString(string(body), "${1}"+redacted+"${4}")
	}
	if !json.Valid(body) {
		return "(" + strconv.Itoa(len(body)) + " bytes that are not JSON)" // where the secrets are cannot be told
	}

	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var val any
	if err := dec.Decode(&val); err != nil || !redactValue(val) {
		return string(body)
	}

	out, err := json.Marshal(val)
	if err != nil {
		panic(err) // it was JSON
	}

	return string(out)
}

// redactValue hides secrets in a JSON value, and reports whether there were any.
func redactValue(val any) bool {
	found := false
	switch x := val.(type) {
	case map[string]any:
		isPassword := x["_typeName"] == "CustomizationPassword"
		for key, member := range x {
			_, isText := member.(string)
			if isText && (key == "password" || key == "saml_token" || key == "token" || isPassword && key == "value") {
				x[key] = redacted
				found = true
				continue
			}
			found = redactValue(member) || found
		}
	case []any:
		for _, member := range x {
			found = redactValue(member) || found
		}
	}

	return found
}

var tokenInPath = regexp.MustCompile(`([?&]token=)[^&]*`)

// redactPath is a path without the token of a transfer.
func redactPath(uri string) string { return tokenInPath.ReplaceAllString(uri, "${1}"+redacted) }
