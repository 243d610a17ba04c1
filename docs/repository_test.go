package docs_test

import (
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// files are those of the repository whose path matches, relative to its top.
func files(t *testing.T, match func(path string) bool) (all []string) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && slices.Contains([]string{".git", "bin", "node_modules"}, entry.Name()) {
			return filepath.SkipDir
		}
		if path = filepath.ToSlash(strings.TrimPrefix(path, "../")); !entry.IsDir() && match(path) {
			all = append(all, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Every folder whose dependencies are pinned is looked after by Dependabot.
func TestDependencyUpdates(t *testing.T) {
	t.Parallel()
	var config struct {
		Updates []struct {
			Ecosystem   string `yaml:"package-ecosystem"`
			Directory   string
			Directories []string
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "../.github/dependabot.yml")), &config); err != nil {
		t.Fatal(err)
	}
	ecosystems := map[string]string{
		"go.mod": "gomod", "Dockerfile": "docker", "package.json": "npm", "requirements.txt": "pip",
		"ci.yml": "github-actions",
	}
	for _, file := range files(t, func(path string) bool { return ecosystems[filepath.Base(path)] != "" }) {
		ecosystem, folder := ecosystems[filepath.Base(file)], filepath.Join("/", filepath.Dir(file))
		if ecosystem == "github-actions" {
			folder = "/"
		}
		covered := false
		for _, u := range config.Updates {
			for _, pattern := range append(u.Directories, u.Directory) {
				matched, err := filepath.Match(pattern, folder)
				if err != nil {
					t.Fatal(err)
				}
				covered = covered || u.Ecosystem == ecosystem && matched
			}
		}
		if !covered {
			t.Errorf(".github/dependabot.yml: nothing updates %s (%s, directory %s)", file, ecosystem, folder)
		}
	}
}

// CI may read the code and nothing else, and every action is pinned to a commit.
func TestWorkflows(t *testing.T) {
	t.Parallel()
	pinned := regexp.MustCompile(`^\s*(?:- )?uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$`)
	for _, file := range files(t, func(path string) bool { return strings.HasPrefix(path, ".github/workflows/") }) {
		text := read(t, filepath.Join("..", file))
		for line := range strings.Lines(text) {
			if strings.Contains(line, "uses:") && !pinned.MatchString(strings.TrimRight(line, "\n")) {
				t.Errorf("%s: an action without a commit and its version: %s", file, line)
			}
		}
		var workflow struct {
			Permissions map[string]string
			Jobs        map[string]struct {
				Timeout     int `yaml:"timeout-minutes"`
				Permissions map[string]string
			}
		}
		if err := yaml.Unmarshal([]byte(text), &workflow); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if len(workflow.Permissions) != 1 || workflow.Permissions["contents"] != "read" {
			t.Errorf("%s may do more than read the code: %v", file, workflow.Permissions)
		}
		for name, job := range workflow.Jobs {
			if job.Timeout == 0 || job.Permissions != nil {
				t.Errorf("%s: job %s has no timeout, or permissions of its own", file, name)
			}
		}
	}
}

// GitHub ignores a form that it cannot read, without a word.
func TestIssueForms(t *testing.T) {
	t.Parallel()
	kinds := []string{"markdown", "textarea", "input", "dropdown", "checkboxes"}
	for _, file := range files(t, func(path string) bool {
		return strings.HasPrefix(path, ".github/ISSUE_TEMPLATE/")
	}) {
		var form struct {
			Name, Description string
			Labels            []string
			Body              []struct {
				Type, ID    string
				Attributes  struct{ Label, Description, Value, Render string }
				Validations struct{ Required bool }
			}
			Blank    bool                                `yaml:"blank_issues_enabled"`
			Contacts []struct{ Name, URL, About string } `yaml:"contact_links"`
		}
		d := yaml.NewDecoder(strings.NewReader(read(t, filepath.Join("..", file))))
		d.KnownFields(true)
		if err := d.Decode(&form); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if strings.HasSuffix(file, "config.yml") {
			continue
		}
		if form.Name == "" || form.Description == "" || len(form.Body) == 0 {
			t.Errorf("%s: a form needs name, description and body", file)
		}
		for i, field := range form.Body {
			named := field.ID != "" && field.Attributes.Label != "" || field.Type == "markdown" &&
				field.Attributes.Value != ""
			if !slices.Contains(kinds, field.Type) || !named {
				t.Errorf("%s: field %d is %+v", file, i+1, field)
			}
		}
	}
}
