// Package app wires the service together: it reads the settings, connects to NATS, and starts a client, a handler and
// the consumers for each vCenter.
package app

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nkeys"
	"github.com/sethvargo/go-envconfig"

	"github.com/guestflow/guestflow/internal/events/stream"
	"github.com/guestflow/guestflow/internal/handler"
	"github.com/guestflow/guestflow/internal/secretfile"
	"github.com/guestflow/guestflow/internal/tracing"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// Config is the service's settings. LoadConfig reads them from the environment, all at once, and checks them before the
// service connects to anything. A secret is the path of a file wherever the setting allows one.
type Config struct {
	NATS     NATS
	Service  Service
	VCenters []VCenter
	Version  string // of this program, for metrics and traces
	Commit   string // it was built from

	logLevel *logLevel
	traces   bool // OTEL_… settings ask for them
}

// names are the vCenters'.
func (c Config) names() []string {
	names := make([]string, len(c.VCenters))
	for i, v := range c.VCenters {
		names[i] = v.Name
	}
	return names
}

// Streams are the settings of the streams and consumers.
func (c Config) Streams() stream.Settings {
	s := stream.Settings{
		Provision:           c.Service.Provision,
		Replicas:            c.Service.StreamReplicas,
		EventsMaxAge:        c.Service.EventsMaxAge,
		EventsMaxBytes:      c.Service.EventsMaxBytes,
		DeadlettersMaxAge:   c.Service.DeadlettersMaxAge,
		DeadlettersMaxBytes: c.Service.DeadlettersMaxBytes,
		QueuePerVM:          c.Service.QueuePerVM,
		AckWait:             c.Service.AckWait,
		MaxInFlight:         map[string]int{},
	}
	for _, v := range c.VCenters {
		s.MaxInFlight[v.Name] = v.MaxInFlight
	}
	return s
}

// handler are the settings of the handler of a vCenter's requests.
func (c Config) handler(v VCenter) handler.Settings {
	return handler.Settings{
		VCenter:       v.Name,
		Instance:      c.Service.Instance,
		SendWindow:    v.SendWindow,
		TravelTime:    v.TravelTime,
		VisibilityLag: v.VisibilityLag,
		AckWait:       c.Service.AckWait,
		Drain:         c.Service.DrainTimeout,
	}
}

// NATS is how to reach the NATS servers.
type NATS struct {
	URL          string `env:"NATS_URL, default=nats://127.0.0.1:4222"` // several, comma separated, for a cluster
	CredsFile    string `env:"NATS_CREDS_FILE"`
	NKeyFile     string `env:"NATS_NKEY_FILE"`
	User         string `env:"NATS_USER"`
	PasswordFile string `env:"NATS_PASSWORD_FILE"`
	CAFile       string `env:"NATS_CA_FILE"`
	CertFile     string `env:"NATS_CERT_FILE"`
	KeyFile      string `env:"NATS_KEY_FILE"`
	JSDomain     string `env:"NATS_JS_DOMAIN"`
	JSAPIPrefix  string `env:"NATS_JS_API_PREFIX"`
	InboxPrefix  string `env:"NATS_INBOX_PREFIX"`
}

// Stream is how the stream package reaches NATS. name is what the server's monitoring calls the connection.
func (n NATS) Stream(name string) stream.Config {
	return stream.Config{
		Name:         name,
		URL:          n.URL,
		CredsFile:    n.CredsFile,
		NKeyFile:     n.NKeyFile,
		User:         n.User,
		PasswordFile: n.PasswordFile,
		CAFile:       n.CAFile,
		CertFile:     n.CertFile,
		KeyFile:      n.KeyFile,
		JSDomain:     n.JSDomain,
		JSAPIPrefix:  n.JSAPIPrefix,
		InboxPrefix:  n.InboxPrefix,
	}
}

// Service is the settings of the process as a whole.
type Service struct {
	// SecretsDir has the secrets that requests name: <vcenter>/<name>/<key>.
	SecretsDir string `env:"GUESTFLOW_SECRETS_DIR, default=/var/run/secrets/guestflow"`
	// Instance is owner.instance in the events; by default the host name.
	Instance string `env:"GUESTFLOW_INSTANCE"`

	Provision         bool          `env:"GUESTFLOW_PROVISION, default=true"`
	StreamReplicas    int           `env:"GUESTFLOW_STREAM_REPLICAS, default=1"`
	EventsMaxAge      time.Duration `env:"GUESTFLOW_EVENTS_MAX_AGE, default=720h"`
	EventsMaxBytes    int64         `env:"GUESTFLOW_EVENTS_MAX_BYTES"` // 0: no limit
	DeadlettersMaxAge time.Duration `env:"GUESTFLOW_DEADLETTERS_MAX_AGE, default=168h"`
	// DeadlettersMaxBytes is the disk space for refused messages; the oldest are removed first.
	DeadlettersMaxBytes int64  `env:"GUESTFLOW_DEADLETTERS_MAX_BYTES, default=268435456"`
	QueuePerVM          int    `env:"GUESTFLOW_QUEUE_PER_VM, default=2"`
	EventMode           string `env:"GUESTFLOW_EVENT_MODE, default=structured"` // or binary

	// AckWait is how soon another replica takes over the runs of a dead one.
	AckWait      time.Duration `env:"GUESTFLOW_ACK_WAIT, default=30s"`
	DrainTimeout time.Duration `env:"GUESTFLOW_DRAIN_TIMEOUT, default=25s"`

	HTTPAddr  string `env:"HTTP_ADDR, default=:8080"`
	LogLevel  string `env:"LOG_LEVEL, default=info"`
	LogFormat string `env:"LOG_FORMAT, default=json"` // or console
}

// VCenter is the settings of one vCenter: VCENTER_<NAME>_…, its name in capitals with "_" for "-".
type VCenter struct {
	Name         string
	URL          string `env:"URL, required"` // https://host, no path
	Username     string `env:"USERNAME, required"`
	PasswordFile string `env:"PASSWORD_FILE"` // read at each login, so that a rotated password works
	Password     string `env:"PASSWORD"`
	CAFile       string `env:"CA_FILE"`
	Thumbprint   string `env:"THUMBPRINT"` // SHA-256 of the certificate

	// MaxInFlight is how many unfinished requests are delivered, to all replicas together.
	MaxInFlight int `env:"MAX_IN_FLIGHT, default=64"`

	// SendWindow, TravelTime and VisibilityLag bound how long a call may still take effect after its owner has died;
	// docs/operate/reliability.md says what follows from them.
	SendWindow    time.Duration `env:"SEND_WINDOW, default=5s"`
	TravelTime    time.Duration `env:"TRAVEL_TIME, default=10s"`
	VisibilityLag time.Duration `env:"VISIBILITY_LAG, default=30s"`

	roots *x509.CertPool
}

// String leaves the password out.
func (v VCenter) String() string { return fmt.Sprintf("%s at %s as %s", v.Name, v.URL, v.Username) }

// GoString is String, for %#v.
func (v VCenter) GoString() string { return v.String() }

// password is called at each login, so that a rotated password works.
func (v VCenter) password() (string, error) {
	if v.PasswordFile == "" {
		return v.Password, nil
	}
	password, err := secretfile.ReadFile(v.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("password of vCenter %s: %w", v.Name, err)
	}
	return password, nil
}

// Client is the configuration of a client for this vCenter. v must come from LoadConfig, which reads the CA file.
func (v VCenter) Client() vcapi.Config {
	return vcapi.Config{
		Name:       v.Name,
		URL:        v.URL,
		Username:   v.Username,
		Password:   v.password,
		RootCAs:    v.roots,
		Thumbprint: v.Thumbprint,
		TravelTime: v.TravelTime,
	}
}

// LoadConfig reads and checks the settings. Its error names every fault, not only the first.
func LoadConfig(env envconfig.Lookuper) (Config, error) {
	env = nonEmpty{env}
	var c Config
	var wrong []error
	wrong = append(wrong, load(&c.NATS, "", env)...)
	wrong = append(wrong, load(&c.Service, "", env)...)
	if c.Service.Instance == "" {
		name, err := os.Hostname()
		if err != nil {
			wrong = append(wrong, fmt.Errorf("GUESTFLOW_INSTANCE: not set, and the host name cannot be read: %w", err))
		}
		c.Service.Instance = name
	}
	if dir, set := env.Lookup("GUESTFLOW_SECRETS_DIR"); set { // without secrets in requests the default need not exist
		if _, err := os.ReadDir(dir); err != nil {
			wrong = append(wrong, fmt.Errorf("GUESTFLOW_SECRETS_DIR: %w", err))
		}
	}
	wrong = withoutRepeats(wrong, append(c.NATS.check(), c.Service.check()...))
	wrong = append(wrong, tracing.Check(env)...)
	c.traces, c.logLevel = tracing.Wanted(env), newLogLevel(c.Service.LogLevel)

	list, _ := env.Lookup("GUESTFLOW_VCENTERS")
	vcenters, errs := loadVCenters(list, env)
	c.VCenters = vcenters
	wrong = append(wrong, errs...)

	if len(wrong) > 0 {
		return c, fmt.Errorf("settings: %w", errors.Join(wrong...))
	}
	return c, nil
}

// nonEmpty treats a variable that is empty as one that is not set.
type nonEmpty struct{ envconfig.Lookuper }

// Lookup implements envconfig.Lookuper.
func (n nonEmpty) Lookup(key string) (string, bool) {
	v, ok := n.Lookuper.Lookup(key)
	v = strings.TrimSpace(v)
	return v, ok && v != ""
}

// withoutRepeats appends the errors of more, except those about a setting that has an error already: a value that
// cannot be read need not be checked.
func withoutRepeats(all, more []error) []error {
	key := func(err error) string {
		k, _, _ := strings.Cut(err.Error(), ":")
		return k
	}
	for _, err := range more {
		if !slices.ContainsFunc(all, func(e error) bool { return key(e) == key(err) }) {
			all = append(all, err)
		}
	}
	return all
}

// load reads a struct of settings. envconfig stops at its first error: to find every fault, each field is read alone.
func load[T any](into *T, prefix string, env envconfig.Lookuper) []error {
	var wrong []error
	v := reflect.ValueOf(into).Elem()
	for i := range v.NumField() {
		field := v.Type().Field(i)
		key, _, _ := strings.Cut(field.Tag.Get("env"), ",")
		if key == "" {
			continue
		}
		one := reflect.New(reflect.StructOf([]reflect.StructField{field}))
		err := envconfig.ProcessWith(context.Background(), &envconfig.Config{
			Target:   one.Interface(),
			Lookuper: envconfig.PrefixLookuper(prefix, env),
		})
		if err != nil {
			value, _ := env.Lookup(prefix + key)
			wrong = append(wrong, fmt.Errorf("%s%s: %s", prefix, key, reason(err, value, field.Type)))
			continue
		}
		v.Field(i).Set(one.Elem().Field(0))
	}
	return wrong
}

// reason says what is wrong with a value that cannot be read. It may quote the value: settings that hold a secret are
// strings, which can always be read.
func reason(err error, value string, into reflect.Type) string {
	switch {
	case errors.Is(err, envconfig.ErrMissingRequired):
		return "required, and not set"
	case into == reflect.TypeFor[time.Duration]():
		return fmt.Sprintf("%q is not a duration such as 90s, 20m or 720h", value)
	case into.Kind() == reflect.Bool:
		return fmt.Sprintf("%q is neither true nor false", value)
	}
	return fmt.Sprintf("%q is not a whole number", value)
}

func (n NATS) check() []error {
	var wrong []error
	for _, u := range strings.Split(n.URL, ",") {
		if !isNATSURL(strings.TrimSpace(u)) {
			wrong = append(wrong, fmt.Errorf("NATS_URL: %q is not nats://host:port (or tls, ws, wss)", redact(u)))
		}
	}

	wrong = append(wrong, secretFileReadable("NATS_CREDS_FILE", n.CredsFile)...)
	wrong = append(wrong, secretFileReadable("NATS_NKEY_FILE", n.NKeyFile)...)
	wrong = append(wrong, secretFileReadable("NATS_PASSWORD_FILE", n.PasswordFile)...)
	wrong = append(wrong, secretFileReadable("NATS_KEY_FILE", n.KeyFile)...)
	wrong = append(wrong, fileReadable("NATS_CERT_FILE", n.CertFile)...)
	wrong = append(wrong, userKey("NATS_CREDS_FILE", n.CredsFile, true)...)
	wrong = append(wrong, userKey("NATS_NKEY_FILE", n.NKeyFile, false)...)
	if _, err := caPool("NATS_CA_FILE", n.CAFile); err != nil {
		wrong = append(wrong, err)
	}
	wrong = append(wrong, n.checkCertificate()...)

	if (n.User == "") != (n.PasswordFile == "") {
		wrong = append(wrong, errors.New("NATS_USER and NATS_PASSWORD_FILE: set both or none"))
	}
	if n.JSDomain != "" && n.JSAPIPrefix != "" {
		wrong = append(wrong, errors.New("NATS_JS_DOMAIN and NATS_JS_API_PREFIX: set one of them"))
	}
	return wrong
}

// isNATSURL reports whether a text is the URL of a NATS server.
func isNATSURL(text string) bool {
	u, err := url.Parse(text)
	return err == nil && u.Host != "" && slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme)
}

// checkCertificate checks that the client's certificate and its key belong together.
func (n NATS) checkCertificate() []error {
	if (n.CertFile == "") != (n.KeyFile == "") {
		return []error{errors.New("NATS_CERT_FILE and NATS_KEY_FILE: set both or none")}
	}
	if n.CertFile == "" || len(fileReadable("", n.CertFile)) > 0 || len(secretFileReadable("", n.KeyFile)) > 0 {
		return nil
	}
	if _, err := tls.LoadX509KeyPair(n.CertFile, n.KeyFile); err != nil {
		return []error{fmt.Errorf("NATS_CERT_FILE: %s and %s are no certificate with its key in PEM: %w",
			n.CertFile, n.KeyFile, err)}
	}
	return nil
}

// userKey checks that a file holds the seed of a NATS user's key and, for jwt, the user's JWT. A file that cannot be
// read has an error already.
func userKey(key, file string, jwt bool) []error {
	text, err := secretfile.ReadFile(file)
	if file == "" || err != nil {
		return nil
	}
	content := []byte(text)
	if token, err := nkeys.ParseDecoratedJWT(content); jwt && (err != nil || strings.Count(token, ".") != 2) {
		return []error{fmt.Errorf("%s: %s holds no user JWT: it is the file that nsc writes for a user", key, file)}
	}
	pair, err := nkeys.ParseDecoratedUserNKey(content)
	if err != nil { // its text may quote the file
		return []error{fmt.Errorf("%s: %s holds no seed of a user's key (SU…)", key, file)}
	}
	pair.Wipe()
	return nil
}

// redact replaces user and password in a URL.
func redact(u string) string {
	if _, host, ok := strings.Cut(u, "@"); ok {
		return "***@" + host
	}
	return u
}

// minDeadletters is the least value of GUESTFLOW_DEADLETTERS_MAX_BYTES.
const minDeadletters = 1 << 20

func (s Service) check() []error {
	var wrong faults
	wrong.unless(s.StreamReplicas >= 1 && s.StreamReplicas <= 5,
		"GUESTFLOW_STREAM_REPLICAS", "%d is not 1 to 5 (3 in a cluster)", s.StreamReplicas)
	wrong.unless(s.QueuePerVM >= 1, "GUESTFLOW_QUEUE_PER_VM", "%d is less than 1", s.QueuePerVM)
	wrong.unless(s.EventsMaxBytes >= 0, "GUESTFLOW_EVENTS_MAX_BYTES", "%d is negative", s.EventsMaxBytes)
	wrong.unless(s.DeadlettersMaxBytes >= minDeadletters, "GUESTFLOW_DEADLETTERS_MAX_BYTES",
		"%d is less than %d, which a few of the largest messages need", s.DeadlettersMaxBytes, minDeadletters)

	wrong.atLeast("GUESTFLOW_EVENTS_MAX_AGE", s.EventsMaxAge, time.Hour)
	wrong.atLeast("GUESTFLOW_DEADLETTERS_MAX_AGE", s.DeadlettersMaxAge, time.Minute)
	wrong.atLeast("GUESTFLOW_ACK_WAIT", s.AckWait, time.Second)
	wrong.atLeast("GUESTFLOW_DRAIN_TIMEOUT", s.DrainTimeout, 0)

	wrong.unless(s.EventMode == "structured" || s.EventMode == "binary",
		"GUESTFLOW_EVENT_MODE", "%q is neither structured nor binary", s.EventMode)
	_, _, err := net.SplitHostPort(s.HTTPAddr)
	wrong.unless(err == nil, "HTTP_ADDR", "%q is not host:port or :port", s.HTTPAddr)
	_, ok := levelOf(s.LogLevel)
	wrong.unless(ok, "LOG_LEVEL", "%q is none of %s", s.LogLevel, levelNames)
	wrong.unless(s.LogFormat == "json" || s.LogFormat == "console",
		"LOG_FORMAT", "%q is neither json nor console", s.LogFormat)
	return wrong
}

// faults are errors about settings, each of which begins with its setting's key.
type faults []error

// unless adds an error if a value is not right.
func (f *faults) unless(right bool, key, format string, args ...any) {
	if !right {
		*f = append(*f, fmt.Errorf(key+": "+format, args...))
	}
}

// atLeast adds an error if a duration is too short.
func (f *faults) atLeast(key string, is, least time.Duration) {
	f.unless(is >= least, key, "%s is less than %s", is, least)
}

// vcenterName is the form of a vCenter's name, which is a token of subjects and part of stream names.
var vcenterName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

func loadVCenters(list string, env envconfig.Lookuper) ([]VCenter, []error) {
	if list == "" {
		return nil, []error{
			errors.New("GUESTFLOW_VCENTERS: required, and not set: the names of the vCenters, such as lab,prod"),
		}
	}
	var all []VCenter
	var wrong []error
	seen := map[string]bool{}
	for _, name := range strings.Split(list, ",") {
		name = strings.TrimSpace(name)
		switch {
		case name == "":
			wrong = append(wrong, fmt.Errorf("GUESTFLOW_VCENTERS: %q has an empty entry", list))
			continue
		case seen[name]:
			wrong = append(wrong, fmt.Errorf("GUESTFLOW_VCENTERS: %q is there twice", name))
			continue
		case !vcenterName.MatchString(name):
			wrong = append(wrong, fmt.Errorf("GUESTFLOW_VCENTERS: %q: a name is 1 to 32 of a-z, 0-9 and '-', "+
				"and begins and ends with a letter or digit", name))
			continue
		}
		seen[name] = true
		v := VCenter{Name: name}
		prefix := "VCENTER_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_")) + "_"
		wrong = append(wrong, withoutRepeats(load(&v, prefix, env), v.check(prefix))...)
		all = append(all, v)
	}
	return all, wrong
}

func (v *VCenter) check(prefix string) []error {
	var wrong faults
	if v.URL != "" {
		wrong.unless(isVCenterURL(v.URL),
			prefix+"URL", "%q is not https://host or https://host:port, without path and user", redact(v.URL))
		v.URL = strings.TrimRight(v.URL, "/")
	}

	wrong.unless(v.Password == "" || v.PasswordFile == "",
		prefix+"PASSWORD", "set it or %sPASSWORD_FILE, not both", prefix)
	wrong.unless(v.Password != "" || v.PasswordFile != "",
		prefix+"PASSWORD_FILE", "required, and not set (or %sPASSWORD)", prefix)
	wrong = append(wrong, secretFileReadable(prefix+"PASSWORD_FILE", v.PasswordFile)...)
	password, err := v.password()
	wrong.unless(password != "" || err != nil || v.PasswordFile == "",
		prefix+"PASSWORD_FILE", "%s is empty", v.PasswordFile)

	if v.roots, err = caPool(prefix+"CA_FILE", v.CAFile); err != nil {
		wrong = append(wrong, err)
	}
	digest, err := hex.DecodeString(strings.ReplaceAll(v.Thumbprint, ":", ""))
	wrong.unless(v.Thumbprint == "" || err == nil && len(digest) == sha256.Size,
		prefix+"THUMBPRINT", "not a SHA-256 thumbprint: 64 hexadecimal digits, with or without colons")

	wrong.unless(v.MaxInFlight >= 1, prefix+"MAX_IN_FLIGHT", "%d is less than 1", v.MaxInFlight)
	wrong.unless(v.SendWindow > 0, prefix+"SEND_WINDOW", "%s is not longer than 0s", v.SendWindow)
	wrong.unless(v.TravelTime > 0, prefix+"TRAVEL_TIME", "%s is not longer than 0s", v.TravelTime)
	wrong.unless(v.VisibilityLag > 0, prefix+"VISIBILITY_LAG", "%s is not longer than 0s", v.VisibilityLag)
	return wrong
}

// isVCenterURL reports whether a text is the URL of a vCenter: https, and nothing but host and port.
func isVCenterURL(text string) bool {
	u, err := url.Parse(text)
	return err == nil && u.Scheme == "https" && u.Host != "" &&
		strings.Trim(u.Path, "/") == "" && u.RawQuery == "" && u.User == nil
}

// fileReadable checks that a file that a setting names can be read.
func fileReadable(key, file string) []error {
	if file == "" {
		return nil
	}
	if _, err := os.ReadFile(file); err != nil {
		return []error{fmt.Errorf("%s: %w", key, err)}
	}
	return nil
}

// secretFileReadable checks that a file with a secret, which a setting names, can be read.
func secretFileReadable(key, file string) []error {
	if file == "" {
		return nil
	}
	if _, err := secretfile.ReadFile(file); err != nil {
		return []error{fmt.Errorf("%s: %w", key, pathTo(file, err))}
	}
	return nil
}

// pathTo adds the file's path to an error that does not have it.
func pathTo(file string, err error) error {
	var named *fs.PathError
	if errors.As(err, &named) {
		return err
	}
	return fmt.Errorf("%s: %w", file, err)
}

// caPool reads a file of CA certificates; without a file it returns nil, which means the system's roots.
func caPool(key, file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: %s holds no PEM certificate", key, file)
	}
	return pool, nil
}
