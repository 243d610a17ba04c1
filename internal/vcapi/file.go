package vcapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// maxGuestFile is the largest file in a guest that is read, in bytes: the host sends a file whole, and its end comes
// last.
const maxGuestFile = 8 << 20

// GuestFile reads the last bytes of a file in a guest, at most most of them. path is absolute, and neither a directory
// nor a symbolic link. It changes nothing and may be repeated. A file of more than 8 MiB is an error: only its
// beginning could be had.
//
// The content comes over HTTPS from vCenter or from the ESXi host of the VM, whose certificate is verified as vCenter's
// is: by the same roots or, where a thumbprint is set, by that, which no host has. Errors from there are Transient, or
// Permanent for a URL or a redirect that is not followed. Faults: FileNotFound, FileFault, InvalidGuestLogin,
// GuestPermissionDenied, GuestOperationsUnavailable (VMware Tools not running), InvalidPowerState, InvalidState,
// TaskInProgress, InvalidArgument (path), ManagedObjectNotFound, NoPermission; NotSupported, where this vCenter has no
// such manager.
//
// Source: VI JSON, GuestFileManager.InitiateFileTransferFromGuest, FileTransferInformation. Privileges:
// VirtualMachine.GuestOperations.Query on the VM; System.View for GuestOperationsManager.fileManager.
func (c *Client) GuestFile(ctx context.Context, vm string, auth GuestAuth, path string, most int) ([]byte, error) {
	var manager moRef
	if err := c.callVIM(ctx, guestOperations, "GuestOperationsManager", "fileManager", nil, &manager); err != nil {
		return nil, err
	}

	var transfer struct {
		Size int64  `json:"size"`
		URL  string `json:"url"`
	}

	var last *call
	err := c.read(ctx, c.vimLogin, func(s *session) (cl *call, err error) {
		cl, err = c.newVIMCall(
			s.service,
			objectRef(manager.Type, manager.Value),
			"GuestFileManager",
			"InitiateFileTransferFromGuest",
			struct {
				VM   moRef  `json:"vm"`
				Auth any    `json:"auth"`
				Path string `json:"guestFilePath"`
			}{refTo(virtualMachine, vm), auth.vim(), path},
		)
		if err == nil {
			cl.guest, cl.secrets = vm, auth.secrets()
		}

		last = cl
		return cl, err
	}, &transfer)
	if err != nil {
		return nil, err
	}

	u, err := url.Parse(transfer.URL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" { // the URL is a secret: it is not quoted
		e := c.notUnderstood(
			last,
			&response{status: http.StatusOK},
			errors.New("the URL that it names for the file is not https://host/…"),
		)
		e.Class = Permanent // vCenter itself named it
		return nil, e
	}

	if u.Hostname() == "*" {
		// "replaces the asterisk with the server name on which it invoked the call"; with its port, which may be
		// forwarded.
		u.Host = strings.TrimPrefix(c.base, "https://")
	}

	u.User = nil
	return c.download(ctx, vm, u, transfer.Size, most)
}

// download reads a guest's file from the URL that vCenter made for it, which carries a token of its own: no session
// goes there.
func (c *Client) download(ctx context.Context, vm string, u *url.URL, size int64, most int) (end []byte, err error) {
	cl := &call{
		op:      "GET guest file",
		method:  http.MethodGet,
		path:    "https://" + u.Host,
		guest:   vm,
		secrets: secretsOfURL(u),
	}

	if cl.path != c.base {
		cl.certHint = "the file comes from host " + u.Host + ": let the CA file hold the CA of the ESXi hosts"
	}

	failed := func(status int, class Class, message string, cause error) *Error {
		return c.completeError(cl, &Error{Status: status, Class: class, Message: c.redact(cl, message), Err: cause})
	}
	if size > maxGuestFile {
		return nil, failed(http.StatusOK, Permanent, tooLarge(size), nil)
	}

	ctx, cancel := context.WithTimeoutCause(
		ctx, c.cfg.CallTimeout, fmt.Errorf("no answer within %s: %w", c.cfg.CallTimeout, context.DeadlineExceeded),
	)

	defer cancel()
	req, err := http.NewRequestWithContext(ctx, cl.method, u.String(), nil)
	if err != nil {
		return nil, failed(0, Permanent, "the URL that vCenter names for the file cannot be requested", nil)
	}

	req.Header.Set("User-Agent", userAgent)
	done := c.observe(ctx, cl)
	defer func() { done(err) }()
	resp, err := c.files.Do(req)
	if err != nil {
		return nil, c.transportError(cl, err)
	}
	defer func() { _ = resp.Body.Close() }()
	switch {
	case resp.StatusCode >= 300 && resp.StatusCode < 400: // the location is not quoted: it may hold a token, too
		return nil, failed(resp.StatusCode, Permanent, "redirected, which is not followed", nil)
	case resp.StatusCode != http.StatusOK:
		const enough = 64 << 10
		body, _ := io.ReadAll(io.LimitReader(resp.Body, enough)) // half a body is better than none
		e := c.completeError(cl, decodeError(resp.StatusCode, body, c.redactorFor(cl)))
		if resp.StatusCode < 500 {
			// The URL has expired or was used; the next one will be new. It is about neither the session nor the
			// guest's login.
			e.Class = Transient
		}
		return nil, e
	}

	file := tail{limit: max(most, 0)}
	switch n, err := io.Copy(&file, io.LimitReader(resp.Body, maxGuestFile+1)); {
	case err != nil:
		return nil, failed(resp.StatusCode, Transient, "the file broke off: "+err.Error(), c.redactError(cl, err))
	case n > maxGuestFile:
		return nil, failed(resp.StatusCode, Permanent, tooLarge(max(n, resp.ContentLength)), nil)
	}

	return file.kept, nil
}

func tooLarge(size int64) string {
	return fmt.Sprintf("the file has %d bytes at least, and is not read beyond %d MiB", size, maxGuestFile>>20)
}

// secretsOfURL is what of a transfer's URL may not be told: its token, whatever that is called.
func secretsOfURL(u *url.URL) secrets {
	const short = 8 // a number that counts transfers is no secret, and stands in many texts
	s := secrets{u.String(), u.RequestURI(), u.RawQuery}
	if len(u.Path) >= short {
		s = append(s, u.Path)
	}

	for name, values := range u.Query() {
		for _, value := range values {
			if len(value) >= short || strings.EqualFold(name, "token") {
				s = append(s, value)
			}
		}
	}

	return s
}

// tail keeps the last bytes of what is written to it.
type tail struct {
	limit int
	kept  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	t.kept = slices.Delete(t.kept, 0, max(len(t.kept)-t.limit, 0))
	return len(p), nil
}
