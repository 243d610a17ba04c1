package docs_test

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/guestflow/guestflow/sandbox"
)

// Where neither Ansible nor Terraform is at hand, this still holds: the commands within their examples publish the
// request that stands there, and wait.
func TestToolExamples(t *testing.T) {
	t.Parallel()
	box := start(t, sandbox.Options{})
	env := append(box.Env(), "PATH="+programs(t)+":/usr/bin:/bin")
	vms := map[string]string{}
	for _, m := range box.VMs() {
		vms[m.Ends] += " " + m.ID
	}
	well, failing := strings.Fields(vms["run.succeeded"]), strings.Fields(vms["run.failed NotCustomizable"])[0]
	for name, tool := range map[string]struct {
		command func(t *testing.T, vm string) *exec.Cmd
		vm      string
	}{"ansible": {playbook, well[0]}, "terraform": {resource, well[3]}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for vm, want := range map[string]int{tool.vm: 0, failing: 1} {
				cmd := tool.command(t, vm)
				cmd.Env = append(cmd.Env, env...)
				said, err := cmd.CombinedOutput()
				if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != want {
					t.Errorf("%s: %v, want exit code %d\n%s", vm, err, want, said)
				}
				if want == 0 && !strings.Contains(string(said), "run.succeeded") {
					t.Errorf("it prints\n%s", said)
				}
			}
			if e := box.Effects(tool.vm); e.Customizations != 1 || e.NetworkStarts != 1 {
				t.Errorf("%+v", e)
			}
		})
	}
}

// playbook is the command of the Ansible example, with its variables put in.
func playbook(t *testing.T, vm string) *exec.Cmd {
	t.Helper()
	var plays []struct {
		Vars  map[string]any
		Tasks []struct {
			Command struct {
				Argv  []string
				Stdin string
			} `yaml:"ansible.builtin.command"`
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, filepath.Join("..", "examples", "ansible", "playbook.yml"))),
		&plays); err != nil {
		t.Fatal(err)
	}
	set := func(text string) string {
		return strings.NewReplacer("{{ vm }}", vm, "{{ vcenter }}", sandbox.VCenter, "{{ host_name }}", "web-1",
			"{{ address }}", "10.0.0.11", "{{ id }}", "ansible-"+vm).Replace(text)
	}
	request, err := json.Marshal(plays[0].Vars["request"])
	if err != nil {
		t.Fatal(err)
	}
	command := plays[0].Tasks[0].Command
	var args []string
	for _, a := range command.Argv {
		args = append(args, set(a))
	}
	if command.Stdin != "{{ request | to_json }}" {
		t.Errorf("standard input is %s", command.Stdin)
	}
	cmd := exec.CommandContext(patient(t), filepath.Join(programs(t), args[0]), args[1:]...)
	cmd.Stdin = strings.NewReader(set(string(request)))
	return cmd
}

// resource is the command of the Terraform example. Its request is read as YAML, which HCL's objects nearly are.
func resource(t *testing.T, vm string) *exec.Cmd {
	t.Helper()
	text := read(t, filepath.Join("..", "examples", "terraform", "main.tf"))
	object := regexp.MustCompile(`(?s)request = jsonencode\((\{.*?\n  \})\)`).FindStringSubmatch(text)
	command := regexp.MustCompile(`(?m)^ +command += ("(?:[^"\\]|\\.)*")$`).FindStringSubmatch(text)
	if object == nil || command == nil {
		t.Fatal("main.tf has no request, or no command")
	}
	flow := strings.NewReplacer("var.vm", vm, "var.host_name", "web-1", "var.address", "10.0.0.11").Replace(object[1])
	flow = regexp.MustCompile(` +=`).ReplaceAllString(flow, ":")
	flow = regexp.MustCompile(`([^{\[,\n])\n`).ReplaceAllString(flow, "$1,\n")
	var request any
	if err := yaml.Unmarshal([]byte(flow), &request); err != nil {
		t.Fatalf("%v\n%s", err, flow)
	}
	data, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	var script string
	if err := json.Unmarshal([]byte(command[1]), &script); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(patient(t), "sh", "-c", script)
	cmd.Env = []string{"REQUEST=" + string(data), "VCENTER=" + sandbox.VCenter, "ID=terraform-" + vm}
	return cmd
}
