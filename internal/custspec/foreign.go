package custspec

import (
	"bytes"
	"regexp"
	"strings"
	"unicode/utf16"
)

// Foreign says what a tree is that is not a CustomizationSpec, and how to turn it into one; "" where it may be one.
func Foreign(v any) string {
	m, is := v.(map[string]any)
	if !is {
		if s, is := v.(string); is {
			return ForeignText([]byte(s))
		}
		return ""
	}

	has := func(names ...string) bool {
		for _, name := range names {
			if m[name] == nil {
				return false
			}
		}
		return true
	}

	inner, _ := m["spec"].(map[string]any)
	switch {
	case m["identity"] != nil:
		return ""
	case has("configuration_spec"), inner["configuration_spec"] != nil:
		return "is the specification of the REST API (configuration_spec), " +
			"and a VI JSON CustomizationSpec is wanted (identity, globalIPSettings, nicSettingMap): " +
			"store it in vCenter and give its name as specName, or write it anew"
	case m["linux_config"] != nil, m["windows_config"] != nil, m["cloud_config"] != nil:
		return "is a part of the specification of the REST API (configuration_spec), " +
			"and a VI JSON CustomizationSpec is wanted (identity, globalIPSettings, nicSettingMap)"
	case m[typeName] == "CustomizationSpecItem", has("info", "spec"):
		return "is a CustomizationSpecItem: give its member spec"
	case has("auth", "spec"), m[typeName] == "CustomizeGuestRequestType", m[typeName] == "CustomizeGuest_Task":
		return "is the body of CustomizeGuest_Task: give its member spec"
	case has("spec") && inner["identity"] != nil:
		return "has the CustomizationSpec in its member spec: give that"
	case m["_vimtype"] != nil:
		return "is written by pyVmomi: VI JSON names a type in _typeName (CustomizationSpec), not in _vimtype"
	}

	return ""
}

// yamlMember matches a line that begins a YAML document.
var yamlMember = regexp.MustCompile(`^(---|%YAML|-\s|["']?[A-Za-z_][-A-Za-z0-9_./ ]*["']?:(\s|$))`)

// ForeignText says what a text is that is not JSON, and what to do with it; "" where that is not known.
func ForeignText(b []byte) string {
	b = bytes.TrimSpace(b)
	switch {
	case len(b) == 0:
		return ""
	case b[0] == '<' && (bytes.Contains(b, []byte("ConfigRoot")) || bytes.Contains(b, []byte("ustomizationSpec"))):
		return "it is XML, a specification exported from vCenter: " +
			"import it into vCenter and give its name, as customize.specName or --spec-name"
	case b[0] == '<':
		return "it is XML, and JSON is wanted"
	}

	for line := range strings.Lines(string(b)) {
		if line = strings.TrimRight(line, "\r\n\t "); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if yamlMember.MatchString(line) {
			return "it is YAML, and JSON is wanted (yq -o=json FILE makes it)"
		}
		break
	}

	return ""
}

// bom is the byte order mark in UTF-8, with which many programs on Windows begin a file.
var bom = []byte("\ufeff")

// WithoutBOM is a text without the byte order mark of UTF-8.
func WithoutBOM(b []byte) []byte { return bytes.TrimPrefix(b, bom) }

// UTF16 is the encoding of a text that is not UTF-8, found by its byte order mark or by the zeros beside a first ASCII
// character; "" where it seems to be UTF-8.
func UTF16(b []byte) string {
	switch {
	case bytes.HasPrefix(b, []byte{0xff, 0xfe, 0, 0}), bytes.HasPrefix(b, []byte{0, 0, 0xfe, 0xff}):
		return "UTF-32"
	case len(b) >= 2 && (b[0] == 0xff && b[1] == 0xfe || b[0] == 0xfe && b[1] == 0xff):
		return "UTF-16"
	case len(b) >= 4 && (b[0] == 0 && b[2] == 0 && b[1] != 0 && b[3] != 0 ||
		b[1] == 0 && b[3] == 0 && b[0] != 0 && b[2] != 0):
		return "UTF-16"
	}
	return ""
}

// SaveAsUTF8 is what to do with a file in another encoding.
const SaveAsUTF8 = "save it as UTF-8 (PowerShell 7: -Encoding utf8NoBOM; Windows PowerShell: -Encoding utf8)"

// FromUTF16 is a text in UTF-8; nil where it does not have the byte order mark of UTF-16. It lets callers find secrets
// in a text that is otherwise unreadable.
func FromUTF16(b []byte) []byte {
	if UTF16(b) != "UTF-16" {
		return nil
	}

	at, little := 0, b[1] == 0
	if b[0] == 0xff || b[0] == 0xfe {
		at, little = 2, b[0] == 0xff
	}

	var units []uint16
	for ; at+1 < len(b); at += 2 {
		low, high := b[at], b[at+1]
		if !little {
			low, high = high, low
		}
		units = append(units, uint16(low)|uint16(high)<<8)
	}

	return []byte(string(utf16.Decode(units)))
}
