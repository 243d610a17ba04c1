package handler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/guestflow/guestflow/internal/events"
	"github.com/guestflow/guestflow/internal/secretfile"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// Secrets are the guest credentials of one vCenter: <folder>/<name>/<key>, as Kubernetes mounts its Secrets. They are
// read at each use, so that a rotated one works. A publisher for one vCenter cannot name another's: the folder is the
// vCenter's own.
type Secrets string

// secretName is what names and keys may be: nothing that could lead out of the folder.
var secretName = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$`)

// read gives a secret's value, one trailing line end dropped. It gives up when ctx ends.
func (s Secrets) read(ctx context.Context, name, key string) (string, error) {
	if !secretName.MatchString(name) || !secretName.MatchString(key) {
		return "", fmt.Errorf("secret %q, key %q: names are letters, digits, '-', '.' and '_', and begin and end "+
			"with a letter or digit", name, key)
	}

	value, err := secretfile.Read(ctx, filepath.Join(string(s), name, key))
	if err != nil {
		var p *fs.PathError
		if errors.As(err, &p) {
			err = p.Err // without the path: events are read by others
		}
		return "", fmt.Errorf("secret %q, key %q: %w", name, key, err)
	}

	return value, nil
}

// missing reports whether err says that the secret is not there.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

const (
	userPassword = "USERNAME_PASSWORD"
	samlToken    = "SAML_BEARER_TOKEN"
)

// guestAuth reads the credentials that a request names.
func (s Secrets) guestAuth(ctx context.Context, c *events.CredentialsRef, interactive bool) (vcapi.GuestAuth, error) {
	kind := c.Type
	if kind == "" {
		kind = userPassword
		if _, err := s.read(ctx, c.SecretRef, "saml-token"); err == nil {
			if _, err := s.read(ctx, c.SecretRef, "password"); missing(err) {
				kind = samlToken
			}
		}
	}

	auth := vcapi.GuestAuth{Interactive: interactive && kind == userPassword}
	var err error
	if kind == samlToken {
		if auth.SAMLToken, err = s.read(ctx, c.SecretRef, "saml-token"); err != nil {
			return auth, err
		}
		auth.Username, err = s.read(ctx, c.SecretRef, "username")
		if missing(err) { // the guest maps the token to a user itself
			err = nil
		}
		return auth, err
	}

	if auth.Username, err = s.read(ctx, c.SecretRef, "username"); err != nil {
		return auth, err
	}
	auth.Password, err = s.read(ctx, c.SecretRef, "password")
	return auth, err
}

// guestAuth reads the run's guest credentials, at each use.
func (r *run) guestAuth(ctx context.Context, step string) (vcapi.GuestAuth, error) {
	return r.authOf(ctx, r.spec.Guest.Credentials, step, "guest.credentials")
}

func (r *run) authOf(ctx context.Context, c *events.CredentialsRef, step, field string) (vcapi.GuestAuth, error) {
	auth, err := r.secrets.guestAuth(ctx, c, r.spec.Guest != nil && r.spec.Guest.InteractiveSession)
	if err != nil {
		return auth, r.noSecret(ctx, step, field, err)
	}
	if r.unhidden {
		r.hide(ctx)
	}
	return auth, nil
}

// noSecret is the end of a run that names a secret which cannot be read, or why ctx has ended before it was.
func (r *run) noSecret(ctx context.Context, step, field string, err error) error {
	if ctx.Err() != nil {
		return r.interrupted(ctx)
	}
	return &stepError{step: step, code: events.UnknownSecret, err: err,
		message: fmt.Sprintf("%s: %v: put the secret into the service's secrets folder for vCenter %s", field, err,
			r.VCenter)}
}

// namedSecrets are the secrets that the request names. What can be read of them comes also where err says that some
// cannot.
func (r *run) namedSecrets(ctx context.Context) (all []string, err error) {
	add := func(values []string, unread error) {
		all, err = append(all, values...), errors.Join(err, unread)
	}
	of := func(c *events.CredentialsRef) {
		if c != nil {
			auth, unread := r.secrets.guestAuth(ctx, c, false)
			add([]string{auth.Password, auth.SAMLToken}, unread)
		}
	}

	if r.spec.Guest != nil {
		of(r.spec.Guest.Credentials)
	}
	if c := r.spec.Customize; c != nil {
		for _, tree := range []json.RawMessage{c.Spec, c.ConfigParams} {
			_, values, unread := r.secrets.fill(ctx, tree)
			add(values, unread)
		}
	}

	for _, p := range r.spec.Processes {
		of(p.Credentials)
		if p.Run == nil {
			continue
		}
		for _, t := range p.Run.Environment {
			if t.SecretRef != "" {
				value, unread := r.secrets.text(ctx, t)
				add([]string{value}, unread)
			}
		}
	}

	return slices.DeleteFunc(all, func(s string) bool { return s == "" }), err
}

// hideTime bounds the reading of all secrets of a run at its beginning: a mount that hangs holds neither the run, which
// hears no cancel yet, nor the end of an orphan, which has no time of its own.
const hideTime = 5 * time.Second

// hide keeps what the request names out of all that vCenter and the guest say, whoever has sent it there: an owner
// before this one, say. What cannot be read now, the step that needs it will say, and hide once it could be read.
func (r *run) hide(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, hideTime)
	defer cancel()
	all, _ := r.namedSecrets(ctx)
	if r.unhidden = ctx.Err() != nil; r.unhidden { // what could be read before stays hidden
		all = append(all, r.hidden...)
		slices.Sort(all)
		all = slices.Compact(all)
	}
	r.hidden = all
	before := r.forget
	if r.forget = r.vc.Hide(all...); before != nil {
		before()
	}
}
