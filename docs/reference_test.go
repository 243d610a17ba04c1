package docs_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/schemas"
)

// errors.md has every code of the contract, once, with all its cells; the schema has the same.
func TestErrorCodes(t *testing.T) {
	t.Parallel()
	var run struct {
		Properties struct {
			Error struct {
				Properties struct{ Code struct{ Enum []string } }
			}
		}
	}
	source, err := schemas.Source(schemas.Run)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(source, &run); err != nil {
		t.Fatal(err)
	}
	codes := constants(t, "Code")
	if enum := slices.Sorted(slices.Values(run.Properties.Error.Properties.Code.Enum)); !slices.Equal(enum, codes) {
		t.Errorf("the schema has the codes %s, events %s", enum, codes)
	}
	var listed []string
	for line := range strings.Lines(read(t, "use/errors.md")) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		code := strings.Trim(cells[0], " `")
		listed = append(listed, code)
		if len(cells) != 5 || slices.ContainsFunc(cells, func(c string) bool { return strings.TrimSpace(c) == "" }) {
			t.Errorf("%s: want code, from, again, cause, cure", code)
		} else if !slices.Contains([]string{"yes", "no", "depends"}, cells[2]) {
			t.Errorf("%s: again is %q", code, cells[2])
		}
	}
	if slices.Sort(listed); !slices.Equal(listed, codes) {
		t.Errorf("errors.md has %s, the contract %s", listed, codes)
	}
}

// asyncAPI is what a test reads of the file.
type asyncAPI struct {
	AsyncAPI string
	Channels map[string]struct {
		Address    string
		Parameters map[string]reference
		Messages   map[string]reference
	}
	Operations map[string]struct {
		Action  string
		Channel reference
	}
	Components struct {
		Parameters map[string]struct{ Enum []string }
		Messages   map[string]struct {
			Name    string
			Payload struct {
				AllOf []struct {
					Properties struct {
						Type struct{ Const string }
						Data reference
					}
				} `yaml:"allOf"`
			}
		}
	}
}

type reference struct {
	Ref string `yaml:"$ref"`
}

// asyncapi.yaml has the subjects, kinds and schemas of the code, and no others, and every reference leads somewhere.
func TestAsyncAPI(t *testing.T) {
	t.Parallel()
	var doc asyncAPI
	var tree any
	page := []byte(read(t, "use/asyncapi.yaml"))
	if err := yaml.Unmarshal(page, &doc); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(page, &tree); err != nil {
		t.Fatal(err)
	}
	references(t, tree, tree)
	address := map[string]string{"requests": events.RequestSubject("{vcenter}", "{vm}"),
		"cancels": events.CancelSubject("{vcenter}", "{vm}"),
		"events":  events.EventSubject("{vcenter}", "{vm}", "{step}.{verb}"), "rejections": events.RejectionSubject(
			"{vcenter}", "{vm}"),
		"deadletters": events.DeadletterSubject("{vcenter}", "{vm}")}
	action := map[string]string{"requests": "receive", "cancels": "receive", "events": "send", "rejections": "send",
		"deadletters": "send"}
	channelOf := map[string]string{}
	for name, c := range doc.Channels {
		if c.Address != address[name] {
			t.Errorf("channel %s is %s, the code has %s", name, c.Address, address[name])
		}
		for _, m := range c.Messages {
			channelOf[last(m.Ref)] = name
		}
		for _, parameter := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(c.Address, -1) {
			if last(c.Parameters[parameter[1]].Ref) != parameter[1] {
				t.Errorf("channel %s says nothing of {%s}", name, parameter[1])
			}
		}
	}
	for name, o := range doc.Operations {
		if want := action[last(o.Channel.Ref)]; o.Action != want {
			t.Errorf("operation %s on %s is %s, not %s", name, o.Channel.Ref, o.Action, want)
		}
		delete(action, last(o.Channel.Ref))
	}
	if len(doc.Channels) != len(address) || len(action) > 0 {
		t.Errorf("%d channels, want %d; without an operation: %v", len(doc.Channels), len(address), action)
	}
	steps, verbs := map[string]bool{}, map[string]bool{}
	var kinds []string
	for name, m := range doc.Components.Messages {
		kind := strings.TrimSuffix(strings.TrimPrefix(m.Name, prefix), ".v1")
		schema, channel := schemas.Run, "events"
		switch kind {
		case "requested":
			schema, channel = schemas.Requested, "requests"
		case "cancel.requested":
			schema, channel = schemas.CancelRequested, "cancels"
		case "rejected":
			channel = "rejections"
		case "deadletter":
			if channelOf[name] != "deadletters" {
				t.Errorf("message %s is on channel %q", name, channelOf[name])
			}
			continue
		default:
			step, verb, _ := strings.Cut(kind, ".")
			steps[step], verbs[verb] = true, true
		}
		kinds = append(kinds, kind)
		if m.Name != events.Type(events.Kind(kind)) || channelOf[name] != channel || len(m.Payload.AllOf) != 2 {
			t.Errorf("message %s is %s on channel %q", name, m.Name, channelOf[name])
			continue
		}
		if p := m.Payload.AllOf[1].Properties; p.Type.Const != m.Name || p.Data.Ref != "../../schemas/"+schema+".json" {
			t.Errorf("message %s has the payload %+v", name, p)
		}
	}
	if slices.Sort(kinds); !slices.Equal(kinds, constants(t, "Kind")) {
		t.Errorf("messages for %s, the code has %s", kinds, constants(t, "Kind"))
	}
	if want := slices.Sorted(maps.Keys(steps)); !slices.Equal(doc.Components.Parameters["step"].Enum, want) {
		t.Errorf("steps %s, want %s", doc.Components.Parameters["step"].Enum, want)
	}
	if want := slices.Sorted(maps.Keys(verbs)); !slices.Equal(doc.Components.Parameters["verb"].Enum, want) {
		t.Errorf("verbs %s, want %s", doc.Components.Parameters["verb"].Enum, want)
	}
}

func last(ref string) string { return ref[strings.LastIndexByte(ref, '/')+1:] }

// references follows every $ref.
func references(t *testing.T, root, node any) {
	t.Helper()
	switch node := node.(type) {
	case []any:
		for _, n := range node {
			references(t, root, n)
		}
	case map[string]any:
		ref, ok := node["$ref"].(string)
		inside, local := strings.CutPrefix(ref, "#/")
		switch {
		case ok && local:
			at := root
			for token := range strings.SplitSeq(inside, "/") {
				at, _ = at.(map[string]any)[token]
			}
			if at == nil {
				t.Errorf("%s leads nowhere", ref)
			}
		case ok:
			if _, err := os.Stat(filepath.Join("use", filepath.FromSlash(ref))); err != nil {
				t.Error(err)
			}
		}
		for key, n := range node {
			if key != "$ref" {
				references(t, root, n)
			}
		}
	}
}

// leads says why a mention of a page, or of a heading in it, leads nowhere; "" where it leads there.
func leads(t *testing.T, page, heading string) string {
	t.Helper()
	if _, err := os.Stat(page); err != nil {
		return err.Error()
	}
	if heading != "" && !slices.Contains(anchors(read(t, page)), heading) {
		return fmt.Sprintf("%s has no heading #%s", page, heading)
	}
	return ""
}

// Every link of a page of this repository to another leads to a file that is there, and to a heading in it.
func TestLinks(t *testing.T) {
	t.Parallel()
	for _, page := range glob(t, "*.md", "*/*.md", "../*.md", "../deploy/*/*.md") {
		for _, link := range regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`).FindAllStringSubmatch(
			read(t, page), -1) {
			file := page
			if link[1] != "" {
				file = filepath.Join(filepath.Dir(page), filepath.FromSlash(link[1]))
			}
			if wrong := leads(t, file, link[2]); wrong != "" {
				t.Errorf("%s: %s", page, wrong)
			}
		}
	}
}

// The index leads to every page.
func TestIndex(t *testing.T) {
	t.Parallel()
	index := read(t, "README.md")
	for _, page := range glob(t, "*/*.md", "*/*.yaml") {
		if !strings.Contains(index, "]("+filepath.ToSlash(page)+")") {
			t.Errorf("docs/README.md does not lead to %s", page)
		}
	}
}

var linkTarget = regexp.MustCompile(`^\[[^\]]+\]: `)

// A page has one sentence or clause a line, so that a diff can be read.
func TestProseLines(t *testing.T) {
	t.Parallel()
	const longest = 160
	for _, page := range append(pages(t), "../CHANGELOG.md", "../test/e2e/README.md") {
		inBlock := false
		for i, line := range strings.Split(read(t, page), "\n") {
			text := strings.TrimSpace(line)
			if strings.HasPrefix(text, "```") {
				inBlock = !inBlock
			}
			// a row of a table, or where a link leads
			whole := strings.HasPrefix(text, "|") || linkTarget.MatchString(text)
			if !inBlock && !whole && utf8.RuneCountInString(line) > longest {
				t.Errorf("%s:%d is longer than %d characters: begin a new line with a sentence or a clause",
					page, i+1, longest)
			}
		}
	}
}

var saysPage = regexp.MustCompile(`\bdocs/([\w/-]+\.(?:md|yaml))(?:#([\w-]+))?`)

// What the rest of the repository says of a page, in an alert, a cure or a comment, leads to it, and to a heading in
// it.
func TestMentions(t *testing.T) {
	t.Parallel()
	found := 0
	kinds := []string{".go", ".md", ".yaml", ".yml", ".json", ".conf", ".mjs", ".py", ".sh", ""}
	for _, file := range files(t, func(path string) bool { return slices.Contains(kinds, filepath.Ext(path)) }) {
		text := strings.ReplaceAll(read(t, filepath.Join("..", file)), "guestflow/guestflow/blob/main/docs/", "docs/")
		for _, m := range saysPage.FindAllStringSubmatchIndex(text, -1) {
			if m[0] > 0 && text[m[0]-1] == '/' && !strings.HasSuffix(text[:m[0]], "../") {
				continue // another repository's
			}
			found++
			page, heading := text[m[2]:m[3]], ""
			if m[4] >= 0 {
				heading = text[m[4]:m[5]]
			}
			if wrong := leads(t, page, heading); wrong != "" {
				t.Errorf("%s speaks of docs/%s: %s", file, page, wrong)
			}
		}
	}
	if found < 50 {
		t.Errorf("%d mentions", found)
	}
}

// ARCHITECTURE and never-twice name files, tests, functions and types that are there.
func TestNamesOfTheCode(t *testing.T) {
	t.Parallel()
	files, code := map[string]bool{}, strings.Builder{}
	for _, file := range glob(t, "*.go", "../*/*.go", "../*/*/*.go", "../*/*/*/*.go", "../*/*/*/*/*.go") {
		files[filepath.Base(file)] = true
		code.WriteString(read(t, file))
	}
	declared := map[string]bool{}
	declares := regexp.MustCompile(`(?m)^(?:func (?:\([^)]*\) )?|type |\t)(\w+)`)
	for _, m := range declares.FindAllStringSubmatch(code.String(), -1) {
		declared[m[1]] = true
	}

	found := 0
	for _, page := range []string{"develop/ARCHITECTURE.md", "develop/never-twice.md"} {
		text := read(t, page)
		for _, name := range regexp.MustCompile(`\b\w+\.go\b`).FindAllString(text, -1) {
			if found++; !files[name] {
				t.Errorf("%s: there is no file %s", page, name)
			}
		}
		named := regexp.MustCompile("\\b(Test[A-Z]\\w*)|`\\*?(?:events|stream|handler|vcapi|step|run)\\.(\\w+)`")
		for _, m := range named.FindAllStringSubmatch(text, -1) {
			if name := m[1] + m[2]; name != "go" && !declared[name] {
				t.Errorf("%s: there is no %s", page, name)
			} else {
				found++
			}
		}
	}
	if found < 200 {
		t.Errorf("only %d names were found", found)
	}
}

// anchors are the headings of a page as links name them: in lower case, "-" for a space, other signs left out.
func anchors(page string) (all []string) {
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(page, -1) {
		words := regexp.MustCompile(`[^\p{L}\p{N}\- _]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		all = append(all, strings.ReplaceAll(words, " ", "-"))
	}
	return all
}
