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

// GuestFile reads the last bytes of a file in a guest, at most limit of them. path is absolute, and neither a directory
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
func (c *Client) GuestFile(ctx context.Context, vm string, auth GuestAuth, path string, limit int) ([]byte, error) {
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
		of := objectRef(manager.Type, manager.Value)
		cl, err = c.newVIMCall(s.service, of, "GuestFileManager", "InitiateFileTransferFromGuest", struct {
			VM   moRef  `json:"vm"`
			Auth any    `json:"auth"`
			Path string `json:"guestFilePath"`
		}{refTo(virtualMachine, vm), auth.vim(), path})
		if err == nil {
			cl.guest, cl.secrets = vm, auth.secrets()
		}

		last = cl
		return cl, err
	}, &transfer)
	if err != nil {
		return nil, err
	}

	u, err := c.transferURL(transfer.URL)
	if err != nil {
		e := c.notUnderstood(last, &response{status: http.StatusOK}, err)
		e.Class = Permanent // vCenter itself named it
		return nil, e
	}

	return c.download(ctx, vm, u, transfer.Size, limit)
}

// transferURL parses the URL of a transfer. The URL is a secret: the error does not quote it.
func (c *Client) transferURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return nil, errors.New("the URL that it names for the file is not https://host/…")
	}

	if u.Hostname() == "*" {
		// A client "replaces the asterisk with the server name on which it invoked the call". Its port may be
		// forwarded.
		u.Host = strings.TrimPrefix(c.base, "https://")
	}

	u.User = nil
	return u, nil
}

// download reads a guest's file from the URL that vCenter made for it. The URL carries a token of its own: no session
// goes there.
func (c *Client) download(ctx context.Context, vm string, u *url.URL, size int64, limit int) (end []byte, err error) {
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
	if size > maxGuestFile {
		return nil, c.fileError(cl, http.StatusOK, Permanent, tooLarge(size), nil)
	}

	timeout := c.cfg.CallTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, timeout,
		fmt.Errorf("no answer within %s: %w", timeout, context.DeadlineExceeded))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, cl.method, u.String(), nil)
	if err != nil {
		return nil, c.fileError(cl, 0, Permanent, "the URL that vCenter names for the file cannot be requested", nil)
	}

	req.Header.Set("User-Agent", userAgent)

	done := c.observe(ctx, cl)
	defer func() { done(err) }()
	resp, err := c.files.Do(req)
	if err != nil {
		return nil, c.transportError(cl, err)
	}
	defer func() { _ = resp.Body.Close() }()
	return c.readFile(cl, resp, limit)
}

// readFile reads the response to the download of a file.
func (c *Client) readFile(cl *call, resp *http.Response, limit int) ([]byte, error) {
	switch status := resp.StatusCode; {
	case status >= 300 && status < 400: // the location is not quoted: it may hold a token, too
		return nil, c.fileError(cl, status, Permanent, "redirected, which is not followed", nil)
	case status != http.StatusOK:
		const enough = 64 << 10
		body, _ := io.ReadAll(io.LimitReader(resp.Body, enough)) // half a body is better than none
		e := c.completeError(cl, decodeError(status, body, c.redactorFor(cl)))
		if status < 500 {
			// The URL has expired or was used; the next one will be new. This says nothing about the session, nor about
			// the guest's login.
			e.Class = Transient
		}
		return nil, e
	}

	file := tail{limit: max(limit, 0)}
	n, err := io.Copy(&file, io.LimitReader(resp.Body, maxGuestFile+1))
	switch {
	case err != nil:
		message := "the file broke off: " + err.Error()
		return nil, c.fileError(cl, resp.StatusCode, Transient, message, c.redactError(cl, err))
	case n > maxGuestFile:
		return nil, c.fileError(cl, resp.StatusCode, Permanent, tooLarge(max(n, resp.ContentLength)), nil)
	}

	return file.kept, nil
}

// fileError is the error of a download.
func (c *Client) fileError(cl *call, status int, class Class, message string, cause error) *Error {
	return c.completeError(cl, &Error{Status: status, Class: class, Message: c.redact(cl, message), Err: cause})
}

func tooLarge(size int64) string {
	return fmt.Sprintf("the file has %d bytes at least, and is not read beyond %d MiB", size, maxGuestFile>>20)
}

// secretsOfURL are the parts of a transfer's URL that must stay secret: its token, whatever that is called.
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
