package docs_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/sandbox"
)

// block is a fenced block of a page. What its first line says behind the language is for these tests, and
// TestEveryBlock wants one of these:
//
//	```sh run                   runs with sh -e, in the page's own folder, against the page's own sandbox;
//	                            exit=N: that is its exit code
//	```sh run needs=node        only with -all, where that program is; a block that calls nats needs it anyway
//	```sh run fresh             against a second NATS and vCenter without a service, where nothing has happened yet
//	```sh run interrupt         until it has printed the last line that the page shows; then Ctrl-C.
//	                            with=--x,--y adds to its command
//	                            make demo is what make runs for it, bin/demo: the binaries are built
//	```text output              what the block before it printed: go test ./docs -run TestSnippets -update writes it;
//	                            a line with … stands for any number of them
//	```json file=request.json   a file in that folder
//	```go from=FILE             cut out of that file
//	```sh held=WORD             is not run; the table held says why, and what holds it true
type block struct {
	lang, text string
	run        bool
	output     bool
	args       map[string]string
	line       int
	from, to   int // of text in the page
}

// blocks are all of a page.
func blocks(page string) (all []block) {
	var open *block
	at, n := 0, 0
	for line := range strings.Lines(page) {
		n++
		info, fence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && open == nil:
			open = &block{from: at + len(line), line: n, args: map[string]string{}}
			for i, w := range strings.Fields(info) {
				key, value, _ := strings.Cut(w, "=")
				if i == 0 {
					open.lang = w
				} else {
					open.args[key] = value
				}
			}
			_, open.run = open.args["run"]
			_, open.output = open.args["output"]
		case fence:
			open.text, open.to = page[open.from:at], at
			all = append(all, *open)
			open = nil
		}
		at += len(line)
	}
	return all
}

// programs is a folder for the PATH, with the commands that pages use. They are built once.
func programs(t *testing.T) string {
	t.Helper()
	said, err := buildPrograms()
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	return bin
}

var buildPrograms = sync.OnceValues(func() (string, error) {
	builds := [][]string{
		{"build", "-o", bin + "/", "../cmd/guestflow", "../cmd/consumer", "../cmd/demo"},
	}
	if *everything {
		builds = append(builds, []string{"build", "-C", "../tools/nats", "-o", filepath.Join(bin, "nats"), natscli})
	}
	for _, args := range builds {
		if said, err := exec.CommandContext(context.Background(), "go", args...).CombinedOutput(); err != nil {
			return string(said), fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
		}
	}
	return "", nil
})

const natscli = "github.com/nats-io/natscli/nats"

var runsNATS = regexp.MustCompile(`(?m)(^|[|;&(])\s*nats `)

// needs is the program of others that a block needs, or "".
func (b block) needs() string {
	if program := b.args["needs"]; program != "" || !runsNATS.MatchString(b.text) {
		return program
	}
	return "nats"
}

// others are the programs of others that pages use, with what shows that one is here, and what fetches the packages of
// its example.
var others = map[string]struct{ here, fetch string }{
	"nats": {here: "true"}, // it is built
	"python3": {here: "python3 -m venv python",
		fetch: "python/bin/pip install --quiet --retries 0 -r examples/python/requirements.txt"},
	"node":             {here: "npm --version", fetch: "npm install --prefix examples/js --no-audit --no-fund"},
	"terraform":        {here: "terraform version"},
	"ansible-playbook": {here: "ansible-playbook --version"},
}

// ready reports whether a program is to be run and is here; the packages of its example are then beside it.
func ready(t *testing.T, program, dir string) bool {
	t.Helper()
	if program == "" {
		return true
	}
	other, known := others[program]
	if !known {
		t.Fatalf("needs=%s is not known", program)
	}
	if !*everything {
		return false
	}
	cmd := exec.CommandContext(patient(t), "sh", "-ec", other.here+"\n"+other.fetch)
	cmd.Dir = dir // not with the page's HOME: the settings of pip and npm are in ours
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Logf("the snippets of %s are not run, it or its packages are not to be had: %v\n%s", program, err, said)
		return false
	}
	return true
}

// Every snippet that a page marks is run, and prints what the page says.
func TestSnippets(t *testing.T) {
	t.Parallel()
	ran := 0
	for _, page := range pages(t) {
		all := blocks(read(t, page))
		if !slices.ContainsFunc(all, func(b block) bool { return b.run }) {
			continue
		}
		ran++
		t.Run(filepath.Base(page), func(t *testing.T) {
			t.Parallel()
			play(t, page, all)
		})
	}
	if ran == 0 {
		t.Error("no page has a snippet to run")
	}
}

// play runs a page's snippets one after the other.
func play(t *testing.T, page string, all []block) {
	t.Helper()
	bin := programs(t)
	box, dir := start(t, sandbox.Options{}), t.TempDir()
	// the examples, and nothing else of this module: they need nothing else
	for _, f := range []string{"go.mod", "go.sum"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte(read(t, filepath.Join("..", f))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(dir, "examples"), os.DirFS(filepath.Join("..", "examples"))); err != nil {
		t.Fatal(err)
	}
	env := append(append(os.Environ(), box.Env()...), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "GOFLAGS=-mod=mod",
		"PATH="+strings.Join([]string{bin, filepath.Join(dir, "python", "bin"), os.Getenv("PATH")},
			string(os.PathListSeparator)))
	for _, key := range []string{"GOPATH", "GOCACHE", "GOMODCACHE"} { // they follow HOME
		value, err := exec.CommandContext(patient(t), "go", "env", key).Output()
		if err != nil {
			t.Fatal(err)
		}
		env = append(env, key+"="+strings.TrimSpace(string(value)))
	}
	if err := os.Symlink(bin, filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(dir, "kept")
	text := read(t, page)
	renewed := text
	for i, b := range all {
		if name := b.args["file"]; name != "" {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(b.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if !b.run || !ready(t, b.needs(), dir) {
			continue
		}
		var next block
		if i+1 < len(all) && all[i+1].output {
			next = all[i+1]
		}
		shown := next.text
		with := env
		if _, other := b.args["fresh"]; other {
			with = append(slices.Clone(env), start(t, sandbox.Options{NoService: true}).Env()...)
		}
		said, code := perform(t, b, strings.NewReplacer("nats://127.0.0.1:4222", box.NATSURL(), "/tmp/guestflow", kept,
			"make demo", "bin/demo").Replace(b.text), dir, with, shown)
		want := "0"
		if b.args["exit"] != "" {
			want = b.args["exit"]
		}
		if code != want {
			t.Fatalf("%s:%d: exit code %s, want %s\n%s\n%s", page, b.line, code, want, b.text, said)
		}
		if !next.output {
			continue
		}
		got := strings.NewReplacer(kept, "/tmp/guestflow", dir, "~").Replace(said)
		if same(shown, got) {
			continue
		}
		if *update && !strings.Contains(shown, "…\n") {
			renewed = strings.Replace(renewed, text[b.from:next.to], text[b.from:next.from]+got, 1)
			continue
		}
		t.Errorf("%s:%d prints something else than the page says (go test ./docs -run TestSnippets -update writes "+
			"it, but where lines are left out): -page +run\n%s", page, b.line,
			cmp.Diff(settled(shown), settled(got)))
	}
	if *update && renewed != text {
		if err := os.WriteFile(page, []byte(renewed), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// perform runs a snippet: until its end, or until it has printed the last line that is shown.
func perform(t *testing.T, b block, script, dir string, env []string, shown string) (said, code string) {
	t.Helper()
	_, interrupt := b.args["interrupt"]
	if interrupt {
		script = "exec " + strings.TrimSpace(script) + " " + strings.ReplaceAll(b.args["with"], ",", " ")
	}
	cmd := exec.CommandContext(patient(t), "sh", "-ec", script)
	cmd.Dir, cmd.Env = dir, env
	out := &output{}
	cmd.Stdout, cmd.Stderr = out, out
	if interrupt {
		lines := strings.Split(strings.TrimSpace(shown), "\n")
		// it may have ended: its exit code tells
		out.last, out.then = lines[len(lines)-1], func() { _ = cmd.Process.Signal(os.Interrupt) }
	}
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatalf("%s: %v", script, err)
	}
	return out.all.String(), fmt.Sprint(cmd.ProcessState.ExitCode())
}

// output is what a snippet prints; then is called once its last line is there.
type output struct {
	mu   sync.Mutex
	all  bytes.Buffer
	last string
	then func()
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, err := o.all.Write(p)
	if o.then != nil && bytes.Contains(o.all.Bytes(), []byte(o.last)) {
		o.then()
		o.then = nil
	}
	return n, err
}

// same reports whether a page shows what was printed.
func same(shown, got string) bool {
	parts := strings.Split(settled(shown), "\n")
	for i, line := range parts {
		if strings.HasPrefix(line, "…") {
			parts[i] = `(?:.*\n)*?.*`
		} else {
			parts[i] = regexp.QuoteMeta(line)
		}
	}
	return regexp.MustCompile(`^` + strings.Join(parts, `\n`) + `$`).MatchString(settled(got))
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
	{regexp.MustCompile(`\b(\d+m)?\d+(\.\d+)?(µs|ms|s)\b`), `DURATION`},
	{regexp.MustCompile(`\b[a-z2-7]{26}\b`), `RUN`}, // where no id was said
	{regexp.MustCompile(`(RUN|rejected)\.\d+`), `$1.N`},
	{regexp.MustCompile(`([Ss]equence"?): ?\d+`), `$1 N`},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), `ADDRESS`},
	{regexp.MustCompile(`DURATION (ahead of|behind) ours`), `OFFSET`},
	{regexp.MustCompile(`version \d+\.\d+\.\d+`), `VERSION`},
	{regexp.MustCompile(`open pulls: \d+`), `PULLS`},
	{regexp.MustCompile(` {2,}`), `  `}, // a column is as wide as what is in it
}

func settled(text string) string {
	for _, u := range unsettled {
		text = u.what.ReplaceAllString(text, u.stable)
	}
	return text
}

// The page shows each part of a client in every language. (That its excerpts are in the examples, word for word,
// TestEveryBlock tests.)
func TestExcerpts(t *testing.T) {
	t.Parallel()
	languages := map[string]int{}
	for _, b := range blocks(read(t, "use/integrator.md")) {
		if b.args["from"] != "" {
			languages[b.lang]++
		}
	}
	for _, lang := range []string{"go", "python", "js"} {
		if languages[lang] < 4 {
			t.Errorf("%s: %d excerpts, want publish, wait, ask, cancel", lang, languages[lang])
		}
	}
}

var (
	saysSubject = regexp.MustCompile(
		`guestflow\.(requests|cancels|events|rejections|deadletters)((\.([A-Za-z0-9_*>-]+|[$]?\{\w+\}|<\w+>|\$\w+|" ` +
			`?\+ ?\w+( ?\+ ?")?))*)`)
	saysType  = regexp.MustCompile(`io\.guestflow\.customization\.([a-z.]+)\.v1`)
	saysToken = regexp.MustCompile(`\.([A-Za-z0-9_*>-]+|[$]?\{\w+\}|<\w+>|\$\w+|" ?\+ ?\w+( ?\+ ?")?)`)
)

// Where neither Python nor Node.js is at hand, this still holds: what the examples and pages say are subjects, types,
// streams and codes of the contract.
func TestExamplesSpeakTheContract(t *testing.T) {
	t.Parallel()
	kinds := constants(t, "Kind")
	tokens := map[string]int{"requests": 2, "cancels": 2, "rejections": 2, "deadletters": 2, "events": 4}
	for file, least := range map[string]int{"../examples/go/main.go": 5, "../examples/python/submit.py": 5,
		"../examples/js/submit.mjs": 6, "../examples/shell/submit.sh": 3,
		"use/integrator.md": 20} {
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
				if kind := parts[2][1] + "." + parts[3][1]; !strings.Contains(kind, "*") &&
					!slices.Contains(kinds, kind) {
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
		for _, stream := range regexp.MustCompile(`GUESTFLOW_(EVENTS|DEADLETTERS|REQUESTS_)\b`).FindAllString(text,
			-1) {
			if stream != events.EventsStream && stream != events.DeadlettersStream &&
				stream != events.RequestsStream("") {
				t.Errorf("%s: there is no stream %s", file, stream)
			}
		}
		for _, number := range regexp.MustCompile(`\b100\d\d\b`).FindAllString(text, -1) {
			const noResources = "10023" // the server's own
			if number != fmt.Sprint(stream.CodeSubjectFull) && number != fmt.Sprint(stream.CodeMessageTooLarge) &&
				number != noResources {
				t.Errorf("%s: error code %s", file, number)
			}
		}
	}
	for program, check := range map[string][]string{
		"python3": {"-c", "import ast; ast.parse(open('../examples/python/submit.py').read())"}, "node": {"--check",
			"../examples/js/submit.mjs"},
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
