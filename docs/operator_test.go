package docs_test

import (
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/guestflow/guestflow/internal/app"
)

const operatorPage = "operate/operator.md"

// cells are the rows of the tables under a heading of the operator's page that begin with something in code marks.
func cells(t *testing.T, heading string) (rows [][]string) {
	t.Helper()
	at := ""
	for line := range strings.Lines(read(t, operatorPage)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "## ") {
			at = strings.TrimPrefix(line, "## ")
		}
		if at != heading || !strings.HasPrefix(line, "| `") {
			continue
		}
		row := strings.Split(strings.ReplaceAll(strings.Trim(line, "|"), `\|`, "\x00"), "|")
		if len(row) != 3 {
			t.Errorf("%s, %s: %d cells, want 3: %s", operatorPage, heading, len(row), line)
			continue
		}
		for i := range row {
			row[i] = strings.TrimSpace(row[i])
		}
		rows = append(rows, row)
	}
	return rows
}

// defaults are all settings with what holds where they are not set; a vCenter's with <NAME> for its name.
func defaults() map[string]string {
	all := map[string]string{"GUESTFLOW_VCENTERS": "required"}
	for _, of := range []struct {
		prefix string
		typ    reflect.Type
	}{
		{"", reflect.TypeFor[app.NATS]()},
		{"", reflect.TypeFor[app.Service]()},
		{"VCENTER_<NAME>_", reflect.TypeFor[app.VCenter]()},
	} {
		for i := range of.typ.NumField() {
			name, rest, _ := strings.Cut(of.typ.Field(i).Tag.Get("env"), ",")
			if name == "" {
				continue
			}
			all[of.prefix+name] = strings.TrimPrefix(strings.TrimSpace(rest), "default=")
		}
	}
	return all
}

// The table of settings is the settings, with their defaults.
func TestOperatorPageNamesEverySetting(t *testing.T) {
	t.Parallel()
	want, got := defaults(), map[string]string{}
	for _, row := range cells(t, "Settings") {
		name := strings.Trim(row[0], "`")
		if _, twice := got[name]; twice {
			t.Errorf("%s is there twice", name)
		}
		got[name] = strings.Trim(row[1], "` ")
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if is, ok := got[name]; !ok {
			t.Errorf("%s has no row for %s", operatorPage, name)
		} else if is != want[name] && !(want[name] == "" && strings.HasPrefix(is, "(")) { // (in words)
			t.Errorf("%s says that the default of %s is %q, it is %q", operatorPage, name, is, want[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[name]; !ok {
			t.Errorf("%s has a row for %s, which is no setting", operatorPage, name)
		}
	}
}

// Whatever else the pages say of settings, in examples too, is spelled as the service reads it.
func TestPagesSpellSettingsRight(t *testing.T) {
	t.Parallel()
	known := defaults()
	variable := regexp.MustCompile(`\b(?:NATS|GUESTFLOW|VCENTER)_(?:<NAME>_)?[A-Za-z0-9_]+`)
	streams := regexp.MustCompile(`^GUESTFLOW_(EVENTS|DEADLETTERS|REQUESTS_[a-z]*)$`)
	ofVCenter := func(name string) bool {
		for setting := range known {
			end, is := strings.CutPrefix(setting, "VCENTER_<NAME>")
			if is && strings.HasPrefix(name, "VCENTER_") && strings.HasSuffix(name, end) {
				return true
			}
		}
		return false
	}
	for _, file := range []string{operatorPage, "../README.md"} {
		for _, name := range variable.FindAllString(read(t, file), -1) {
			if _, setting := known[name]; !setting && !ofVCenter(name) && !streams.MatchString(name) {
				t.Errorf("%s speaks of %s, which is neither a setting nor a stream", file, name)
			}
		}
	}
}
