package handler

import (
	"context"
	"encoding/json"
	"time"

	"github.com/guestflow/guestflow/internal/vcapi"
)

// VCenter is what a run needs of its vCenter; vcapi.Client is the real one. Asks may be repeated. Acts, at the end,
// change the guest: each calls its fence between dialling and sending, and sends nothing where the fence refuses.
type VCenter interface {
	Hide(secrets ...string) (forget func())
	About(ctx context.Context) (vcapi.About, error)
	Now(ctx context.Context) (time.Time, error)
	VM(ctx context.Context, vm string) (vcapi.VM, error)
	CheckCustomization(ctx context.Context, vm string) (vcapi.Check, error)
	MissingPrivileges(ctx context.Context, vm string, wanted []string) ([]string, error)
	StoredSpec(ctx context.Context, name string) (json.RawMessage, error)
	CustomizationStatus(ctx context.Context, vm string) (vcapi.GuestCustomization, error)
	Tasks(ctx context.Context, vm string, since time.Time) (tasks []vcapi.Task, history bool, err error)
	Task(ctx context.Context, id string) (vcapi.Task, error)
	AnyTaskBefore(ctx context.Context, t time.Time) (bool, error)
	Session(ctx context.Context) (vcapi.Session, error)
	SessionAlive(ctx context.Context, s vcapi.Session) (bool, error)
	Processes(ctx context.Context, vm string, auth vcapi.GuestAuth) ([]vcapi.Process, error)
	GuestFile(ctx context.Context, vm string, auth vcapi.GuestAuth, path string, most int) ([]byte, error)
	DisconnectedNICs(ctx context.Context, vm string) (vcapi.NICs, error)
	Process(ctx context.Context, vm string, auth vcapi.GuestAuth, pid int64) (vcapi.Process, error)
	Watch(ctx context.Context, vm, task string, fn func(vcapi.WatchState) (done bool)) error

	CustomizeGuest(ctx context.Context, fence vcapi.Fence, vm string, auth vcapi.GuestAuth, spec,
		configParams json.RawMessage) (task string, err error)
	StartGuestNetwork(ctx context.Context, fence vcapi.Fence, vm string, auth vcapi.GuestAuth) (task string, err error)
	AbortCustomization(ctx context.Context, fence vcapi.Fence, vm string, auth vcapi.GuestAuth) (task string, err error)
	StartProcess(ctx context.Context, fence vcapi.Fence, vm string, auth vcapi.GuestAuth,
		p vcapi.ProcessSpec) (pid int64, err error)
	ConnectNICs(ctx context.Context, fence vcapi.Fence, vm string, nics vcapi.NICs) (task string, err error)
	DeleteProcess(ctx context.Context, fence vcapi.Fence, vm string, auth vcapi.GuestAuth, pid int64) error
	CancelTask(ctx context.Context, fence vcapi.Fence, task string) error
}
