package chart

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestRefusals: what is wrong is refused before anything reaches a cluster, with the value's path and what it should
// be.
func TestRefusals(t *testing.T) {
	minimal := combinations(t)["minimal"]
	const (
		nats    = "nats: {url: 'nats://a'}\n"
		vcenter = "vcenters: {lab: {url: 'https://a', username: u, passwordSecret: {name: s}}}\n"
	)
	for _, c := range []struct{ name, values, want string }{
		// by the schema
		{"misspelt value", minimal + "replicas: 2", "additional properties 'replicas' not allowed"},
		{"misspelt below", minimal + "log: {lvl: debug}", "at '/log': additional properties 'lvl' not allowed"},
		{"wrong type", minimal + "replicaCount: two", "at '/replicaCount': got string, want integer"},
		{"no duration", minimal + "ackWait: 30", "at '/ackWait': got number, want string"},
		{"duration without unit", minimal + "ackWait: '30'", "at '/ackWait': '30' does not match pattern"},
		{"unknown level", minimal + "log: {level: verbose}",
			"at '/log/level': value must be one of 'trace', 'debug', 'info', 'warn', 'error'"},
		{"vCenter's name", nats + strings.Replace(vcenter, "lab", "EU_prod", 1),
			"'EU_prod' does not match pattern '^[a-z0-9]"},
		{"vCenter's URL", nats + strings.Replace(vcenter, "https", "http", 1),
			"at '/vcenters/lab/url': 'http://a' does not match pattern '^https://"},
		{"vCenter without password", nats + "vcenters: {lab: {url: 'https://a', username: u}}",
			"at '/vcenters/lab': missing property 'passwordSecret'"},
		{"password in the values", minimal + "    password: secret",
			"at '/vcenters/lab': additional properties 'password' not allowed"},
		{"password in NATS' URL", vcenter + "nats: {url: 'nats://u:p@a'}", "at '/nats/url'"},
		{"no replicas of a stream", minimal + "streams: {replicas: 0}",
			"at '/streams/replicas': minimum: got 0, want 1"},
		{"scaling to nothing", minimal + "autoscaling: {keda: {minReplicas: 0}}",
			"at '/autoscaling/keda/minReplicas': minimum: got 0, want 1"},
		{"Secret without its name", vcenter + "nats: {url: 'nats://a', credsSecret: {key: a}}",
			"missing property 'name'"},
		// by the templates
		{"nothing", "", "- vcenters: name at least one, with url, username and passwordSecret\n- nats.url: say where " +
			"NATS is"},
		{"two NATS", minimal + "nats-server: {enabled: true}", "nats.url and nats-server.enabled: set one of them"},
		{"two users", vcenter + "nats: {url: 'nats://a', user: u, passwordSecret: {name: s}, credsSecret: {name: s}}",
			"nats: set one of"},
		{"half a user", vcenter + "nats: {url: 'nats://a', user: u}",
			"nats.user and nats.passwordSecret: set both or none"},
		{"half a user of the test", minimal + "tests: {nats: {user: u}}",
			"tests.nats.user and tests.nats.passwordSecret: set both or none"},
		{"domain and prefix", vcenter + "nats: {url: 'nats://a', jsDomain: a, jsApiPrefix: b}",
			"nats.jsDomain and nats.jsApiPrefix: set one of them"},
		{"two CAs", vcenter + "nats: {url: 'nats://a', caFrom: {secret: a, configMap: b}}",
			"nats.caFrom: set either secret or configMap"},
		{"no CA", nats + strings.Replace(vcenter, "}}}", "}, caFrom: {key: a}}}", 1),
			"vcenters.lab.caFrom: set either secret or configMap"},
		{"setting twice", minimal + "extraEnv: [{name: LOG_LEVEL, value: debug}]",
			"extraEnv: LOG_LEVEL is set by the chart already"},
		{"password by the back door", minimal + "extraEnv: [{name: VCENTER_LAB_PASSWORD, value: a}]",
			"a password comes from a Secret"},
		{"the selector's label", minimal + "podLabels: {app.kubernetes.io/name: a}",
			"podLabels: app.kubernetes.io/name is set by the chart"},
		{"two scalers", minimal + "autoscaling: {hpa: {enabled: true}, keda: {enabled: true, monitoringEndpoint: " +
			"'a:1'}}", "enable one of them"},
		{"fewer than few", minimal + "autoscaling: {hpa: {minReplicas: 9}}",
			"autoscaling.hpa: minReplicas is above maxReplicas"},
		{"KEDA without an endpoint", minimal + "autoscaling: {keda: {enabled: true}}",
			"autoscaling.keda.monitoringEndpoint: say where"},
		{"headers for nobody", minimal + "tracing: {headersSecret: {name: a}}",
			"tracing.headersSecret: without tracing.endpoint nothing is sent"},
		{"secrets from nowhere", minimal + "externalSecrets: {secrets: {a: {b: {key: c}}}}",
			"externalSecrets.store: set kind and name"},
		{"a test of nobody's VM", minimal + "tests: {vm: vm-1, vcenter: prod}",
			"tests.vcenter: prod is none of vcenters"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := render(load(t), c.values)
			if err == nil {
				t.Fatal("was taken")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is\n%v\nwant in it\n%s", err, c.want)
			}
		})
	}
}

// TestRefusalInFull holds what docs/operate/helm.md shows of a refusal, by the schema and by the templates.
func TestRefusalInFull(t *testing.T) {
	values, err := os.ReadFile("testdata/refused.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/refused.txt")
	if err != nil {
		t.Fatal(err)
	}
	_, bySchema := render(load(t), string(values)+"log: { level: verbose }\nreplicas: 3\n")
	_, byTemplates := render(load(t), string(values))
	have := strings.ReplaceAll(fmt.Sprintf("%v\n%v", bySchema, byTemplates), ": \n\n", ":\n\n")
	if strings.TrimSpace(have) != strings.TrimSpace(string(want)) {
		t.Errorf("the refusals are\n%s\nand testdata/refused.txt has\n%s", have, want)
	}
}
