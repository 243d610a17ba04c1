package chart

import (
	"encoding/json"
	"os"
	"reflect"
	"testing"
	"time"
)

// TestNACK compares the resources of the NATS JetStream controller with what the service makes itself for the same
// settings, as testdata/nack.json has it: a test of the service writes that.
func TestNACK(t *testing.T) {
	b, err := os.ReadFile("testdata/nack.json")
	if err != nil {
		t.Fatal(err)
	}
	var service struct{ Streams, Requests, Consumers []object }
	if err := json.Unmarshal(b, &service); err != nil {
		t.Fatal(err)
	}
	want := map[string]object{}
	for _, o := range append(service.Streams, service.Requests...) {
		want["Stream "+o["name"].(string)] = durations(t, o)
	}
	for _, o := range service.Consumers {
		want["Consumer "+o["durableName"].(string)] = durations(t, o)
	}
	all, _ := manifests(t, combinations(t)["nack"])
	for _, o := range all {
		if o["apiVersion"] != "jetstream.nats.io/v1beta2" {
			continue
		}
		spec := o["spec"].(object)
		if spec["preventDelete"] != true || spec["account"] != "guestflow" {
			t.Errorf("%v: preventDelete %v, account %v", o["metadata"], spec["preventDelete"], spec["account"])
		}
		delete(spec, "preventDelete")
		delete(spec, "account")
		name, _ := spec["name"].(string)
		if o["kind"] == "Consumer" {
			name = spec["durableName"].(string)
		}
		key := o["kind"].(string) + " " + name
		if !reflect.DeepEqual(durations(t, spec), want[key]) {
			t.Errorf("%s is\n%v\nand the service makes\n%v", key, spec, want[key])
		}
		delete(want, key)
	}
	for key := range want {
		t.Errorf("%s is missing", key)
	}
}

// durations writes them all alike: 720h and 720h0m0s are one.
func durations(t *testing.T, o object) object {
	t.Helper()
	for _, key := range []string{"maxAge", "duplicateWindow", "ackWait"} {
		text, set := o[key].(string)
		if !set {
			continue
		}
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		o[key] = d.String()
	}
	return o
}
