package vcapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

// releases are the known releases of the VI JSON specification (9.1.1.0), the newest first. VI JSON ships since 8.0
// Update 1.
var releases = []string{"9.1.1.0", "9.1.0.0", "9.0.0.0", "8.0.3.1", "8.0.3.0", "8.0.2.0", "8.0.1.0"}

const oldestRelease = "8.0.1.0"

// service is what a vCenter says of itself before any login: which release it speaks, and where its managers are.
type service struct {
	release    string // of the schema, in the path
	content    serviceContent
	processAPI atomic.Int32 // the form in which it offers guest processes, 0 while that is not known
}

// serviceContent has the members of vim.ServiceInstanceContent that are used.
type serviceContent struct {
	About struct {
		Name         string `json:"name"`
		APIVersion   string `json:"apiVersion"`
		InstanceUUID string `json:"instanceUuid"`
		Build        string `json:"build"`
	} `json:"about"`
	SessionManager            *moRef `json:"sessionManager"`
	PropertyCollector         *moRef `json:"propertyCollector"`
	ViewManager               *moRef `json:"viewManager"`
	TaskManager               *moRef `json:"taskManager"`
	GuestCustomizationManager *moRef `json:"guestCustomizationManager"`
	GuestOperationsManager    *moRef `json:"guestOperationsManager"`
	CustomizationSpecManager  *moRef `json:"customizationSpecManager"`
	AuthorizationManager      *moRef `json:"authorizationManager"`
}

// discover finds out which release to speak, and where the managers are. It needs no login.
//
// hello (8.0.2 and newer) chooses the release. Without it, the content is read as 8.0.1.0, the oldest VI JSON, and
// about.apiVersion tells the release.
//
// Source: Vcenter System hello; VI JSON, ServiceInstance.
func (c *Client) discover(ctx context.Context) (*service, error) {
	var chosen struct {
		Release string `json:"api_release"`
	}
	body, err := encode(map[string]any{"api_releases": releases})
	if err != nil {
		return nil, err
	}

	cl := &call{op: "hello", method: http.MethodPost, path: "/api/vcenter/system?action=hello", body: body}
	resp, err := c.roundTrip(ctx, c.reads, cl)
	switch e := (*Error)(nil); {
	case err == nil:
		_ = json.Unmarshal(unwrap(resp.body), &chosen) // a response that is not understood chooses nothing
	case errors.As(err, &e) && e.Status == 0:
		return nil, err // vCenter does not answer: the next call would only wait, too
	}

	if slices.Contains(releases, chosen.Release) {
		content, err := c.serviceContent(ctx, chosen.Release)
		if err == nil {
			return &service{release: chosen.Release, content: *content}, nil
		}
	}

	content, err := c.serviceContent(ctx, oldestRelease)
	if err != nil {
		return nil, err
	}

	return &service{release: releaseFor(content.About.APIVersion), content: *content}, nil
}

// releaseFor is the newest known release that is not newer than apiVersion.
func releaseFor(apiVersion string) string {
	for _, release := range releases {
		if atLeast(apiVersion, release) {
			return release
		}
	}
	return oldestRelease
}

// serviceContent reads the property ServiceInstance.content or, where that cannot be read, calls the method that
// returns the same.
func (c *Client) serviceContent(ctx context.Context, release string) (*serviceContent, error) {
	v := &service{release: release}
	var content serviceContent
	read := func(member string, in any) error {
		cl, err := c.newVIMCall(v, serviceInstance, "", member, in)
		if err != nil {
			return err
		}

		resp, err := c.roundTrip(ctx, c.reads, cl)
		if err != nil {
			return err
		}
		if err := c.decode(cl, resp, &content); err != nil {
			return err
		}
		if content.SessionManager == nil {
			return c.notUnderstood(cl, resp, errors.New("no sessionManager: is this a vCenter, 8.0 Update 1 or newer?"))
		}

		return nil
	}

	err := read("content", nil)
	if e := (*Error)(nil); err != nil && (!errors.As(err, &e) || e.Status != 0) {
		err = read("RetrieveServiceContent", noParams)
	}
	if err != nil {
		return nil, err
	}

	return &content, nil
}

// atLeast compares dotted versions by their numbers.
func atLeast(version, want string) bool {
	have, need := strings.Split(version, "."), strings.Split(want, ".")
	for i, n := range need {
		number := 0
		if i < len(have) {
			number, _ = strconv.Atoi(have[i])
		}
		if least, _ := strconv.Atoi(n); number != least {
			return number > least
		}
	}
	return true
}

// About is what vCenter said of itself when the current session began; an update of vCenter ends its sessions. It may
// be repeated.
//
// Source: VI JSON, ServiceInstance.content.
func (c *Client) About(ctx context.Context) (About, error) {
	s, err := c.vimLogin.get(ctx)
	if err != nil {
		return About{}, err
	}
	about := s.service.content.About
	return About{Name: about.Name, APIVersion: about.APIVersion, InstanceUUID: about.InstanceUUID}, nil
}
