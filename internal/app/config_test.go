package app_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sethvargo/go-envconfig"

	"github.com/guestflow/guestflow/internal/app"
)

// settings are the smallest that work, changed as a test wants: an empty value stands for set but empty, "-" for not
// set.
func settings(t *testing.T, change map[string]string) envconfig.Lookuper {
	t.Helper()
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("secret-canary\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{
		"GUESTFLOW_VCENTERS":        "lab",
		"VCENTER_LAB_URL":           "https://vc.example.test",
		"VCENTER_LAB_USERNAME":      "svc",
		"VCENTER_LAB_PASSWORD_FILE": password,
	}
	for k, v := range change {
		if v == "-" {
			delete(env, k)
			continue
		}
		env[k] = v
	}
	return envconfig.MapLookuper(env)
}

// What is not set, or empty, has its default; a replica that is not given a name is called by its host's.
func TestLoadConfigDefaults(t *testing.T) {
	t.Parallel()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	want := app.Service{
		SecretsDir:          "/var/run/secrets/guestflow",
		StreamReplicas:      1,
		EventsMaxAge:        720 * time.Hour,
		DeadlettersMaxAge:   168 * time.Hour,
		DeadlettersMaxBytes: 256 << 20,
		QueuePerVM:          2,
		Provision:           true,
		EventMode:           "structured",
		AckWait:             30 * time.Second,
		DrainTimeout:        25 * time.Second,
		HTTPAddr:            ":8080",
		LogLevel:            "info",
		LogFormat:           "json",
	}
	for given, instance := range map[string]string{"pod-a": "pod-a", "": host, "-": host} {
		cfg, err := app.LoadConfig(
			settings(t, map[string]string{"GUESTFLOW_INSTANCE": given, "GUESTFLOW_ACK_WAIT": ""}))
		if err != nil {
			t.Fatal(err)
		}
		want.Instance = instance
		if diff := cmp.Diff(want, cfg.Service); diff != "" {
			t.Errorf("GUESTFLOW_INSTANCE %q: service settings (-want +got):\n%s", given, diff)
		}
		if cfg.NATS.URL != "nats://127.0.0.1:4222" {
			t.Errorf("NATS_URL: got %q", cfg.NATS.URL)
		}
		v := cfg.VCenters[0]
		if v.Name != "lab" || v.MaxInFlight != 64 || v.SendWindow != 5*time.Second || v.TravelTime != 10*time.Second ||
			v.VisibilityLag != 30*time.Second {
			t.Errorf("vCenter: got %s with %d in flight, T %s, D %s, V %s", v, v.MaxInFlight, v.SendWindow,
				v.TravelTime, v.VisibilityLag)
		}
	}
}

func TestLoadConfigManyVCenters(t *testing.T) {
	t.Parallel()
	cfg, err := app.LoadConfig(
		settings(t, map[string]string{
			"GUESTFLOW_VCENTERS":            " lab , eu-prod ",
			"VCENTER_EU_PROD_URL":           "https://10.0.0.1:8443/",
			"VCENTER_EU_PROD_USERNAME":      "svc",
			"VCENTER_EU_PROD_PASSWORD":      "secret-canary",
			"VCENTER_EU_PROD_MAX_IN_FLIGHT": "8",
		}),
	)
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.VCenters) != 2 || cfg.VCenters[1].Name != "eu-prod" || cfg.VCenters[1].URL != "https://10.0.0.1:8443" ||
		cfg.VCenters[1].MaxInFlight != 8 {
		t.Errorf("got %v", cfg.VCenters)
	}
	if shown := fmt.Sprintf("%v %+v %#v", cfg.VCenters[1], cfg, cfg); strings.Contains(shown, "secret-canary") {
		t.Errorf("a password shows when the settings are printed: %s", shown)
	}
}

// Every fault is named in one message: whoever starts the service wrongly starts it once more, not once per fault.
func TestLoadConfigNamesEveryFault(t *testing.T) {
	t.Parallel()
	notPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(notPEM, []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	change := map[string]string{
		"GUESTFLOW_VCENTERS":          "lab,,lab,Prod",
		"VCENTER_LAB_URL":             "http://svc:secret-canary@vc.example.test/sdk",
		"VCENTER_LAB_USERNAME":        "",
		"VCENTER_LAB_PASSWORD_FILE":   "/nowhere/password",
		"VCENTER_LAB_CA_FILE":         notPEM,
		"VCENTER_LAB_THUMBPRINT":      "ab:cd",
		"VCENTER_LAB_MAX_IN_FLIGHT":   "many",
		"VCENTER_LAB_SEND_WINDOW":     "0s",
		"NATS_URL":                    "http://nats",
		"NATS_CREDS_FILE":             "/nowhere/creds",
		"NATS_USER":                   "me",
		"NATS_CA_FILE":                notPEM,
		"NATS_CERT_FILE":              notPEM,
		"GUESTFLOW_ACK_WAIT":          "soon",
		"GUESTFLOW_STREAM_REPLICAS":   "0",
		"GUESTFLOW_EVENT_MODE":        "avro",
		"HTTP_ADDR":                   "8080",
		"LOG_LEVEL":                   "loud",
		"LOG_FORMAT":                  "xml",
		"GUESTFLOW_PROVISION":         "perhaps",
		"GUESTFLOW_QUEUE_PER_VM":      "-1",
		"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317",
		"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
		"OTEL_TRACES_EXPORTER":        "jaeger",
		"OTEL_EXPORTER_OTLP_HEADERS":  "Bearer secret-canary",
	}
	_, err := app.LoadConfig(settings(t, change))
	if err == nil {
		t.Fatal("all of this was accepted")
	}
	for key := range change {
		if !strings.Contains(err.Error(), key) {
			t.Errorf("%s is wrong and not named", key)
		}
	}
	for _, words := range []string{`"Prod"`, "is there twice", "empty entry"} {
		if !strings.Contains(err.Error(), words) {
			t.Errorf("the error does not say %s", words)
		}
	}
	if strings.Contains(err.Error(), "secret-canary") {
		t.Error("the error shows a password")
	}
	if t.Failed() {
		t.Log(err)
	}
}

func TestLoadConfigRefusesOne(t *testing.T) {
	t.Parallel()
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("no key, no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		change map[string]string
		want   string
	}{
		{"no vCenter", map[string]string{"GUESTFLOW_VCENTERS": " "}, "GUESTFLOW_VCENTERS: required"},
		{"two passwords", map[string]string{"VCENTER_LAB_PASSWORD": "x"}, "not both"},
		{"no password", map[string]string{"VCENTER_LAB_PASSWORD_FILE": "-"}, "VCENTER_LAB_PASSWORD_FILE: required"},
		{"URL with a path", map[string]string{"VCENTER_LAB_URL": "https://vc.example.test/sdk"}, "without path"},
		{"domain and prefix", map[string]string{"NATS_JS_DOMAIN": "a", "NATS_JS_API_PREFIX": "b"}, "set one of them"},
		{
			"a bad number is named once",
			map[string]string{"VCENTER_LAB_MAX_IN_FLIGHT": "many"},
			`VCENTER_LAB_MAX_IN_FLIGHT: "many" is not a whole number`,
		},
		{
			"a duration without a unit",
			map[string]string{"GUESTFLOW_ACK_WAIT": "30"},
			`GUESTFLOW_ACK_WAIT: "30" is not a duration such as`,
		},
		{
			"neither true nor false",
			map[string]string{"GUESTFLOW_PROVISION": "maybe"},
			`GUESTFLOW_PROVISION: "maybe" is neither true nor false`,
		},
		{
			"no secrets folder",
			map[string]string{"GUESTFLOW_SECRETS_DIR": "/nowhere"},
			`GUESTFLOW_SECRETS_DIR: open /nowhere`,
		},
		{"no creds", map[string]string{"NATS_CREDS_FILE": garbage}, `NATS_CREDS_FILE: `},
		{"no nkey", map[string]string{"NATS_NKEY_FILE": garbage}, `holds no seed of a user's key`},
		{"no key pair", map[string]string{"NATS_CERT_FILE": garbage, "NATS_KEY_FILE": garbage}, `NATS_CERT_FILE: `},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := app.LoadConfig(settings(t, test.change))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q in it", err, test.want)
			}
			if err != nil && strings.Count(err.Error(), "MAX_IN_FLIGHT") > 1 {
				t.Errorf("named more than once: %v", err)
			}
		})
	}
}

// Whatever the environment holds: no panic, a refusal names the settings, and no password is in it.
func FuzzLoadConfig(f *testing.F) {
	f.Add(
		"GUESTFLOW_VCENTERS=lab,prod\nVCENTER_LAB_URL=https://vc\nVCENTER_LAB_USERNAME=a\n" +
			"VCENTER_LAB_PASSWORD=x\nNATS_URL=nats://h:1,tls://b",
	)
	f.Add(
		"GUESTFLOW_VCENTERS=a-b\nVCENTER_A_B_URL=https://u:p@vc/x?y\nVCENTER_A_B_PASSWORD=x\n" +
			"VCENTER_A_B_THUMBPRINT=00:11",
	)
	f.Add(
		"GUESTFLOW_VCENTERS=lab\nGUESTFLOW_ACK_WAIT=1\nGUESTFLOW_PROVISION=maybe\n" +
			"VCENTER_LAB_MAX_IN_FLIGHT=1e3\nHTTP_ADDR=8080\nLOG_LEVEL=loud",
	)
	f.Fuzz(func(t *testing.T, lines string) {
		const canary = "secret-canary"
		env := map[string]string{}
		for line := range strings.Lines(lines) {
			key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
			switch {
			case strings.HasSuffix(key, "_FILE"),
				strings.HasSuffix(key, "_DIR"),
				strings.Contains(line, canary): // what lies on this machine is not to be read
			case strings.HasSuffix(key, "_PASSWORD") && value != "":
				env[key] = canary
			default:
				env[key] = value
			}
		}
		cfg, err := app.LoadConfig(envconfig.MapLookuper(env))
		if shown := fmt.Sprintf("%v %v %+v %#v", err, cfg.VCenters, cfg.VCenters, cfg.VCenters); strings.Contains(shown,
			canary) {
			t.Errorf("a password is shown: %s", shown)
		}
		if err != nil {
			return
		}
		if len(cfg.VCenters) == 0 {
			t.Error("taken without a vCenter")
		}
		for _, v := range cfg.VCenters {
			if v.MaxInFlight < 1 || v.SendWindow <= 0 || v.TravelTime <= 0 || v.VisibilityLag <= 0 ||
				!strings.HasPrefix(v.URL, "https://") {
				t.Errorf("taken: %s", v)
			}
		}
	})
}
