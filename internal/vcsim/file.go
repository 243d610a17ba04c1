package vcsim

import (
	"net/http"
	"net/url"
	"path"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	guestFilePath  = "/guestFile"
	transferLasts  = 10 * time.Minute // how long its URL is good [FileTransferInformation]
	transferredAs  = "application/octet-stream"
	fileManagerRef = "guestOperationsFileManager"
)

// transfer is a URL for one file of a guest, good for one use.
type transfer struct {
	vm    *VM
	file  string
	until time.Time // by vCenter's clock
}

// transfers are the URLs that were made and not used yet, by token.
type transfers struct {
	mu  sync.Mutex
	all map[string]transfer
}

// guestFileManager is a GuestFileManager that offers the files in Guest.Files.
type guestFileManager struct {
	mo.GuestFileManager
	v *VCenter
}

func (v *VCenter) installGuestFileManager() {
	m := &guestFileManager{v: v}
	m.Self = types.ManagedObjectReference{Type: "GuestFileManager", Value: fileManagerRef}
	v.reg.Put(m)
}

// InitiateFileTransferFromGuest makes a URL for a file in a guest. Its host is "*", which stands for vCenter itself.
// Faults: ManagedObjectNotFound, InvalidPowerState, GuestOperationsUnavailable (tools not running), InvalidGuestLogin,
// InvalidArgument (path), FileNotFound.
func (m *guestFileManager) InitiateFileTransferFromGuest(
	_ *simulator.Context, req *types.InitiateFileTransferFromGuest,
) soap.HasFault {
	body := new(methods.InitiateFileTransferFromGuestBody)
	info, fault := m.begin(req)
	if fault != nil {
		body.Fault_ = soapFaultOf(fault)
		return body
	}
	body.Res = &types.InitiateFileTransferFromGuestResponse{Returnval: info}
	return body
}

func (m *guestFileManager) begin(
	req *types.InitiateFileTransferFromGuest,
) (types.FileTransferInformation, types.BaseMethodFault) {
	none := types.FileTransferInformation{}
	vm := m.v.VM(req.Vm.Value)
	if vm == nil || req.Vm.Type != "VirtualMachine" {
		return none, &types.ManagedObjectNotFound{Obj: req.Vm}
	}

	vm.mu.Lock()
	defer vm.mu.Unlock()

	if state := vm.power(); state != types.VirtualMachinePowerStatePoweredOn {
		return none, &types.InvalidPowerState{
			RequestedState: types.VirtualMachinePowerStatePoweredOn,
			ExistingState:  state,
		}
	}

	if !vm.tools {
		return none, new(types.GuestOperationsUnavailable)
	}
	if fault := vm.login(req.Auth); fault != nil {
		return none, fault
	}
	if !path.IsAbs(req.GuestFilePath) {
		return none, &types.InvalidArgument{InvalidProperty: "guestFilePath"}
	}

	content, ok := vm.guest.Files[req.GuestFilePath]
	if !ok {
		return none, &types.FileNotFound{FileFault: types.FileFault{File: req.GuestFilePath}}
	}

	token := randomHex(40)
	m.v.transfers.mu.Lock()
	defer m.v.transfers.mu.Unlock()

	if m.v.transfers.all == nil {
		m.v.transfers.all = make(map[string]transfer)
	}

	m.v.transfers.all[token] = transfer{vm: vm, file: req.GuestFilePath, until: m.v.Now().Add(transferLasts)}
	changed := m.v.GuestNow().Truncate(time.Second)
	return types.FileTransferInformation{
		Attributes: &types.GuestPosixFileAttributes{
			GuestFileAttributes: types.GuestFileAttributes{
				ModificationTime: &changed,
				AccessTime:       &changed,
			},
			OwnerId:     new(int32),
			GroupId:     new(int32),
			Permissions: 0o644,
		},
		Size: int64(len(content)),
		Url:  "https://*:443" + guestFilePath + "?" + url.Values{"id": {"1"}, "token": {token}}.Encode(),
	}, nil
}

// parseFile parses GET /guestFile?id=…&token=…, which needs no session.
func (v *VCenter) parseFile(r *http.Request) parsedCall {
	token := r.URL.Query().Get("token")
	x := parsedCall{call: Call{Op: "GET guest file", Session: v.session(r.Header.Get(sessionHeader)).name()}}
	x.fault = func(types.BaseMethodFault) response { return pageResponse(http.StatusInternalServerError) }
	v.transfers.mu.Lock()
	t, ok := v.transfers.all[token]
	v.transfers.mu.Unlock()
	if ok {
		x.call.VM = t.vm.ID()
	}

	x.serve = func() response {
		if r.Method != http.MethodGet {
			return pageResponse(http.StatusMethodNotAllowed)
		}
		return v.serveFile(token)
	}

	return x
}

// serveFile sends a file and ends its transfer. The statuses of its refusals are a guess.
func (v *VCenter) serveFile(token string) response {
	v.transfers.mu.Lock()
	t, ok := v.transfers.all[token]
	delete(v.transfers.all, token)
	v.transfers.mu.Unlock()
	if !ok || v.Now().After(t.until) {
		return pageResponse(http.StatusNotFound)
	}

	t.vm.mu.Lock()
	defer t.vm.mu.Unlock()

	content, ok := t.vm.guest.Files[t.file]
	switch {
	case !ok:
		return pageResponse(http.StatusNotFound)
	case !t.vm.tools:
		return pageResponse(http.StatusInternalServerError)
	}

	return response{status: http.StatusOK, contentType: transferredAs, body: []byte(content)}
}
