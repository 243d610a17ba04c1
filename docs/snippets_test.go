package docs_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/sandbox"
)

// block is a fenced block of a page. What its first line says behind the language is for these tests:
//
//	```sh run                   runs with sh -e, in the page's own folder, against the page's own sandbox; exit=N: that is its exit code
//	```sh run needs=node        only where that program has what the example needs
//	```text output              what the block before it printed: go test ./docs -run TestSnippets -update writes it
//	```json file=request.json   a file in that folder
//	```go from=FILE             cut out of that file
type block struct {
	lang, text string
	run        bool
	output     bool
	args       map[string]string
	line       int
	from, to   int // of text in the page
}

var fence = regexp.MustCompile("(?sm)^```([^\n]+)\n(.*?)^```$")

func blocks(page string) (all []block) {
	for _, at := range fence.FindAllStringSubmatchIndex(page, -1) {
		words := strings.Fields(page[at[2]:at[3]])
		b := block{lang: words[0], text: page[at[4]:at[5]], from: at[4], to: at[5], line: 1 + strings.Count(page[:at[0]], "\n"), args: map[string]string{}}
		for _, w := range words[1:] {
			key, value, _ := strings.Cut(w, "=")
			b.args[key] = value
		}
		_, b.run = b.args["run"]
		_, b.output = b.args["output"]
		all = append(all, b)
	}
	return all
}

// programs builds the commands that pages use, into a folder for the PATH.
func programs(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	for _, args := range [][]string{ // with the flags of the other tests that build them: what they compiled is used
		{"build", "-race", "-o", bin, "../cmd/guestflow"},
		{"build", "-C", "../tools/nats", "-o", filepath.Join(bin, "nats"), "github.com/nats-io/natscli/nats"},
	} {
		cmd := exec.CommandContext(patient(t), "go", args...)
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, said)
		}
	}
	return bin
}

// needs tells whether a program and the packages of its example are here.
func needs(t *testing.T, program, folder string) bool {
	t.Helper()
	try := map[string][]string{
		"python3": {"-c", "import nats, cloudevents.core"},
		"node":    {"--input-type=module", "-e", "import '@nats-io/transport-node'; import '@nats-io/jetstream'; import 'cloudevents'"},
	}[program]
	if try == nil {
		t.Fatalf("needs=%s is not known", program)
	}
	cmd := exec.CommandContext(patient(t), program, try...)
	cmd.Dir = filepath.Join(folder, "examples", "js")
	return cmd.Run() == nil
}

// Every snippet that a page marks is run, and prints what the page says.
func TestSnippets(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	bin, ran := "", 0
	for _, page := range append(pages, "../README.md") {
		all := blocks(read(t, page))
		if !slices.ContainsFunc(all, func(b block) bool { return b.run }) {
			continue
		}
		if bin == "" {
			bin = programs(t)
		}
		ran++
		t.Run(filepath.Base(page), func(t *testing.T) {
			t.Parallel()
			play(t, page, all, bin)
		})
	}
	if ran == 0 {
		t.Error("no page has a snippet to run")
	}
}

// play runs a page's snippets one after the other.
func play(t *testing.T, page string, all []block, bin string) {
	t.Helper()
	box, dir := start(t, sandbox.Options{}), t.TempDir()
	for _, f := range []string{"go.mod", "go.sum"} { // the examples, and nothing else of this module: they need nothing else
		if err := os.WriteFile(filepath.Join(dir, f), []byte(read(t, filepath.Join("..", f))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(dir, "examples"), os.DirFS(filepath.Join("..", "examples"))); err != nil {
		t.Fatal(err)
	}
	env := append(append(os.Environ(), box.Env()...), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "GOFLAGS=-mod=mod",
		"PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	for _, key := range []string{"GOPATH", "GOCACHE", "GOMODCACHE"} { // they follow HOME
		value, err := exec.CommandContext(patient(t), "go", "env", key).Output()
		if err != nil {
			t.Fatal(err)
		}
		env = append(env, key+"="+strings.TrimSpace(string(value)))
	}
	text := read(t, page)
	fresh := text
	for i, b := range all {
		if name := b.args["file"]; name != "" {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(here(b.text, box)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if program := b.args["needs"]; !b.run || program != "" && !needs(t, program, dir) {
			continue
		}
		cmd := exec.CommandContext(patient(t), "sh", "-ec", here(b.text, box))
		cmd.Dir, cmd.Env = dir, env
		said, err := cmd.CombinedOutput()
		want := "0"
		if b.args["exit"] != "" {
			want = b.args["exit"]
		}
		if code := fmt.Sprint(cmd.ProcessState.ExitCode()); code != want {
			t.Fatalf("%s:%d: exit code %s, want %s (%v)\n%s\n%s", page, b.line, code, want, err, b.text, said)
		}
		if i+1 == len(all) || !all[i+1].output {
			continue
		}
		got, shown := strings.ReplaceAll(string(said), dir, "~"), all[i+1].text
		if settled(got) == settled(shown) {
			continue
		}
		if *update {
			fresh = strings.Replace(fresh, text[b.from:all[i+1].to], text[b.from:all[i+1].from]+got, 1)
			continue
		}
		t.Errorf("%s:%d prints something else than the page says (go test ./docs -run TestSnippets -update writes it): -page +run\n%s", page, b.line,
			cmp.Diff(settled(shown), settled(got)))
	}
	if *update && fresh != text {
		if err := os.WriteFile(page, []byte(fresh), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// named are the sandbox's VMs as the pages call them, in its order. Their IDs may differ by one from start to start.
var named = strings.Fields("vm-30 vm-32 vm-34 vm-36 vm-38 vm-40 vm-42 vm-44 vm-46 vm-48 vm-50 vm-52 vm-54 vm-56 vm-58 vm-60 vm-61")

var saysVM = regexp.MustCompile(`\bvm-\d+\b`)

// here is a snippet with the IDs that this sandbox's VMs have.
func here(text string, box *sandbox.Sandbox) string {
	return saysVM.ReplaceAllStringFunc(text, func(vm string) string {
		if i := slices.Index(named, vm); i >= 0 {
			return box.VMs()[i].ID
		}
		return vm
	})
}

// unsettled is what a command prints otherwise each time, and what stands for it.
var unsettled = []struct {
	what   *regexp.Regexp
	stable string
}{
	{regexp.MustCompile(`(?m)^.* customize\.progressed .*\n`), ``}, // as many as there was time for
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+Z?`), `TIME`},
	{regexp.MustCompile(`\d\d:\d\d:\d\d(\.\d+)?`), `TIME`},
	{regexp.MustCompile(`TIME +\d+ +`), `TIME N `},
	{regexp.MustCompile(`task-\d+`), `TASK`},
	{regexp.MustCompile(`\b\d+(\.\d+)?(ms|s)\b`), `DURATION`},
	{saysVM, `VM`},
	{regexp.MustCompile(`\b[a-z2-7]{26}\b`), `RUN`}, // it is made of the VM's ID too
	{regexp.MustCompile(`(RUN|rejected)\.\d+`), `$1.N`},
	{regexp.MustCompile(`([Ss]equence"?): ?\d+`), `$1 N`},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), `ADDRESS`},
}

func settled(text string) string {
	for _, u := range unsettled {
		text = u.what.ReplaceAllString(text, u.stable)
	}
	return text
}

// What the page cuts out of an example is there, word for word.
func TestExcerpts(t *testing.T) {
	t.Parallel()
	languages := map[string]int{}
	for _, b := range blocks(read(t, "integrator.md")) {
		if from := b.args["from"]; from != "" {
			languages[b.lang]++
			if !strings.Contains(read(t, filepath.Join("..", from)), b.text) {
				t.Errorf("integrator.md:%d is not in %s", b.line, from)
			}
		}
	}
	for _, lang := range []string{"go", "python", "js"} {
		if languages[lang] < 4 {
			t.Errorf("%s: %d excerpts, want publish, wait, ask, cancel", lang, languages[lang])
		}
	}
}

var (
	saysSubject = regexp.MustCompile(`guestflow\.(requests|cancels|events|rejections|deadletters)((\.([A-Za-z0-9_*>-]+|[$]?\{\w+\}|<\w+>|\$\w+|" ?\+ ?\w+( ?\+ ?")?))*)`)
	saysType    = regexp.MustCompile(`io\.guestflow\.customization\.([a-z.]+)\.v1`)
	saysToken   = regexp.MustCompile(`\.([A-Za-z0-9_*>-]+|[$]?\{\w+\}|<\w+>|\$\w+|" ?\+ ?\w+( ?\+ ?")?)`)
)

// Where neither Python nor Node.js is at hand, this still holds: what the examples and pages say are subjects, types, streams and codes of the contract.
func TestExamplesSpeakTheContract(t *testing.T) {
	t.Parallel()
	kinds := constants(t, "Kind")
	tokens := map[string]int{"requests": 2, "cancels": 2, "rejections": 2, "deadletters": 2, "events": 4}
	for file, least := range map[string]int{"../examples/go/main.go": 5, "../examples/python/submit.py": 5, "../examples/js/submit.mjs": 6, "../examples/shell/submit.sh": 3,
		"integrator.md": 20} {
		text := read(t, file)
		found := 0
		for _, m := range saysSubject.FindAllStringSubmatch(text, -1) {
			found++
			parts := saysToken.FindAllStringSubmatch(m[2], -1)
			open := len(parts) > 0 && parts[len(parts)-1][1] == ">"
			if n := len(parts); n > tokens[m[1]] || n < tokens[m[1]] && !open && n != 3 {
				t.Errorf("%s: %s has %d tokens, want %d", file, m[0], n, tokens[m[1]])
			}
			if m[1] == "events" && len(parts) == 4 {
				if kind := parts[2][1] + "." + parts[3][1]; !strings.Contains(kind, "*") && !slices.Contains(kinds, kind) {
					t.Errorf("%s: %s: there is no kind %s", file, m[0], kind)
				}
			}
		}
		if found < least {
			t.Errorf("%s: only %d subjects are understood", file, found)
		}
		for _, m := range regexp.MustCompile(`\bguestflow\.(\w+)\.`).FindAllStringSubmatch(text, -1) {
			if tokens[m[1]] == 0 && m[1] != "customization" {
				t.Errorf("%s: there are no subjects %s", file, m[0])
			}
		}
		for _, m := range saysType.FindAllStringSubmatch(text, -1) {
			if !slices.Contains(kinds, m[1]) {
				t.Errorf("%s: there is no type %s", file, m[0])
			}
		}
		for _, stream := range regexp.MustCompile(`GUESTFLOW_(EVENTS|DEADLETTERS|REQUESTS_)\b`).FindAllString(text, -1) {
			if stream != events.EventsStream && stream != events.DeadlettersStream && stream != events.RequestsStream("") {
				t.Errorf("%s: there is no stream %s", file, stream)
			}
		}
		for _, number := range regexp.MustCompile(`\b100\d\d\b`).FindAllString(text, -1) {
			if number != fmt.Sprint(events.CodeSubjectFull) && number != fmt.Sprint(events.CodeMessageTooLarge) {
				t.Errorf("%s: error code %s", file, number)
			}
		}
	}
	for program, check := range map[string][]string{
		"python3": {"-c", "import ast; ast.parse(open('../examples/python/submit.py').read())"}, "node": {"--check", "../examples/js/submit.mjs"},
		"sh": {"-n", "../examples/shell/submit.sh"},
	} {
		if _, err := exec.LookPath(program); err != nil {
			continue
		}
		if said, err := exec.CommandContext(patient(t), program, check...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", program, err, said)
		}
	}
}
