//go:build cluster

package chart

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

var bin = flag.String("bin", "", "folder of etcd, kube-apiserver, helm, consumer and guestflow")

const adminToken = "admin"

// cluster is a Kubernetes API server on an etcd, without anything that would start a pod.
type cluster struct {
	t    *testing.T
	url  string
	ca   string // file, PEM
	http *http.Client
}

// TestCluster installs the chart in a real API server, runs what the Deployment there says as a process, upgrades the
// release, and hands the runs in flight from the old process to the new one, as a roll-out does. The process has the
// pod's command, environment and files; it has not its user, its root file system, its network or its limits: there is
// no kubelet.
func TestCluster(t *testing.T) {
	c := startCluster(t)
	c.customResources()
	c.do(http.MethodPost, "/api/v1/namespaces", object{"metadata": object{"name": "guestflow"}}, nil)

	box := startSandbox(t)
	c.secret("vcenter-lab", map[string]string{"password": box.file("VCENTER_LAB_PASSWORD_FILE")})
	c.secret("vcenter-ca", map[string]string{"ca.crt": box.file("VCENTER_LAB_CA_FILE")})
	guest := filepath.Join(box.settings["GUESTFLOW_SECRETS_DIR"], "lab/linux-root")
	c.secret("lab-linux-root", map[string]string{"username": read(t, guest+"/username"),
		"password": read(t, guest+"/password")})

	values := box.values(freePort(t))
	if out, err := c.helm("install", "guestflow", chartCopy(t, "0.1.0"), "--values", write(t, values)); err != nil {
		t.Fatalf("helm install: %v\n%s", err, out)
	}
	first := c.deployment()
	old := c.start(first, "guestflow-old")
	old.ready(first)

	t.Run("helm test", func(t *testing.T) {
		out, err := c.helm("test", "guestflow", "--timeout", "1s") // it makes the pod, and nobody starts it
		if err == nil {
			t.Fatalf("helm test came to an end without a kubelet:\n%s", out)
		}
		var pod object
		c.do(http.MethodGet, "/api/v1/namespaces/guestflow/pods/guestflow-dry-run", nil, &pod)
		cmd := c.command(pod["spec"].(object), "guestflow-dry-run", filepath.Join(*bin, "guestflow"))
		said, err := cmd.CombinedOutput()
		t.Logf("guestflow %s\n%s", strings.Join(cmd.Args[1:], " "), said)
		if err != nil {
			t.Error(err)
		}
	})

	t.Run("a request", func(t *testing.T) {
		if out, err := box.guestflow("submit", box.VMs[0].RequestFile, "--wait", "--text"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})

	t.Run("upgrade", func(t *testing.T) {
		slow := box.VMs[1] // half a minute
		if out, err := box.guestflow("submit", slow.RequestFile, "--id", "slow"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		until(t, func() bool { return strings.Contains(box.status(slow.VM), `"running"`) })

		values["port"], values["log"] = freePort(t), object{"level": "debug"}
		if out, err := c.helm("upgrade", "guestflow", chartCopy(t, "0.2.0"), "--values", write(t, values)); err != nil {
			t.Fatalf("helm upgrade: %v\n%s", err, out)
		}
		second := c.deployment()
		if was, is := uid(first), uid(second); was != is {
			t.Errorf("the upgrade made another Deployment: %s, and it was %s", is, was)
		}
		fresh := c.start(second, "guestflow-new") // maxSurge 1, maxUnavailable 0: the new pod first
		fresh.ready(second)
		old.stop(second)

		if out, err := box.guestflow("submit", slow.RequestFile, "--id", "slow", "--wait", "--text"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		status := box.status(slow.VM)
		t.Log(status)
		if !regexp.MustCompile(`"instance": *"guestflow-new"`).MatchString(status) ||
			!regexp.MustCompile(`"takeovers": *[1-9]`).MatchString(status) {
			t.Error("the new pod did not take the run over")
		}
		fresh.stop(second)
	})

	t.Run("refused by the schema", func(t *testing.T) {
		out, err := c.helm("upgrade", "guestflow", chartCopy(t, "0.2.0"), "--values", write(t, values),
			"--set", "port=99999")
		if err == nil || !strings.Contains(out, "at '/port'") {
			t.Errorf("%v\n%s", err, out)
		}
	})

	if out, err := c.helm("uninstall", "guestflow"); err != nil {
		t.Errorf("helm uninstall: %v\n%s", err, out)
	}
}

func startCluster(t *testing.T) *cluster {
	dir, etcd := t.TempDir(), fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
	background(t, exec.Command(filepath.Join(*bin, "etcd"), "--data-dir", dir+"/etcd", "--unsafe-no-fsync",
		"--log-level", "error",
		"--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", fmt.Sprintf(
			"http://127.0.0.1:%d", freePort(t))))
	tokens := filepath.Join(dir, "tokens")
	if err := os.WriteFile(tokens, []byte(adminToken+",admin,admin,system:masters\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, "service-account.key")
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)}
	if err := os.WriteFile(key, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	background(t, exec.Command(filepath.Join(*bin, "kube-apiserver"), "--etcd-servers", etcd, "--bind-address",
		"127.0.0.1", "--secure-port", strconv.Itoa(port),
		"--cert-dir", dir+"/certs", "--token-auth-file", tokens, "--authorization-mode", "RBAC",
		"--disable-admission-plugins", "ServiceAccount",
		"--service-account-issuer", "https://kubernetes", "--service-account-key-file", key,
		"--service-account-signing-key-file", key,
		"--service-cluster-ip-range", "10.96.0.0/16", "-v", "0"))
	ca := filepath.Join(dir, "certs", "apiserver.crt")
	c := &cluster{t: t, url: fmt.Sprintf("https://127.0.0.1:%d", port), ca: ca}
	// The server makes a certificate at its start, and the CA that signed it stands behind it in the file: nothing else
	// is trusted.
	until(t, func() bool {
		made, err := os.ReadFile(c.ca)
		roots := x509.NewCertPool()
		if err != nil || !roots.AppendCertsFromPEM(made) {
			return false
		}
		c.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots,
			MinVersion: tls.VersionTLS12}}}
		return c.get("/readyz") == http.StatusOK
	})
	return c
}

// customResources makes the kinds of the operators, and waits until they are served.
func (c *cluster) customResources() {
	for module, files := range crds {
		dirs, err := download([]string{module})
		if err != nil {
			c.t.Fatal(err)
		}
		for _, file := range files {
			var crd object
			if err := yaml.Unmarshal([]byte(read(c.t, filepath.Join(dirs[module], file))), &crd); err != nil {
				c.t.Fatal(err)
			}
			c.do(http.MethodPost, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd, nil)
			spec := crd["spec"].(object)
			for _, v := range spec["versions"].([]any) {
				if v.(object)["served"] != true {
					continue
				}
				path := fmt.Sprintf("/apis/%v/%v/%v", spec["group"], v.(object)["name"],
					spec["names"].(object)["plural"])
				until(c.t, func() bool { return c.get(path) == http.StatusOK })
			}
		}
	}
}

func (c *cluster) secret(name string, content map[string]string) {
	c.do(http.MethodPost, "/api/v1/namespaces/guestflow/secrets", object{"metadata": object{"name": name},
		"stringData": content}, nil)
}

func (c *cluster) deployment() (d object) {
	c.do(http.MethodGet, "/apis/apps/v1/namespaces/guestflow/deployments/guestflow", nil, &d)
	return d
}

func uid(o object) any { return o["metadata"].(object)["uid"] }

func (c *cluster) get(path string) int {
	req, err := http.NewRequest(http.MethodGet, c.url+path, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	resp, err := c.http.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func (c *cluster) do(method, path string, body, into any) {
	c.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		c.t.Fatal(err)
	}
	req, err := http.NewRequest(method, c.url+path, bytes.NewReader(b))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= http.StatusMultipleChoices {
		c.t.Fatalf("%s %s: %s %v\n%s", method, path, resp.Status, err, said)
	}
	if into != nil {
		if err := json.Unmarshal(said, into); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *cluster) helm(args ...string) (string, error) {
	args = append(args, "--namespace", "guestflow", "--kube-apiserver", c.url, "--kube-token", adminToken,
		"--kube-ca-file", c.ca)
	cmd := exec.Command(filepath.Join(*bin, "helm"), args...)
	cmd.Env = append(os.Environ(), "HOME="+c.t.TempDir(), "KUBECONFIG=")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// pod is a pod's container, run as a process.
type pod struct {
	t   *testing.T
	cmd *exec.Cmd
}

func (c *cluster) start(deployment object, name string) *pod {
	spec := deployment["spec"].(object)["template"].(object)["spec"].(object)
	p := &pod{t: c.t, cmd: c.command(spec, name, filepath.Join(*bin, "consumer"))}
	background(c.t, p.cmd)
	return p
}

// command is what a kubelet would start: the program with the container's arguments, its environment, and its volumes
// as files. They are under a folder of the test, so a setting that begins with the path of a mount begins with that
// folder here.
func (c *cluster) command(spec object, name, program string) *exec.Cmd {
	c.t.Helper()
	root := c.t.TempDir()
	container := spec["containers"].([]any)[0].(object)
	args, _ := container["args"].([]any)
	cmd := exec.Command(program)
	for _, a := range args {
		cmd.Args = append(cmd.Args, a.(string))
	}
	var mounts []string
	all, _ := container["volumeMounts"].([]any)
	for _, m := range all {
		path := m.(object)["mountPath"].(string)
		mounts = append(mounts, path)
		c.mount(spec, m.(object)["name"].(string), filepath.Join(root, path))
	}
	cmd.Env = []string{} // not ours
	for _, e := range container["env"].([]any) {
		e := e.(object)
		value, _ := e["value"].(string)
		if from, ok := e["valueFrom"].(object); ok {
			if from["fieldRef"].(object)["fieldPath"] != "metadata.name" {
				c.t.Fatalf("%v: only the pod's name is known here", e)
			}
			value = name
		}
		for _, m := range mounts {
			if strings.HasPrefix(value, m) {
				value = root + value
			}
		}
		cmd.Env = append(cmd.Env, fmt.Sprintf("%v=%s", e["name"], value))
	}
	return cmd
}

// mount writes a projected volume's files.
func (c *cluster) mount(spec object, volume, dir string) {
	c.t.Helper()
	for _, v := range spec["volumes"].([]any) {
		if v.(object)["name"] != volume {
			continue
		}
		for _, s := range v.(object)["projected"].(object)["sources"].([]any) {
			source := s.(object)["secret"].(object)
			var secret struct{ Data map[string]string }
			c.do(http.MethodGet, fmt.Sprintf("/api/v1/namespaces/guestflow/secrets/%v", source["name"]), nil, &secret)
			for _, i := range source["items"].([]any) {
				content, err := base64.StdEncoding.DecodeString(secret.Data[i.(object)["key"].(string)])
				if err != nil {
					c.t.Fatal(err)
				}
				file := filepath.Join(dir, i.(object)["path"].(string))
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					c.t.Fatal(err)
				}
				if err := os.WriteFile(file, content, 0o600); err != nil {
					c.t.Fatal(err)
				}
			}
		}
		return
	}
	c.t.Fatalf("there is no volume %s", volume)
}

// ready asks as the kubelet does: the probe's path, on the container's port of that name.
func (p *pod) ready(deployment object) {
	p.t.Helper()
	container := deployment["spec"].(object)["template"].(object)["spec"].(object)["containers"].([]any)[0].(object)
	for _, probe := range []string{"startupProbe", "livenessProbe", "readinessProbe"} {
		get := container[probe].(object)["httpGet"].(object)
		port := container["ports"].([]any)[0].(object)
		if port["name"] != get["port"] {
			p.t.Fatalf("%s asks port %v, and the container has %v", probe, get["port"], port)
		}
		url := fmt.Sprintf("http://127.0.0.1:%v%v", port["containerPort"], get["path"])
		until(p.t, func() bool {
			resp, err := http.Get(url)
			if err != nil {
				return false
			}
			resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		})
	}
}

// stop is how a pod ends: SIGTERM, and its grace period.
func (p *pod) stop(deployment object) {
	p.t.Helper()
	pod := deployment["spec"].(object)["template"].(object)["spec"].(object)
	grace := pod["terminationGracePeriodSeconds"].(float64)
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	kill := time.AfterFunc(time.Duration(grace)*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("the service did not end well: %v", err)
	}
}

// sandbox is guestflow sandbox --no-service: a NATS and a simulated vCenter.
type sandbox struct {
	NATS     string
	VCenter  string
	Settings []string
	VMs      []struct{ VM, RequestFile string }

	t        *testing.T
	settings map[string]string
}

func startSandbox(t *testing.T) *sandbox {
	listen := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	cmd := exec.Command(filepath.Join(*bin, "guestflow"), "sandbox", "--no-service", "--json", "--dir", t.TempDir(),
		"--listen", listen)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	background(t, cmd)
	s := &sandbox{t: t, settings: map[string]string{}}
	if err := json.NewDecoder(out).Decode(s); err != nil {
		t.Fatal(err)
	}
	for _, setting := range s.Settings {
		key, value, _ := strings.Cut(setting, "=")
		s.settings[key] = value
	}
	return s
}

// values are an installation for the sandbox, with all that the API server has kinds for.
func (s *sandbox) values(port int) object {
	return object{
		"nats": object{"url": s.NATS},
		"vcenters": object{"lab": object{
			"url": s.VCenter, "username": s.settings["VCENTER_LAB_USERNAME"], "passwordSecret": object{
				"name": "vcenter-lab"}, "caFrom": object{"secret": "vcenter-ca"},
			"guestSecrets": object{"linux-root": object{"secret": "lab-linux-root"}},
			"sendWindow":   "2s", "travelTime": "1s", "visibilityLag": "1s",
		}},
		"ackWait": "5s", "port": port,
		"autoscaling":    object{"keda": object{"enabled": true, "monitoringEndpoint": "nats:8222"}},
		"serviceMonitor": object{"enabled": true}, "prometheusRule": object{"enabled": true}, "dashboards": object{
			"enabled": true},
		"externalSecrets": object{"store": object{"kind": "SecretStore", "name": "vault"},
			"secrets": object{"other": object{"password": object{"key": "other"}}}},
		"tests": object{"vm": s.VMs[0].VM},
	}
}

func (s *sandbox) file(setting string) string { return read(s.t, s.settings[setting]) }

func (s *sandbox) guestflow(args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(*bin, "guestflow"), args...)
	cmd.Env = append(os.Environ(), "NATS_URL="+s.NATS, "GUESTFLOW_VCENTERS=lab")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *sandbox) status(vm string) string {
	out, err := s.guestflow("status", vm, "--json")
	if err != nil {
		return err.Error() + out
	}
	return out
}

// chartCopy is the chart without the NATS chart, which a registry would have to give, and with a version.
func chartCopy(t *testing.T, version string) string {
	dir := filepath.Join(t.TempDir(), "guestflow")
	if err := os.CopyFS(dir, os.DirFS(chartDir)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "Chart.yaml")
	var meta object
	if err := yaml.Unmarshal([]byte(read(t, file)), &meta); err != nil {
		t.Fatal(err)
	}
	delete(meta, "dependencies")
	meta["version"], meta["appVersion"] = version, version
	b, err := yaml.Marshal(meta)
	if err == nil {
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, values object) string {
	b, err := yaml.Marshal(values)
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err == nil {
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// background starts a process that does not outlive the test.
func background(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		if t.Failed() {
			t.Logf("%s said at the end:\n%s", filepath.Base(cmd.Path), log.Bytes()[max(0, log.Len()-4000):])
		}
	})
}

// until asks again and again; it gives up long after anything here takes.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("what was waited for did not come")
		}
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
