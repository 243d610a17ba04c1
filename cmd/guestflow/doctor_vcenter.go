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

// callTimeout bounds one call to vCenter.
const callTimeout = 10 * time.Second

// privilege is one that the service's role needs; docs/operate/vcenter-role.md has the sources.
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

// checkVCenter checks one vCenter. conn, which may be nil, says which of its VMs had runs.
func (d *doctor) checkVCenter(ctx context.Context, v app.VCenter, conn *client.Client) {
	setting := "VCENTER_" + strings.ToUpper(strings.ReplaceAll(v.Name, "-", "_")) + "_"
	cfg := v.Client()
	cfg.CallTimeout = callTimeout
	vc, err := vcapi.New(cfg)
	if err != nil {
		d.report(broken, "", "%v", err)
		return
	}
	defer vc.Close(context.WithoutCancel(ctx))
	session, err := vc.Session(ctx)
	if err != nil {
		d.report(broken, loginCure(err, setting, v.URL), "%v", err)
		return
	}
	d.report(passed, "", "logged in at %s as %s, its certificate verified", v.URL, session.UserName)
	about, err := vc.About(ctx)
	switch {
	case err != nil:
		d.report(broken, "", "%v", err)
	case strings.HasPrefix(about.APIVersion, "8."):
		d.report(warning, "update to 9.0, or leave check.mode at auto: runs go on without that check",
			"%s, API %s: it has no customization check (new in 9.0)", about.Name, about.APIVersion)
	default:
		d.report(passed, "", "%s, API %s", about.Name, about.APIVersion)
	}
	d.checkCustomizationManager(ctx, vc)
	d.checkClock(ctx, vc)
	d.checkRootPrivileges(ctx, vc, session, v)
	d.checkPrivileges(ctx, vc, v, conn)
}

// loginCure says what to do if vCenter cannot be reached, is not trusted, or refuses the login.
func loginCure(err error, setting, url string) string {
	var e *vcapi.Error
	var dns *net.DNSError
	switch {
	case isCertificateError(err):
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

// errProbe stops a call before it is sent.
var errProbe = errors.New("only to see whether it could be made")

// checkCustomizationManager checks that vCenter has a guest customization manager: it prepares a call of it, and stops
// before the call is sent.
func (d *doctor) checkCustomizationManager(ctx context.Context, vc *vcapi.Client) {
	_, err := vc.AbortCustomization(ctx, func(context.Context) error { return errProbe }, "vm-0",
		vcapi.GuestAuth{Username: "nobody"})
	if errors.Is(err, errProbe) {
		d.report(passed, "", "the guest customization manager exists")
		return
	}
	d.report(broken,
		"guests of this vCenter cannot be customized while they run: it takes vCenter 8.0 Update 1 or newer",
		"guest customization manager: %v", err)
}

func (d *doctor) checkClock(ctx context.Context, vc *vcapi.Client) {
	before := time.Now()
	now, err := vc.Now(ctx)
	if err != nil {
		d.report(broken, "", "clock: %v", err)
		return
	}
	took := time.Since(before)
	d.reportClock(
		"vCenter",
		now.Sub(before.Add(took/2)),
		took/2,
		"run NTP on both: guestflow compares vCenter's times with each other only, but who reads events compares "+
			"them with ours",
	)
}

// checkRootPrivileges tries the calls that need a privilege on the root folder.
func (d *doctor) checkRootPrivileges(ctx context.Context, vc *vcapi.Client, session vcapi.Session, v app.VCenter) {
	for _, p := range onRoot {
		var err error
		if p.id == "Sessions.ValidateSession" {
			_, err = vc.SessionAlive(ctx, session)
		} else {
			_, err = vc.StoredSpec(ctx, "guestflow-doctor: no specification has this name")
		}
		var e *vcapi.Error
		if errors.As(err, &e) && e.Name == "NoPermission" {
			d.reportMissing(p, "the root folder", v)
		}
	}
}

// checkLongPoll checks that the long poll, by which the service learns of every end, shows a VM. A proxy on the way or
// a response that cannot be decoded may break it while single calls work.
func (d *doctor) checkLongPoll(ctx context.Context, vc *vcapi.Client, vm string) {
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
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
		d.report(broken, cure, "the long poll does not show %s within %s", vm, 2*callTimeout)
	case seen.Down:
		d.report(broken, cure, "the long poll does not show %s: %v", vm, seen.Err)
	default:
		d.report(passed, "", "the long poll shows %s", vm)
	}
}

// reportMissing reports a missing privilege.
func (d *doctor) reportMissing(p privilege, where string, v app.VCenter) {
	verdict := broken
	if p.optional {
		verdict = warning
	}
	d.report(verdict, fmt.Sprintf("add it to the role of %s there (docs/operate/vcenter-role.md)", v.Username),
		"privilege %s is missing on %s: needed for %s", p.id, where, p.need)
}

// checkPrivileges checks the privileges on a VM: the one of --vm, else one that had a run.
func (d *doctor) checkPrivileges(ctx context.Context, vc *vcapi.Client, v app.VCenter, conn *client.Client) {
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
			d.report(broken,
				"see whether the VM is there, and the account has a role on its folder (docs/operate/vcenter-role.md)",
				"privileges on %s: %v", vm, err)
			return
		}
		for _, p := range onVM {
			for _, id := range missing {
				if id == p.id {
					d.reportMissing(p, vm, v)
				}
			}
		}
		if len(missing) == 0 {
			d.report(passed, "", "privileges on %s: all that the service needs", vm)
		}
		d.checkLongPoll(ctx, vc, vm)
		return
	}
	d.report(skipped, "name a VM of this vCenter: guestflow doctor --vcenter "+v.Name+" --vm vm-42",
		"privileges: no VM is known to ask about")
}
