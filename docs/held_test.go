package docs_test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/sethvargo/go-envconfig"
	"gopkg.in/yaml.v3"

	"github.com/guestflow/guestflow/internal/app"
	"github.com/guestflow/guestflow/internal/client"
	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/sandbox"
)

// held are the blocks that are not run: why, and what holds them true all the same.
var held = map[string]struct {
	why   string
	check func(t *testing.T, page string, b block)
}{
	"build":       {"builds or tests this repository, as whoever runs this test just did", shell},
	"machine":     {"changes the machine: users, services, installed files", shell},
	"cluster":     {"needs a Kubernetes cluster", shell},
	"vcenter":     {"needs a vCenter and its administrator", shell},
	"live":        {"is for a state or a system that no sandbox has", shell},
	"nsc":         {"needs nsc and an operator's keys", permitted},
	"unit":        {"is systemd's", unit},
	"environment": {"has paths of another machine", environment},
	"manifest":    {"is a cluster's", manifest},
	"include":     {"is a part of a server's configuration", included},
	"refusal":     {"is what the service says when it does not start", refusal},
	"secrets":     {"is a folder", secretsFolder},
	"log":         {"is a line out of many", logLine},
	"words":       {"takes an outage of minutes, or a damage; in=FOLDER says it", words},
	"request":     {"is sent by whoever reads it", request},
	"picture":     {"is looked at; its names are those of the code", picture},
	"mermaid":     {"is looked at; its lines are flowchart's", mermaid},
}

// pages are those of this folder, and those at the top of the repository.
func pages(t *testing.T) []string {
	t.Helper()
	return glob(t, "*.md", "*/*.md", "../README.md", "../CONTRIBUTING.md", "../SECURITY.md")
}

func glob(t *testing.T, patterns ...string) (all []string) {
	t.Helper()
	for _, pattern := range patterns {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		all = append(all, files...)
	}
	return all
}

// Every block of every page is run, produced, cut out of a file, or held; none is only written.
func TestEveryBlock(t *testing.T) {
	t.Parallel()
	used := map[string]bool{}
	for _, page := range pages(t) {
		all := blocks(read(t, page))
		for i, b := range all {
			where := fmt.Sprintf("%s:%d", page, b.line)
			from, word := b.args["from"], b.args["held"]
			if b.lang == "mermaid" { // GitHub draws it where nothing stands behind
				word = b.lang
			}
			switch {
			case b.run && b.lang == "sh":
			case b.output && i > 0 && all[i-1].run:
			case b.args["file"] != "":
			case from != "" && strings.Contains(read(t, filepath.Join("..", from)), b.text):
			case from != "":
				t.Errorf("%s is not in %s", where, from)
			case page == eventsPage && b.lang == "json" && len(b.args) == 0: // TestEvents
			case held[word].check != nil:
				used[word] = true
				held[word].check(t, where, b)
			default:
				t.Errorf("%s: nothing says what holds this block true: see type block, and the table held", where)
			}
		}
	}
	for word := range held {
		if !used[word] {
			t.Errorf("no block is held=%s", word)
		}
	}
}

// Every command that a page names within a sentence or a table is one, with its flags.
func TestCommandsInSentences(t *testing.T) {
	t.Parallel()
	found := 0
	for _, page := range pages(t) {
		text := read(t, page)
		for _, b := range slices.Backward(blocks(text)) {
			text = text[:b.from] + text[b.to:]
		}
		for _, span := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(text, -1) {
			if span[1] != "guestflow takes requests" { // what the log says
				found += commands(t, page, span[1])
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d commands were found", found)
	}
}

var (
	saysCommand = regexp.MustCompile(
		`(?m)(?:^|[|;&(]|\$\(|\bsudo(?: -u \w+)?|-- |')\s*(?:bin/)?(guestflow|make|nats|git) ([^|;&)\n>']*)`)
	saysFile = regexp.MustCompile(`\b(?:deploy|examples|schemas|docs)/[\w./-]*\w`)
)

// shell holds a script that is not run: the shell understands it, its commands of ours and of NATS have these flags,
// its files are there.
func shell(t *testing.T, where string, b block) {
	t.Helper()
	cmd := exec.CommandContext(patient(t), "sh", "-n")
	cmd.Stdin = strings.NewReader(b.text)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", where, err, said)
	}
	commands(t, where, strings.ReplaceAll(b.text, "\\\n", " "))
	for _, file := range saysFile.FindAllString(b.text, -1) {
		if _, err := os.Stat(filepath.Join("..", file)); err != nil {
			t.Errorf("%s: %v", where, err)
		}
	}
}

// commands holds the commands in a text, and returns how many there are.
func commands(t *testing.T, where, text string) (found int) {
	t.Helper()
	for _, m := range saysCommand.FindAllStringSubmatch(text, -1) {
		found++
		words := strings.Fields(m[2])
		switch m[1] {
		case "git": // fetches this repository
		case "make":
			cmd := exec.CommandContext(patient(t), "make", append([]string{"-n", "-C", ".."}, words...)...)
			if said, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: make %s: %v\n%s", where, m[2], err, said)
			}
		case "nats":
			if !*everything {
				continue
			}
			fallthrough
		default:
			if wrong := command(t, m[1], words); wrong != "" {
				t.Errorf("%s: %s %s: %s", where, m[1], m[2], wrong)
			}
		}
	}
	return found
}

// command says what is wrong with the words behind a program's name: subcommands, then arguments and flags in any
// order.
func command(t *testing.T, program string, words []string) string {
	t.Helper()
	said, more := []string{program}, true // subcommands may follow
	for _, w := range words {
		name, _, _ := strings.Cut(w, "=")
		switch {
		case name == "--help" || name == "--":
		case strings.HasPrefix(name, "--"):
			flag := regexp.QuoteMeta(strings.TrimPrefix(strings.TrimPrefix(name, "--"), "no-"))
			if !regexp.MustCompile(`--(?:\[no-\]|no-)?` + flag + `\b`).MatchString(helpOf(t, said)) {
				return "it has no flag " + name
			}
		case more:
			deeper := append(slices.Clone(said), w)
			help := helpOf(t, deeper)
			if more = help != "" && help != helpOf(t, said); more { // else the help of what is above it
				said = deeper
			} else if len(said) == 1 {
				return "it has no command " + w
			}
		}
	}
	return ""
}

var helps struct {
	mu sync.Mutex
	of map[string]string
}

// helpOf is what a program says to --help behind its subcommands; "" where it does not know them.
func helpOf(t *testing.T, words []string) string {
	t.Helper()
	helps.mu.Lock()
	defer helps.mu.Unlock()
	if helps.of == nil {
		helps.of = map[string]string{}
	}
	line := strings.Join(words, " ")
	help, asked := helps.of[line]
	if !asked {
		said, err := exec.CommandContext(patient(t), filepath.Join(programs(t), words[0]),
			append(slices.Clone(words[1:]), "--help")...).CombinedOutput()
		if help = string(said); err != nil {
			help = ""
		}
		helps.of[line] = help
	}
	return help
}

// permitted holds subjects: they are in the files of deploy/nats.
func permitted(t *testing.T, where string, b block) {
	t.Helper()
	shell(t, where, b)
	files, err := filepath.Glob("../deploy/nats/*.conf")
	if err != nil {
		t.Fatal(err)
	}
	all := ""
	for _, f := range files {
		all += read(t, f)
	}
	found := 0
	for _, quoted := range regexp.MustCompile(`'([^']+)'`).FindAllStringSubmatch(b.text, -1) {
		for subject := range strings.SplitSeq(quoted[1], ",") {
			if found++; !strings.HasPrefix(subject, "…") && !strings.Contains(all, `"`+subject+`"`) {
				t.Errorf("%s: %s is not in deploy/nats", where, subject)
			}
		}
	}
	if found == 0 {
		t.Errorf("%s names no subject", where)
	}
}

// unit holds a unit file of systemd: its form, and what it shares with the rest of its page.
func unit(t *testing.T, where string, b block) {
	t.Helper()
	section, values := "", map[string]string{}
	for line := range strings.Lines(b.text) {
		line = strings.TrimSpace(line)
		key, value, ok := strings.Cut(line, "=")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "["):
			if section = line; !slices.Contains([]string{"[Unit]", "[Service]", "[Install]"}, section) {
				t.Errorf("%s: section %s", where, section)
			}
		case !ok || section == "" || !regexp.MustCompile(`^[A-Z]\w*$`).MatchString(key):
			t.Errorf("%s: %q is no setting", where, line)
		default:
			values[key] = value
		}
	}
	page := read(t, strings.Split(where, ":")[0])
	for _, key := range []string{"ExecStart", "EnvironmentFile", "User"} {
		if values[key] == "" || strings.Count(page, values[key]) < 2 { // there, and where it is installed
			t.Errorf("%s: %s=%s is nowhere else on the page", where, key, values[key])
		}
	}
	cfg, err := app.LoadConfig(envconfig.MapLookuper(nil))
	if stop, wrong := strconv.Atoi(values["TimeoutStopSec"]); wrong != nil ||
		time.Duration(stop)*time.Second <= cfg.Service.DrainTimeout {
		t.Errorf("%s: TimeoutStopSec=%s is not longer than the service takes, %s (%v)", where, values["TimeoutStopSec"],
			cfg.Service.DrainTimeout, err)
	}
	if verify, err := exec.LookPath("systemd-analyze"); err == nil {
		file := filepath.Join(t.TempDir(), "guestflow.service")
		text := regexp.MustCompile(`(?m)^(ExecStart=).*`).ReplaceAllString(b.text, "${1}/bin/true")
		if err := os.WriteFile(file, []byte(regexp.MustCompile(`(?m)^User=.*`).ReplaceAllString(text, "")),
			0o600); err != nil {
			t.Fatal(err)
		}
		if said, err := exec.CommandContext(patient(t), verify, "verify", "--man=no",
			file).CombinedOutput(); err != nil || strings.Contains(string(said), "guestflow.service:") {
			t.Errorf("%s: systemd-analyze verify: %v\n%s", where, err, said)
		}
	}
}

// environment holds a file of settings: the service takes them, once the files that they name are there.
func environment(t *testing.T, where string, b block) {
	t.Helper()
	dir, env := t.TempDir(), map[string]string{}
	for line := range strings.Lines(b.text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			t.Errorf("%s: %q is no setting", where, line)
		}
		if strings.HasPrefix(value, "/") {
			value = filepath.Join(dir, value)
			if err := os.MkdirAll(filepath.Dir(value), 0o700); err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(key, "_DIR") {
				if err := os.Mkdir(value, 0o700); err != nil {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(value, []byte("secret"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		env[key] = value
	}
	if _, err := app.LoadConfig(envconfig.MapLookuper(env)); err != nil {
		t.Errorf("%s: %v", where, err)
	}
}

// manifest holds a part of a pod: its fields are Kubernetes's, what it mounts is there, and the secrets are where the
// service looks for them.
func manifest(t *testing.T, where string, b block) {
	t.Helper()
	var pod struct {
		SecurityContext struct {
			RunAsNonRoot bool `yaml:"runAsNonRoot"`
			FSGroup      int  `yaml:"fsGroup"`
		} `yaml:"securityContext"`
		Volumes []struct {
			Name      string
			Projected struct {
				DefaultMode int `yaml:"defaultMode"`
				Sources     []struct {
					Secret struct {
						Name  string
						Items []struct{ Key, Path string }
					}
				}
			}
		}
		Containers []struct {
			Name         string
			VolumeMounts []struct {
				Name      string
				MountPath string `yaml:"mountPath"`
				ReadOnly  bool   `yaml:"readOnly"`
			} `yaml:"volumeMounts"`
		}
	}
	d := yaml.NewDecoder(strings.NewReader(b.text))
	d.KnownFields(true)
	if err := d.Decode(&pod); err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	if len(pod.Volumes) != 1 || len(pod.Containers) != 1 || len(pod.Containers[0].VolumeMounts) != 1 {
		t.Fatalf("%s: %+v", where, pod)
	}
	cfg, _ := app.LoadConfig(envconfig.MapLookuper(nil)) // what is not set is not asked for
	if m := pod.Containers[0].VolumeMounts[0]; m.Name != pod.Volumes[0].Name || m.MountPath != cfg.Service.SecretsDir {
		t.Errorf("%s mounts %+v; the service reads %s", where, m, cfg.Service.SecretsDir)
	}
	var paths []string
	for _, s := range pod.Volumes[0].Projected.Sources {
		for _, item := range s.Secret.Items {
			paths = append(paths, item.Path)
		}
	}
	resolves(t, where, paths)
}

// secretsFolder holds a picture of the folder of secrets: two spaces are a level, a name with / is a folder.
func secretsFolder(t *testing.T, where string, b block) {
	t.Helper()
	var files, above []string
	for i, line := range strings.Split(strings.TrimSpace(b.text), "\n") {
		name := strings.Fields(line)[0]
		level := (len(line) - len(strings.TrimLeft(line, " "))) / 2
		if i == 0 {
			continue // the folder itself
		}
		above = append(above[:level-1], strings.TrimSuffix(name, "/"))
		if !strings.HasSuffix(name, "/") {
			files = append(files, filepath.Join(above...))
		}
	}
	resolves(t, where, files)
}

// resolves holds paths of secrets: those that the sandbox's service reads are among them, by the same names.
func resolves(t *testing.T, where string, files []string) {
	t.Helper()
	dir := t.TempDir()
	start(t, sandbox.Options{Dir: dir, NoService: true})
	found := 0
	if err := fs.WalkDir(os.DirFS(filepath.Join(dir, "secrets")), ".", func(path string, d fs.DirEntry,
		err error) error {
		if err == nil && !d.IsDir() {
			if found++; !slices.Contains(files, path) {
				t.Errorf("%s: %s is not shown in %s", where, path, files)
			}
		}
		return err
	}); err != nil || found == 0 {
		t.Errorf("%s: %d secrets, %v", where, found, err)
	}
}

// included holds what stands in a server's configuration: nats-server reads it beside the files of deploy/nats.
func included(t *testing.T, where string, b block) {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../deploy/nats")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "of-the-page.conf")
	if err := os.WriteFile(file, []byte(b.text), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Errorf("%s: %v", where, err)
	} else if len(o.Users)+len(o.Nkeys) == 0 {
		t.Errorf("%s has no user", where)
	}
}

// refusal holds the words of a start with wrong settings.
func refusal(t *testing.T, where string, b block) {
	t.Helper()
	_, err := app.LoadConfig(envconfig.MapLookuper(map[string]string{"GUESTFLOW_VCENTERS": "lab",
		"VCENTER_LAB_URL": "http://vc"}))
	if err == nil || !sameLines(err.Error(), b.text) {
		t.Errorf("%s: the service says\n%v", where, err)
	}
}

// sameLines compares lines in any order.
func sameLines(a, b string) bool {
	lines := func(s string) []string {
		return slices.Sorted(strings.SplitSeq(strings.TrimPrefix(strings.TrimSpace(s), "settings: "), "\n"))
	}
	return slices.Equal(lines(a), lines(b))
}

// logLine holds a line of the log: one of a service that worked has the same members, and such a message.
func logLine(t *testing.T, where string, b block) {
	t.Helper()
	var line struct {
		Level, Instance, VCenter, VM, Run, Step, Time, Message string
		N                                                      int
	}
	d := json.NewDecoder(strings.NewReader(b.text))
	d.DisallowUnknownFields()
	if err := d.Decode(&line); err != nil || line.N == 0 || line.Run == "" || line.VM == "" {
		t.Errorf("%s: %+v: %v", where, line, err)
	}
	if !slices.Contains(constants(t, "Kind"), line.Message) {
		t.Errorf("%s: there is no kind %s", where, line.Message)
	}
}

// words holds what the code of a folder says: one of its texts of some length is in the block.
func words(t *testing.T, where string, b block) {
	t.Helper()
	shown, found := strings.Join(strings.Fields(b.text), " "), false
	inFolder(t, b.args["in"], func(n ast.Node) {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			for _, part := range regexp.MustCompile(`%\w`).Split(text(lit), -1) {
				found = found || len(part) >= 25 && strings.Contains(shown, strings.TrimSpace(part))
			}
		}
	})
	if !found {
		t.Errorf("%s: the code in %s says nothing of this", where, b.args["in"])
	}
}

// request holds an event that asks for a run.
func request(t *testing.T, where string, b block) {
	t.Helper()
	if m, err := client.New("lab", []byte(b.text), events.RequestRef{}); err != nil || m.Cancel {
		t.Errorf("%s: %+v: %v", where, m, err)
	}
}

// picture holds the functions that a picture names.
func picture(t *testing.T, where string, b block) {
	t.Helper()
	named := regexp.MustCompile(`\b(events|handler|run)\.([A-Za-z]+)\b`).FindAllStringSubmatch(b.text, -1)
	for _, name := range named {
		folder := map[string]string{"events": "events", "handler": "handler", "run": "handler"}[name[1]]
		files, err := filepath.Glob(filepath.Join("..", "internal", folder, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		there := slices.Contains(constants(t, "Kind"), name[0]) || slices.ContainsFunc(files, func(f string) bool {
			return regexp.MustCompile(`(?m)(^func (\([^)]*\) )?` + name[2] + `\(|^	` + name[2] +
				` )`).MatchString(read(t, f))
		})
		if !there {
			t.Errorf("%s: there is no %s", where, name[0])
		}
	}
	if len(named) < 3 {
		t.Errorf("%s names too little", where)
	}
}

// mermaid holds the lines of a flowchart: nodes, arrows between them, groups.
func mermaid(t *testing.T, where string, b block) {
	t.Helper()
	node := `\w+(?:\["[^"]*"\]|\[\("[^"]*"\)\])?`
	line := regexp.MustCompile(`^(?:flowchart (?:LR|TB)|` + node + ` (?:<?-- "[^"]*" -->|<?-->) ` + node + `)$`)
	for l := range strings.Lines(b.text) {
		if l = strings.TrimSpace(l); !line.MatchString(l) {
			t.Errorf("%s: %q is no line of a flowchart", where, l)
		}
	}
}
