package stream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/secretfile"
)

// Config says how to reach NATS. Files that hold secrets are read again at each connection, so that a rotated one
// works.
type Config struct {
	URL          string // nats://host:4222; several, comma separated, for a cluster
	CredsFile    string
	NKeyFile     string // seed; whose key it is, is read at the start
	User         string
	PasswordFile string
	CAFile       string
	CertFile     string
	KeyFile      string
	JSDomain     string // at most one of JSDomain and JSAPIPrefix
	JSAPIPrefix  string
	InboxPrefix  string
	Name         string // of the connection, as the server's monitoring shows it
	EventMode    string // form of rejections: Structured (default) or Binary

	Hooks Hooks
}

// Hooks are who is told of what happens to messages; each may be nil.
type Hooks struct {
	Refused func(vcenter string, code events.Code) // a message was refused
	NotKept func(vcenter string)                   // and not kept as a dead letter, which could not be stored
	// a message was left alone, or given back for a while: it is delivered again
	Failed func(vcenter string)
}

const (
	// requestTimeout bounds one round trip to JetStream. A stream whose leader was killed is back after 6 to 8 s; who
	// waits for it asks again.
	requestTimeout = 5 * time.Second
	reconnectWait  = 250 * time.Millisecond
)

// Conn is the connection to NATS, and all that is spoken on it. It lives until Close, however often NATS goes away in
// between.
type Conn struct {
	nc        *nats.Conn
	js        jetstream.JetStream
	apiPrefix string // of the JetStream API, "$JS.API." by default
	eventMode string
	log       waitLog
	waits     *waitRegister
	hooks     Hooks

	queue *RequestQueue

	mu        sync.Mutex
	streams   *Settings // as Provision was asked for; nil before
	troubles  []Trouble // as Watch saw them last
	consumers []*consumer
	patience  patience
	// by vCenter: since when no dead letter of it could be stored; absent: the last one could
	notKeptSince map[string]time.Time
	// how long events are kept, 0 as long as not known: a run's timeout is shorter
	eventsMaxAge time.Duration
}

// patience is how long something is waited for before more is done about it.
type patience struct {
	// deadLetter: where dead letters cannot be stored, while events can, a message is then refused without one.
	deadLetter time.Duration
	// otherVersion: a message that may be of another version of guestflow is put off for so long.
	otherVersion time.Duration
	// report: a wait for NATS that is longer is reported as a trouble. An election of leaders takes 6 to 8 s.
	report time.Duration
}

var usualPatience = patience{
	deadLetter: 30 * time.Second, otherVersion: 30 * time.Second, report: 15 * time.Second,
}

// Connect makes the connection. Where NATS cannot be reached it is tried again for ever: the error is about the
// configuration alone (a file that cannot be read, a bad URL). Every change of state is one line in the log.
func Connect(_ context.Context, cfg Config, log zerolog.Logger) (*Conn, error) {
	opts, err := cfg.options(log)
	if err != nil {
		return nil, err
	}
	w := &waitRegister{open: map[*waiter]openWait{}}
	c := &Conn{log: waitLog{log, w}, waits: w, patience: usualPatience,
		notKeptSince: map[string]time.Time{}, eventMode: cfg.EventMode, hooks: cfg.Hooks,
		apiPrefix: jetstream.DefaultAPIPrefix}
	c.queue = newRequestQueue(c)
	nc, err := nats.Connect(cfg.URL, append(opts, stateLog(log, c.queue.wakeAll)...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	c.nc = nc
	switch {
	case cfg.JSDomain != "":
		c.apiPrefix = "$JS." + cfg.JSDomain + ".API."
		c.js, err = jetstream.NewWithDomain(nc, cfg.JSDomain, jetstream.WithDefaultTimeout(requestTimeout))
	case cfg.JSAPIPrefix != "":
		c.apiPrefix = strings.TrimSuffix(cfg.JSAPIPrefix, ".") + "."
		c.js, err = jetstream.NewWithAPIPrefix(nc, cfg.JSAPIPrefix, jetstream.WithDefaultTimeout(requestTimeout))
	default:
		c.js, err = jetstream.New(nc, jetstream.WithDefaultTimeout(requestTimeout))
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("JetStream: %w", err)
	}
	return c, nil
}

// Close ends the connection and every subscription on it.
func (c *Conn) Close() { c.nc.Close() }

// Connected reports whether NATS is connected at this moment.
func (c *Conn) Connected() bool { return c.nc.IsConnected() }

// RequestQueue answers what is waiting in the requests streams.
func (c *Conn) RequestQueue() *RequestQueue { return c.queue }

// Store is the events stream, for a journal.
func (c *Conn) Store() Store { return &jetStore{conn: c, stream: events.EventsStream} }

func (cfg Config) options(log zerolog.Logger) ([]nats.Option, error) {
	login, err := cfg.Login(func(err error) { log.Error().Err(err).Msg("cannot log in to NATS") })
	if err != nil {
		return nil, err
	}
	return append(login,
		nats.Name(cfg.Name), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectWait, time.Second), nats.Timeout(requestTimeout),
		nats.PingInterval(10*time.Second), nats.MaxPingsOutstanding(2),
		// What is published while NATS is away fails at once and is sent again by whoever waits for its answer: nothing
		// is sent late from a buffer.
		nats.ReconnectBufSize(-1),
		// A secret that changed on the server first is refused until its file follows: twice is no reason to give up.
		nats.IgnoreAuthErrorAbort()), nil
}

// Login are the options that say who connects, and whom it trusts; every client of this repository takes them. The
// error names a file that cannot be used, or settings that do not go together. unreadable is told of a password file
// that cannot be read later, at one of the connections.
func (cfg Config) Login(unreadable func(error)) ([]nats.Option, error) {
	var opts []nats.Option
	if cfg.InboxPrefix != "" {
		opts = append(opts, nats.CustomInboxPrefix(cfg.InboxPrefix))
	}
	if cfg.JSDomain != "" && cfg.JSAPIPrefix != "" {
		return nil, errors.New("a JetStream domain and an API prefix exclude each other: set one of them")
	}
	if cfg.CredsFile != "" {
		if _, err := os.ReadFile(cfg.CredsFile); err != nil {
			return nil, fmt.Errorf("NATS credentials (NATS_CREDS_FILE): %w", err)
		}
		opts = append(opts, nats.UserCredentials(cfg.CredsFile))
	}
	if cfg.NKeyFile != "" {
		opt, err := nats.NkeyOptionFromSeed(cfg.NKeyFile)
		if err != nil {
			return nil, fmt.Errorf("NATS nkey (NATS_NKEY_FILE) %s: %w", cfg.NKeyFile, err)
		}
		opts = append(opts, opt)
	}
	if cfg.User != "" || cfg.PasswordFile != "" {
		opt, err := userInfo(cfg.User, cfg.PasswordFile, unreadable)
		if err != nil {
			return nil, err
		}
		opts = append(opts, opt)
	}
	return cfg.tlsOptions(opts)
}

func (cfg Config) tlsOptions(opts []nats.Option) ([]nats.Option, error) {
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("NATS CA (NATS_CA_FILE): %w", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("NATS CA (NATS_CA_FILE): %s holds no PEM certificate", cfg.CAFile)
		}
		opts = append(opts, nats.RootCAs(cfg.CAFile))
	}
	if (cfg.CertFile == "") != (cfg.KeyFile == "") {
		return nil, errors.New("NATS: a client certificate and its key go together: set both NATS_CERT_FILE " +
			"and NATS_KEY_FILE, or none")
	}
	if cfg.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile); err != nil {
			return nil, fmt.Errorf("NATS client certificate (NATS_CERT_FILE, NATS_KEY_FILE): %w", err)
		}
		opts = append(opts, nats.ClientCert(cfg.CertFile, cfg.KeyFile))
	}
	return opts, nil
}

func userInfo(user, passwordFile string, unreadable func(error)) (nats.Option, error) {
	if user == "" || passwordFile == "" {
		return nil, errors.New("NATS: a user and a password file go together: set both NATS_USER and " +
			"NATS_PASSWORD_FILE, or none")
	}
	read := func() (string, error) {
		password, err := secretfile.ReadFile(passwordFile)
		if err != nil {
			return "", fmt.Errorf("NATS password (NATS_PASSWORD_FILE): %w", err)
		}
		return password, nil
	}
	if _, err := read(); err != nil {
		return nil, err
	}
	return nats.UserInfoHandler(func() (string, string) {
		password, err := read()
		if err != nil {
			unreadable(err) // without it NATS refuses the login
		}
		return user, password
	}), nil
}

// stateLog writes one line per change of the connection's state, and one per new asynchronous error: a missing
// permission shows nowhere else. back is called whenever NATS is there again.
func stateLog(log zerolog.Logger, back func()) []nats.Option {
	var mu sync.Mutex
	last := ""
	changed := func(state string) bool {
		mu.Lock()
		defer mu.Unlock()
		was := last
		last = state
		return was != state
	}
	return []nats.Option{
		nats.ConnectHandler(func(nc *nats.Conn) {
			if changed("up") {
				log.Info().Str("server", nc.ConnectedUrlRedacted()).Msg("connected to NATS")
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			back()
			if changed("up") {
				log.Info().Str("server", nc.ConnectedUrlRedacted()).Msg("connected to NATS again")
			}
		}),
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if !nc.IsClosed() && changed("down") {
				log.Warn().Err(err).Msg("lost the connection to NATS, connecting again")
			}
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			if changed("unreachable: " + err.Error()) {
				log.Warn().Err(err).Msg("NATS cannot be reached, trying again")
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			if changed("error: " + err.Error()) {
				e := log.Error().Err(err)
				if sub != nil {
					e = e.Str("subject", sub.Subject)
				}
				e.Msg("NATS reports an error")
			}
		}),
	}
}
