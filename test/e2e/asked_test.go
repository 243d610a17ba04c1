package e2e

import (
	"strings"
	"testing"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// Secrets that a request names reach the guest. (That they are in nothing that anybody can read is looked at at the end
// of every test: see checkNoSecrets, and launch.)
func TestNamedSecretsStaySecret(t *testing.T) {
	t.Parallel()
	s := newHarness(t, startNATS(t), vcsim.Options{})
	fastGuests(s.vc)
	const canary = "canary-7f1d"
	for _, key := range []string{"join", "param", "token"} {
		s.secret("ad", key, canary+"-"+key)
	}
	data := fullRequest("exit 0")
	customize := data["customize"].(map[string]any)
	identity := customize["spec"].(map[string]any)["identity"].(map[string]any)
	named := func(key string) map[string]any { return map[string]any{"secretRef": "ad", "key": key} }
	identity["password"] = map[string]any{"_typeName": "CustomizationPassword", "value": named("join"),
		"plainText": true}
	customize["configParams"] = []any{map[string]any{"_typeName": "OptionValue", "key": "k",
		"value": map[string]any{"_typeName": "string", "_value": named("param")}}}
	data["processes"].([]any)[0].(map[string]any)["run"].(map[string]any)["environment"] = map[string]any{
		"TOKEN": named("token")}

	var reached []string // what of it vCenter was sent
	s.vc.OnCall(func(c vcsim.Call, phase vcsim.Phase) vcsim.Action {
		if phase == vcsim.Before && (c.Op == "CustomizeGuest_Task" || c.Op == "guest/processes create") {
			reached = append(reached, c.Body)
		}
		return vcsim.Proceed
	})
	p := s.start()
	vm := s.vc.VMs()[0]
	s.publish(vm, "r-1", data)
	if e := s.ended("r-1"); e.kind != "run.succeeded" {
		t.Fatalf("ended with %s: %s", e.kind, e.Data)
	}
	if sent := strings.Join(reached, "\n"); !strings.Contains(sent, canary+"-param") ||
		!strings.Contains(sent, canary+"-token") || strings.Contains(sent, "secretRef") {
		t.Errorf("vCenter was sent %s", sent)
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
}
