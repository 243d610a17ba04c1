package events

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/guestflow/guestflow/internal/custspec"
	"github.com/guestflow/guestflow/schemas"
)

// maxReason bounds what a rejection says.
const (
	maxReason = 2 << 10 // bytes of why a message is refused
	maxPath   = 512     // bytes of the path within it
)

// DecodeRequest reads a message from guestflow.requests.<vcenter>.<vm> and checks it against schemas/requested.v1.json
// and everything else that the message alone can tell. Seq and Delivered are the caller's to set. An error is a
// *RejectError; the request then holds what could be read, so that its publisher can be told.
func DecodeRequest(vcenter, subject string, h map[string][]string, data []byte) (*Request, error) {
	r := &Request{VCenter: vcenter}
	env, err := decodeText(h, data)
	r.VM, r.Ref, r.Attrs = identify(subject, env)
	if err != nil {
		err = &RejectError{Code: InvalidRequest, Message: err.Error()}
	} else {
		err = r.read(env)
	}
	if err == nil {
		r.RunID = RunID(vcenter, r.VM, r.Ref)
		return r, nil
	}
	reject := asReject(err)
	reject.Withhold = reject.Withhold || mayHoldSecret(data) || mayHoldSecret(env.data)
	return r, reject
}

// decodeText is decodeEnvelope for a message as programs write it: the byte order mark that many on Windows begin a
// text with is passed over.
func decodeText(h map[string][]string, data []byte) (*envelope, error) {
	env, err := decodeEnvelope(h, custspec.WithoutBOM(data))
	env.data = custspec.WithoutBOM(env.data)
	if other := custspec.UTF16(data); other != "" {
		err = fmt.Errorf("the message is %s, not UTF-8: encode it as UTF-8 (PowerShell: -Encoding utf8NoBOM)", other)
	}
	return env, err
}

// identify reads who a message is about and from, as far as that can be read.
func identify(subject string, env *envelope) (vm string, ref RequestRef, attrs Attributes) {
	source, id := env.attrs["source"], env.attrs["id"]
	if source != "" && id != "" && len(source)+len(id) <= 2*maxAttribute {
		ref = env.ref()
	}
	if token := lastToken(subject); ValidVM(token) {
		vm = token
	}
	return vm, ref, requestAttributes(env)
}

// addressed checks that a message is of the kind that belongs on its subject, and about the VM that its subject names.
func addressed(env *envelope, k Kind, vm string) error {
	if vm == "" {
		return invalid("", "the last token of the subject is not a managed object ID: publish on the subject that "+
			"ends in the VM's, such as vm-42, which the vSphere Client shows in the address of "+
			"the VM's page")
	}
	if want := Type(k); env.attrs["type"] != want {
		return invalid("", "type is %.80q, not %s: what is published on this subject must be of that type",
			env.attrs["type"], want)
	}
	if s, ok := env.attrs["subject"]; ok && s != vm {
		return invalid("", "the CloudEvent's subject is %.80q, but the message's subject names %s: they must be one, "+
			"or leave the CloudEvent's out", s, vm)
	}
	return nil
}

func asReject(err error) *RejectError {
	var reject *RejectError
	if !errors.As(err, &reject) {
		reject = &RejectError{Code: Internal, Message: err.Error()}
	}
	return reject.Short()
}

// requestAttributes are those that a request hands on to its events: where it has no correlationid, its id takes that
// place.
func requestAttributes(env *envelope) Attributes {
	a := env.attributes()
	a.CausationID = env.attrs["id"]
	if a.CorrelationID == "" {
		a.CorrelationID = a.CausationID
	}
	for _, v := range []*string{&a.CorrelationID, &a.CausationID, &a.TraceParent, &a.TraceState, &a.AuthType,
		&a.AuthID} {
		if len(*v) > maxAttribute { // the message is refused for it
			*v = ""
		}
	}
	return a
}

func (r *Request) read(env *envelope) error {
	if err := addressed(env, KindRequested, r.VM); err != nil {
		return err
	}
	if v, ok := env.attrs["expirytime"]; ok {
		t, err := parseTimestamp(v)
		if err != nil {
			return invalid("", "attribute expirytime %v", err)
		}
		r.Expires = t
	}
	tree, err := dataTree(env.data)
	if err != nil {
		return err
	}
	if found := literalSecrets(tree); len(found) > 0 {
		return refuseLiterals(found)
	}
	dropNulls(tree, "customize.spec", "customize.configParams")
	if r.Warnings, err = checkRequest(tree); err != nil {
		return err
	}
	plainTimes(tree)
	canonical, err := marshal(tree)
	if err != nil {
		return invalid("", "%v", err)
	}
	if err := json.Unmarshal(canonical, &r.Spec); err != nil {
		return invalid("", "%v", err)
	}
	if r.Spec.VM != r.VM {
		return invalid("vm", "is %s, but the message's subject names %s: they must be one", r.Spec.VM, r.VM)
	}
	if c := r.Spec.Customize; c != nil { // word for word, where the canonical form sorts
		var asWritten struct {
			Customize struct{ Spec, ConfigParams json.RawMessage }
		}
		if err := json.Unmarshal(env.data, &asWritten); err != nil {
			return invalid("customize.spec", "%v", err)
		}
		c.Spec, c.ConfigParams = asWritten.Customize.Spec, asWritten.Customize.ConfigParams
	}
	sum := sha256.Sum256(canonical)
	r.Digest = hex.EncodeToString(sum[:])
	r.Data = env.data
	return nil
}

func invalid(field, format string, args ...any) *RejectError {
	return &RejectError{Code: InvalidRequest, Field: field, Message: fmt.Sprintf(format, args...)}
}

// dataTree reads an event's data: a JSON object.
func dataTree(data []byte) (map[string]any, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, invalid("", "the event has no data: the request goes there, such as {\"vm\": \"vm-42\"}")
	}
	if !utf8.Valid(data) { // of data_base64: run.accepted could not be read
		return nil, invalid("", "data is not UTF-8: encode it so")
	}
	v, err := strictJSON(data)
	if twice := new(twiceError); errors.As(err, &twice) {
		return nil, invalid(twice.at, "is there twice: leave one of them out")
	}
	if err != nil {
		return nil, invalid("", "data: %v", err)
	}
	tree, ok := v.(map[string]any)
	if !ok {
		if _, text := v.(string); text {
			return nil, invalid("", "data is not a JSON object, but a text: send the object "+
				"itself, not its JSON as a string")
		}
		return nil, invalid("", "data is not a JSON object: the request goes there, such as {\"vm\": \"vm-42\"}")
	}
	if depth(v) > maxDepth {
		return nil, invalid("", "data is nested deeper than %d levels: no request is", maxDepth)
	}
	return tree, nil
}

// dropNulls takes out every member that is null, outside the paths opaque: null is read as absent. Items of arrays
// stay.
func dropNulls(tree map[string]any, opaque ...string) {
	var walk func(v any, at string)
	walk = func(v any, at string) {
		switch v := v.(type) {
		case map[string]any:
			for name, child := range v {
				switch inner := strings.TrimPrefix(at+"."+name, "."); {
				case child == nil:
					delete(v, name)
				case !slices.Contains(opaque, inner):
					walk(child, inner)
				}
			}
		case []any:
			for _, child := range v {
				walk(child, at+"[]")
			}
		}
	}
	walk(tree, "")
}

// isSecretRef reports whether v is the name of a secret, and nothing else.
func isSecretRef(v any) bool {
	m, ok := v.(map[string]any)
	_, ref := m["secretRef"].(string)
	_, key := m["key"].(string)
	return ok && ref && key && len(m) == 2
}

// secretName is what the names and keys of secrets may be.
var secretName = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$`)

// badSecretRef returns where v names a secret in a way that cannot be followed.
func badSecretRef(v any, at string) string {
	switch v := v.(type) {
	case map[string]any:
		if ref, there := v["secretRef"]; there {
			name, _ := ref.(string)
			key, _ := v["key"].(string)
			if !isSecretRef(v) || !secretName.MatchString(name) || !secretName.MatchString(key) {
				return at
			}
		}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			if found := badSecretRef(v[name], at+"."+name); found != "" {
				return found
			}
		}
	case []any:
		for i, child := range v {
			if found := badSecretRef(child, fmt.Sprintf("%s[%d]", at, i)); found != "" {
				return found
			}
		}
	}
	return ""
}

// Cut shortens s to at most n bytes, at the end of a character.
func Cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-len("…")], "") + "…"
}

// DecodeCancel reads a message from guestflow.cancels.<vcenter>.<vm> and checks it against
// schemas/cancel.requested.v1.json. Seq and Delivered are the caller's to set. An error is a *RejectError; what could
// be read comes with it.
func DecodeCancel(vcenter, subject string, h map[string][]string, data []byte) (*Cancel, error) {
	c := &Cancel{VCenter: vcenter}
	env, err := decodeText(h, data)
	c.VM, c.Ref, c.Attrs = identify(subject, env)
	if err != nil {
		return c, &RejectError{Code: InvalidRequest, Message: err.Error()}
	}
	if err := c.read(env); err != nil {
		return c, asReject(err)
	}
	c.RunID = RunID(vcenter, c.VM, c.Request)
	return c, nil
}

func (c *Cancel) read(env *envelope) error {
	if err := addressed(env, KindCancelRequested, c.VM); err != nil {
		return err
	}
	tree, err := dataTree(env.data)
	if err != nil {
		return err
	}
	dropNulls(tree)
	if err := rejectProblems(schemas.Check(schemas.CancelRequested, tree)); err != nil {
		return err
	}
	canonical, err := marshal(tree)
	if err != nil {
		return invalid("", "%v", err)
	}
	var asked struct {
		VM      string     `json:"vm"`
		Request RequestRef `json:"request"`
		Reason  string     `json:"reason"`
	}
	if err := json.Unmarshal(canonical, &asked); err != nil {
		return invalid("", "%v", err)
	}
	if asked.VM != c.VM {
		return invalid("vm", "is %s, but the message's subject names %.80q: they must be one", asked.VM, c.VM)
	}
	c.Request, c.Reason = asked.Request, asked.Reason
	return nil
}
