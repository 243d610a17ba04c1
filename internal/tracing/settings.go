package tracing

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Lookuper reads the environment.
type Lookuper interface {
	Lookup(key string) (value string, ok bool)
}

func get(env Lookuper, key string) string {
	v, _ := env.Lookup(key)
	return strings.TrimSpace(v)
}

// Wanted reports whether the environment asks for traces: an endpoint for them is set, and nothing says no.
func Wanted(env Lookuper) bool {
	off, err := strconv.ParseBool(get(env, "OTEL_SDK_DISABLED"))
	return (err != nil || !off) && get(env, "OTEL_TRACES_EXPORTER") != "none" &&
		(get(env, "OTEL_EXPORTER_OTLP_ENDPOINT") != "" || get(env, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "")
}

// Check finds out what is wrong with the OTEL_… settings, where they ask for traces at all. OpenTelemetry reads them
// itself, but ignores what it does not understand, and prints it: a header with its token, for example.
//
// Source: OpenTelemetry, Environment Variable Specification; OTLP Exporter Configuration.
func Check(env Lookuper) []error {
	if !Wanted(env) {
		return nil
	}

	c := checker{env: env}
	c.exporter()
	c.sampler()
	c.numbers()
	return append(c.wrong, files(env)...)
}

// checker collects what is wrong with settings.
type checker struct {
	env   Lookuper
	wrong []error
}

func (c *checker) bad(key, format string, args ...any) {
	c.wrong = append(c.wrong, fmt.Errorf(key+": "+format, args...))
}

// exporter checks where and how traces are sent.
func (c *checker) exporter() {
	for _, key := range both("ENDPOINT") {
		if v := get(c.env, key); v != "" {
			switch u, err := url.Parse(v); {
			case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
				c.bad(key, "not http://host:port or https://host:port")
			case u.User != nil:
				c.bad(key, "holds a user: a login goes into OTEL_EXPORTER_OTLP_HEADERS")
			}
		}
	}

	if key, v := effective(c.env, "PROTOCOL"); v != "" && v != "http/protobuf" {
		c.bad(key, "%q is not http/protobuf, the only one that guestflow speaks (port 4318 of a collector)", v)
	}
	if v := get(c.env, "OTEL_TRACES_EXPORTER"); v != "" && v != "otlp" {
		c.bad("OTEL_TRACES_EXPORTER", "%q is neither otlp nor none", v)
	}

	for _, key := range both("HEADERS") {
		if !pairs(get(c.env, key)) { // the value is not quoted: it may hold a token
			c.bad(key, "not name=value[,name=value …] with the values percent-encoded")
		}
	}

	if v := get(c.env, "OTEL_RESOURCE_ATTRIBUTES"); !pairs(v) {
		c.bad("OTEL_RESOURCE_ATTRIBUTES", "%q is not name=value[,name=value …]", v)
	}
}

// samplers are the values of OTEL_TRACES_SAMPLER.
var samplers = []string{
	"always_on", "always_off", "traceidratio",
	"parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio",
}

// sampler checks which traces are kept.
func (c *checker) sampler() {
	sampler := get(c.env, "OTEL_TRACES_SAMPLER")
	if sampler != "" && !slices.Contains(samplers, sampler) {
		c.bad("OTEL_TRACES_SAMPLER", "%q is none of %s", sampler, strings.Join(samplers, ", "))
	}

	if v := get(c.env, "OTEL_TRACES_SAMPLER_ARG"); v != "" && strings.HasSuffix(sampler, "traceidratio") {
		if ratio, err := strconv.ParseFloat(v, 64); err != nil || ratio < 0 || ratio > 1 {
			c.bad("OTEL_TRACES_SAMPLER_ARG", "%q is no ratio from 0 to 1", v)
		}
	}
}

// numbers checks times and sizes.
func (c *checker) numbers() {
	keys := append(both("TIMEOUT"),
		"OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT",
		"OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
	for _, key := range keys {
		if v := get(c.env, key); v != "" {
			if n, err := strconv.Atoi(v); err != nil || n <= 0 {
				c.bad(key, "%q is no whole number above 0 (times are in milliseconds)", v)
			}
		}
	}
}

// files checks the files of the exporter's TLS.
func files(env Lookuper) (wrong []error) {
	if key, file := effective(env, "CERTIFICATE"); file != "" {
		if pem, err := os.ReadFile(file); err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", key, err))
		} else if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			wrong = append(wrong, fmt.Errorf("%s: %s holds no PEM certificate", key, file))
		}
	}

	key, cert := effective(env, "CLIENT_CERTIFICATE")
	_, private := effective(env, "CLIENT_KEY")
	switch {
	case (cert == "") != (private == ""):
		wrong = append(
			wrong,
			errors.New("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY: set both or none"),
		)
	case cert != "":
		if _, err := tls.LoadX509KeyPair(cert, private); err != nil {
			wrong = append(
				wrong,
				fmt.Errorf("%s: %s and %s are no certificate with its key in PEM: %w", key, cert, private, err),
			)
		}
	}

	return wrong
}

// both are the two names of an exporter setting: that for traces, which comes first, and that for all signals.
func both(setting string) []string {
	return []string{"OTEL_EXPORTER_OTLP_TRACES_" + setting, "OTEL_EXPORTER_OTLP_" + setting}
}

// effective is the one of both that counts, and its value.
func effective(env Lookuper, setting string) (key, value string) {
	names := both(setting)
	if value = get(env, names[0]); value != "" {
		return names[0], value
	}
	return names[1], get(env, names[1])
}

// token matches the name of a header or of an attribute.
var token = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")

// pairs reports whether a text is a list of name=value. An empty one is.
func pairs(list string) bool {
	for pair := range strings.SplitSeq(list, ",") {
		name, value, ok := strings.Cut(pair, "=")
		if _, err := url.PathUnescape(value); list != "" &&
			(!ok || err != nil || !token.MatchString(cmp.Or(strings.TrimSpace(name), " "))) {
			return false
		}
	}
	return true
}
