package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/guestflow/guestflow/internal/app"
	"github.com/guestflow/guestflow/internal/client"
	"github.com/guestflow/guestflow/internal/vcapi"
)

// callTime bounds one call to vCenter: somebody waits for the answer.
const callTime = 10 * time.Second

// privilege is one that the service's role holds; docs/operate/vcenter-role.md has the sources.
type privilege struct {
	id, need string // what needs it
	optional bool
}

// onVM are the privileges on each VM, onRoot those on the root folder.
var (
	onVM = []privilege{
		{id: "VirtualMachine.Provisioning.Customize", need: "customize and network"},
		{id: "VirtualMachine.GuestOperations.Execute", need: "processes"},
		{id: "VirtualMachine.GuestOperations.Query", need: "processes"},
		{id: "VirtualMachine.Interact.DeviceConnection", need: "network.connectNics", optional: true},
		{id: "VirtualMachine.Config.EditDevice", need: "network.connectNics", optional: true},
		{id: "Global.CancelTask", need: "a cancel that stops vCenter's task", optional: true},
	}
	onRoot = []privilege{
		{
			id:       "Sessions.ValidateSession",
			need:     "the proof that a call whose answer was lost took no effect",
			optional: true,
		},
		{id: "VirtualMachine.Provisioning.ReadCustSpecs", need: "customize.specName", optional: true},
	}
)

// lookAt looks at one vCenter; conn (may be nil) tells which VMs it has.
func (d *doctor) lookAt(ctx context.Context, v app.VCenter, conn *client.Client) {
	setting := "VCENTER_" + strings.ToUpper(strings.ReplaceAll(v.Name, "-", "_")) + "_"
	cfg := v.Client()
	cfg.CallTimeout = callTime
	vc, err := vcapi.New(cfg)
	if err != nil {
		d.find(broken, "", "%v", err)
		return
	}
	defer vc.Close(context.WithoutCancel(ctx))
	session, err := vc.Session(ctx)
	if err != nil {
		d.find(broken, cureOfLogin(err, setting, v.URL), "%v", err)
		return
	}
	d.find(fine, "", "logged in at %s as %s, its certificate verified", v.URL, session.UserName)
	about, err := vc.About(ctx)
	switch {
	case err != nil:
		d.find(broken, "", "%v", err)
	case strings.HasPrefix(about.APIVersion, "8."):
		d.find(odd, "update to 9.0, or leave check.mode at auto: runs go on without that check",
			"%s, API %s: it has no customization check (new in 9.0)", about.Name, about.APIVersion)
	default:
		d.find(fine, "", "%s, API %s", about.Name, about.APIVersion)
	}
	d.manager(ctx, vc)
	d.clockOf(ctx, vc)
	d.rootPrivileges(ctx, vc, session, v)
	d.privileges(ctx, vc, v, conn)
}

// cureOfLogin says what to do where vCenter cannot be reached, is not trusted, or does not take the login.
func cureOfLogin(err error, setting, url string) string {
	var e *vcapi.Error
	var dns *net.DNSError
	switch {
	case certificate(err):
		return fmt.Sprintf(
			"set %sCA_FILE to the CA's certificate (%s/certs/download.zip has it), or %sTHUMBPRINT to the SHA-256 of "+
				"the server's",
			setting,
			url,
			setting,
		)
	case errors.As(err, &dns):
		return "the name is not known here: see " + setting + "URL, and the DNS of this host"
	case errors.As(err, &e) && (e.Name == "InvalidLogin" || e.Class == vcapi.SessionLost):
		return "see " + setting + "USERNAME (with its domain, as in " +
			"svc-guestflow@vsphere.local) and " + setting + "PASSWORD_FILE; after five wrong logins vCenter locks " +
			"the account for a while"
	case errors.As(err, &e) && e.Name == "NoPermission":
		return "give the account a role on the root folder, see docs/operate/vcenter-role.md"
	case errors.As(err, &e) && e.Status != 0:
		return "see whether " + setting + "URL is a vCenter 8.0 Update 1 or newer, and its services are up"
	}
	return "see " + setting + "URL, and whether this host may reach it (firewall; no proxy is used)"
}

// errProbe refuses an act that is never to be made.
var errProbe = errors.New("only to see whether it could be made")

// manager looks whether vCenter has a guest customization manager: an act is prepared as far as it goes before it is
// sent, and not sent.
func (d *doctor) manager(ctx context.Context, vc *vcapi.Client) {
	_, err := vc.AbortCustomization(ctx, func(context.Context) error { return errProbe }, "vm-0",
		vcapi.GuestAuth{Username: "nobody"})
	if errors.Is(err, errProbe) {
		d.find(fine, "", "the guest customization manager is there")
		return
	}
	d.find(broken, "guests of this vCenter cannot be customized while they run: it takes vCenter 8.0 Update 1 or newer",
		"guest customization manager: %v", err)
}

func (d *doctor) clockOf(ctx context.Context, vc *vcapi.Client) {
	before := time.Now()
	now, err := vc.Now(ctx)
	if err != nil {
		d.find(broken, "", "clock: %v", err)
		return
	}
	took := time.Since(before)
	d.clock(
		"vCenter",
		now.Sub(before.Add(took/2)),
		took/2,
		"run NTP on both: guestflow compares vCenter's times with each other only, but who reads events compares "+
			"them with ours",
	)
}

// rootPrivileges tries what needs a privilege on the root folder.
func (d *doctor) rootPrivileges(ctx context.Context, vc *vcapi.Client, session vcapi.Session, v app.VCenter) {
	for _, p := range onRoot {
		var err error
		if p.id == "Sessions.ValidateSession" {
			_, err = vc.SessionAlive(ctx, session)
		} else {
			_, err = vc.StoredSpec(ctx, "guestflow-doctor: no specification has this name")
		}
		var e *vcapi.Error
		if errors.As(err, &e) && e.Name == "NoPermission" {
			d.lacks(p, "the root folder", v)
		}
	}
}

// longPoll looks whether the long poll shows a VM: what the service sees all ends by, and what a proxy on the way, or
// an answer that is not understood, may keep from it while single calls go well.
func (d *doctor) longPoll(ctx context.Context, vc *vcapi.Client, vm string) {
	ctx, cancel := context.WithTimeout(ctx, 2*callTime)
	polled := make(chan struct{})
	go func() {
		defer close(polled)
		_ = vc.Run(ctx) // it ends with ctx only
	}()
	defer func() {
		cancel()
		<-polled
	}()
	var seen vcapi.WatchState
	err := vc.Watch(ctx, vm, "", func(s vcapi.WatchState) bool {
		seen = s
		return true
	})
	const cure = "look for what is between here and vCenter (proxy, load balancer, firewall): the poll waits up to " +
		"30 s for its answer"
	switch {
	case err != nil:
		d.find(broken, cure, "the long poll does not show %s within %s", vm, 2*callTime)
	case seen.Down:
		d.find(broken, cure, "the long poll does not show %s: %v", vm, seen.Err)
	default:
		d.find(fine, "", "the long poll shows %s", vm)
	}
}

// lacks is a finding for a privilege that is missing.
func (d *doctor) lacks(p privilege, where string, v app.VCenter) {
	verdict := broken
	if p.optional {
		verdict = odd
	}
	d.find(verdict, fmt.Sprintf("add it to the role of %s there (docs/operate/vcenter-role.md)", v.Username),
		"privilege %s is missing on %s: needed for %s", p.id, where, p.need)
}

// privileges asks vCenter for those on a VM: the one that was named, else one that had a run.
func (d *doctor) privileges(ctx context.Context, vc *vcapi.Client, v app.VCenter, conn *client.Client) {
	vms := []string{d.vm}
	if d.vm == "" {
		vms = nil
		if conn != nil {
			vms, _ = conn.VMsWithRuns(ctx, v.Name) // where the journal cannot be read, that is a finding of its own
		}
	}
	var ids []string
	for _, p := range onVM {
		ids = append(ids, p.id)
	}
	const most = 10 // VMs that are asked for, until one is there
	for i, vm := range vms {
		var missing []string
		_, err := vc.VM(ctx, vm)
		if err == nil {
			missing, err = vc.MissingPrivileges(ctx, vm, ids)
		}
		var e *vcapi.Error
		if errors.As(err, &e) && e.Name == "ManagedObjectNotFound" && d.vm == "" && i < most {
			continue // it is gone since
		}
		if err != nil {
			d.find(broken,
				"see whether the VM is there, and the account has a role on its folder (docs/operate/vcenter-role.md)",
				"privileges on %s: %v", vm, err)
			return
		}
		for _, p := range onVM {
			for _, id := range missing {
				if id == p.id {
					d.lacks(p, vm, v)
				}
			}
		}
		if len(missing) == 0 {
			d.find(fine, "", "privileges on %s: all that the service needs", vm)
		}
		d.longPoll(ctx, vc, vm)
		return
	}
	d.find(skipped, "name a VM of this vCenter: guestflow doctor --vcenter "+v.Name+" --vm vm-42",
		"privileges: no VM is known to ask about")
}
