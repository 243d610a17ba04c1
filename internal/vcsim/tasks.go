package vcsim

import (
	"slices"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	// recentFor and recentMax are how long, and how many, finished tasks stay in recentTask [vim.TaskManager].
	recentFor = 10 * time.Minute
	recentMax = 200
	// historyMax bounds the task history, oldest out first.
	historyMax = 100_000
	// maxCollectors is vCenter's limit of history collectors per client.
	maxCollectors = 32
)

// taskManager replaces vcsim's, whose history has no users and no lag, and is read without locks. It hears of every
// Task, our own and vcsim's, and of every other object's changes too, which it passes on.
type taskManager struct {
	mo.TaskManager
	v *VCenter

	mu         sync.Mutex
	infos      map[string]types.TaskInfo // of every task that there ever was, by its ID
	vcsims     map[string]bool           // those that vcsim runs itself, by our clock
	history    []string                  // visible ones, oldest first; a place in it is a position of a collector
	first      int                       // the position of history[0]
	collectors map[types.ManagedObjectReference]string
}

func (v *VCenter) installTaskManager() {
	m := &taskManager{
		v:          v,
		infos:      make(map[string]types.TaskInfo),
		vcsims:     make(map[string]bool),
		collectors: make(map[types.ManagedObjectReference]string),
	}

	vcsims := v.reg.Get(*v.content.TaskManager).(*simulator.TaskManager)
	m.Self, m.Description, m.MaxCollector = vcsims.Self, vcsims.Description, maxCollectors
	v.tasks = m
	v.reg.Put(m)
	v.reg.AddHandler(m) // in vcsim's place: handlers are kept by reference
}

// guestTask is a Task that the guest customization manager runs.
type guestTask struct {
	simulator.Task
	cancel func() bool // false where it cannot be canceled
	lag    time.Duration
}

// CancelTask asks the guest to stop. Faults: NotSupported where the guest's work cannot be canceled, InvalidState where
// it has ended.
func (t *guestTask) CancelTask(*simulator.Context, *types.CancelTask) soap.HasFault {
	body := new(methods.CancelTaskBody)
	switch {
	case t.Info.State == types.TaskInfoStateSuccess || t.Info.State == types.TaskInfoStateError:
		body.Fault_ = simulator.Fault("The operation is not allowed in the current state.", new(types.InvalidState))
	case !t.Info.Cancelable || !t.cancel():
		body.Fault_ = simulator.Fault("The operation is not supported on the object.", new(types.NotSupported))
	default:
		body.Res = new(types.CancelTaskResponse)
	}
	return body
}

// newGuestTask makes a queued Task on a VM. The caller holds the VM's lock in ctx, and vm.mu.
func (m *taskManager) newGuestTask(
	ctx *simulator.Context, vm *VM, name, descriptionID, user string, cancelable bool, cancel func() bool,
) *guestTask {
	t := &guestTask{cancel: cancel, lag: vm.guest.Faults.TaskLag}
	t.Self.Type = "Task"
	entity := vm.ref
	t.Info = types.TaskInfo{
		Name:          name,
		DescriptionId: descriptionID,
		Entity:        &entity,
		EntityName:    vm.name,
		State:         types.TaskInfoStateQueued,
		Cancelable:    cancelable,
		Reason:        &types.TaskReasonUser{UserName: user},
		QueueTime:     m.v.Now(),
	}

	ctx.Map.Put(t) // gives it its ID and calls PutObject
	return t
}

// update changes a Task's info and tells those who watch it.
func (m *taskManager) update(t *guestTask, changes ...types.PropertyChange) {
	ctx := m.v.newContext()
	ctx.Map.AtomicUpdate(ctx, t, changes)
}

// PutObject hears of new objects.
func (m *taskManager) PutObject(ctx *simulator.Context, obj mo.Reference) {
	defer m.v.changes.note(obj.Reference())
	var info *types.TaskInfo
	lag := m.v.opts.VisibilityLag
	switch t := obj.(type) {
	case *simulator.Task:
		t.Info.QueueTime = m.v.Now()
		info = &t.Info
		m.mu.Lock()
		m.vcsims[t.Self.Value] = true
		m.mu.Unlock()
	case *guestTask:
		info, lag = &t.Info, max(lag, t.lag)
	default:
		return
	}

	ref := obj.Reference()
	info.Key, info.Task = ref.Value, ref
	m.mu.Lock()
	m.infos[ref.Value] = *info
	m.mu.Unlock()

	if lag <= 0 {
		m.publish(ctx, ref, *info.Entity) // the maker of a task holds its entity's lock
		return
	}

	entity := *info.Entity
	m.v.spawn(func() {
		if m.v.pause(lag) {
			ctx := m.v.newContext()
			ctx.WithLock(entity, func() { m.publish(ctx, ref, entity) })
		}
	})
}

// publish shows a task in the history and in recentTask. The entity's lock is held.
func (m *taskManager) publish(ctx *simulator.Context, ref, entity types.ManagedObjectReference) {
	m.mu.Lock()
	if _, there := m.infos[ref.Value]; !there { // forgotten before anybody saw it
		m.mu.Unlock()
		return
	}

	m.history = append(m.history, ref.Value)
	if over := len(m.history) - historyMax; over > 0 {
		m.history = slices.Clone(m.history[over:])
		m.first += over
	}

	m.mu.Unlock()

	ctx.WithLock(m, func() { ctx.Update(m, m.recent(append(slices.Clone(m.RecentTask), ref))) })
	if e, ok := ctx.Map.Get(entity).(mo.Entity); ok {
		ctx.Update(e, m.recent(append(slices.Clone(e.Entity().RecentTask), ref)))
	}
}

// recent is a change of recentTask to those of refs that still belong in it.
func (m *taskManager) recent(refs []types.ManagedObjectReference) []types.PropertyChange {
	oldest := m.v.Now().Add(-recentFor)
	m.mu.Lock()
	refs = slices.DeleteFunc(refs, func(ref types.ManagedObjectReference) bool {
		info, there := m.infos[ref.Value]
		return !there || info.CompleteTime != nil && info.CompleteTime.Before(oldest)
	})

	m.mu.Unlock()
	if over := len(refs) - recentMax; over > 0 {
		refs = refs[over:]
	}
	return []types.PropertyChange{{Name: "recentTask", Val: refs}}
}

// UpdateObject hears of changes; the object's lock is held.
func (m *taskManager) UpdateObject(_ *simulator.Context, obj mo.Reference, changes []types.PropertyChange) {
	ref := obj.Reference()
	defer m.v.changes.note(ref)
	switch o := obj.(type) {
	case *mo.Task:
		m.mu.Lock()
		if m.vcsims[ref.Value] {
			for _, c := range changes {
				switch now := m.v.Now(); c.Name {
				case "info.startTime":
					o.Info.StartTime = &now
				case "info.completeTime":
					o.Info.CompleteTime = &now
				}
			}
		}

		if _, there := m.infos[ref.Value]; there {
			m.infos[ref.Value] = o.Info
		}

		m.mu.Unlock()
	case *mo.VirtualMachine:
		for _, c := range changes {
			if c.Name == "runtime.powerState" || c.Name == "config.hardware.device" {
				m.v.spawn(func() { m.v.follow(ref.Value) }) // not here: the VM's lock is held
				return
			}
		}
	}
}

// RemoveObject hears of objects that are gone.
func (m *taskManager) RemoveObject(_ *simulator.Context, ref types.ManagedObjectReference) {
	m.v.changes.note(ref)
}

// entity is the VM that a task is about, "" where the task is unknown.
func (m *taskManager) entity(task string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.infos[task].Entity; e != nil && e.Type == "VirtualMachine" {
		return e.Value
	}
	return ""
}

// eachHolder calls f, under its lock, for each object whose recentTask is not empty.
func (m *taskManager) eachHolder(
	f func(ctx *simulator.Context, holder mo.Reference, recent []types.ManagedObjectReference),
) {
	ctx := m.v.newContext()
	ctx.WithLock(m, func() { f(ctx, m, m.RecentTask) })
	for _, e := range m.v.reg.All("") {
		ctx.WithLock(e, func() {
			if recent := e.Entity().RecentTask; len(recent) > 0 {
				f(ctx, e, recent)
			}
		})
	}
}

func (m *taskManager) expireRecent() {
	m.eachHolder(func(ctx *simulator.Context, holder mo.Reference, recent []types.ManagedObjectReference) {
		ctx.Update(holder, m.recent(slices.Clone(recent)))
	})
}

func (m *taskManager) forgetTasks() {
	m.eachHolder(func(ctx *simulator.Context, holder mo.Reference, _ []types.ManagedObjectReference) {
		ctx.Update(holder, []types.PropertyChange{{Name: "recentTask", Val: []types.ManagedObjectReference{}}})
	})
	ctx := m.v.newContext()
	for _, task := range m.v.reg.AllReference("Task") {
		ctx.Map.Remove(ctx, task.Reference())
	}
}

func (m *taskManager) forgetHistory() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.first += len(m.history)
	m.history = nil
}

// CreateCollectorForTasks makes a history collector. Faults: InvalidState where the client has too many.
func (m *taskManager) CreateCollectorForTasks(
	ctx *simulator.Context, req *types.CreateCollectorForTasks,
) soap.HasFault {
	body := new(methods.CreateCollectorForTasksBody)
	m.mu.Lock()
	mine := 0
	for _, session := range m.collectors {
		if session == ctx.Session.Key {
			mine++
		}
	}

	m.mu.Unlock()
	if mine >= maxCollectors {
		body.Fault_ = simulator.Fault("Too many task collectors to create", new(types.InvalidState))
		return body
	}

	c := &taskCollector{m: m, spec: req.Filter}
	c.Self.Type = "TaskHistoryCollector"
	c.Filter = req.Filter
	ref := ctx.Session.Put(c).Reference()
	m.mu.Lock()
	m.collectors[ref] = ctx.Session.Key
	m.mu.Unlock()
	body.Res = &types.CreateCollectorForTasksResponse{Returnval: ref}
	return body
}

// taskCollector reads the task history from old to new; it sees tasks that came after it was made, too.
type taskCollector struct {
	mo.TaskHistoryCollector
	m    *taskManager
	spec types.TaskFilterSpec
	pos  int // the position of the next task to look at; guarded by the object's lock
}

// ReadNextTasks reads up to maxCount tasks that match, oldest first; none is the end.
func (c *taskCollector) ReadNextTasks(_ *simulator.Context, req *types.ReadNextTasks) soap.HasFault {
	body := new(methods.ReadNextTasksBody)
	if req.MaxCount <= 0 {
		body.Fault_ = simulator.Fault(
			"A specified parameter was not correct: maxCount", &types.InvalidArgument{InvalidProperty: "maxCount"},
		)
		return body
	}

	body.Res = new(types.ReadNextTasksResponse)
	c.m.mu.Lock()
	defer c.m.mu.Unlock()

	c.pos = max(c.pos, c.m.first)
	for ; c.pos < c.m.first+len(c.m.history) && len(body.Res.Returnval) < int(req.MaxCount); c.pos++ {
		if info := c.m.infos[c.m.history[c.pos-c.m.first]]; c.matches(info) {
			body.Res.Returnval = append(body.Res.Returnval, info)
		}
	}

	return body
}

// RewindCollector goes back to the oldest task.
func (c *taskCollector) RewindCollector(*simulator.Context, *types.RewindCollector) soap.HasFault {
	c.pos = 0
	return &methods.RewindCollectorBody{Res: new(types.RewindCollectorResponse)}
}

// ResetCollector goes behind the newest task.
func (c *taskCollector) ResetCollector(*simulator.Context, *types.ResetCollector) soap.HasFault {
	c.m.mu.Lock()
	c.pos = c.m.first + len(c.m.history)
	c.m.mu.Unlock()
	return &methods.ResetCollectorBody{Res: new(types.ResetCollectorResponse)}
}

// SetCollectorPageSize is for latestPage, which nobody here reads.
func (c *taskCollector) SetCollectorPageSize(*simulator.Context, *types.SetCollectorPageSize) soap.HasFault {
	return &methods.SetCollectorPageSizeBody{Res: new(types.SetCollectorPageSizeResponse)}
}

// DestroyCollector ends the collector.
func (c *taskCollector) DestroyCollector(ctx *simulator.Context, req *types.DestroyCollector) soap.HasFault {
	c.m.mu.Lock()
	delete(c.m.collectors, req.This)
	c.m.mu.Unlock()
	ctx.Session.Remove(ctx, req.This)
	return &methods.DestroyCollectorBody{Res: new(types.DestroyCollectorResponse)}
}

func (c *taskCollector) matches(info types.TaskInfo) bool {
	spec := c.spec
	if e := spec.Entity; e != nil {
		self := info.Entity != nil && *info.Entity == e.Entity
		below := e.Recursion != types.TaskFilterSpecRecursionOptionSelf && e.Entity == c.m.v.content.RootFolder
		if !below && (!self || e.Recursion == types.TaskFilterSpecRecursionOptionChildren) {
			return false
		}
	}

	if len(spec.State) > 0 && !slices.Contains(spec.State, info.State) {
		return false
	}
	if len(spec.ActivationId) > 0 && !slices.Contains(spec.ActivationId, info.ActivationId) {
		return false
	}

	if u := spec.UserName; u != nil {
		reason, byUser := info.Reason.(*types.TaskReasonUser)
		if byUser && !slices.Contains(u.UserList, reason.UserName) || !byUser && !u.SystemUser {
			return false
		}
	}

	return spec.Time == nil || inTime(*spec.Time, info)
}

func inTime(spec types.TaskFilterSpecByTime, info types.TaskInfo) bool {
	at := &info.QueueTime
	switch spec.TimeType {
	case types.TaskFilterSpecTimeOptionStartedTime:
		at = info.StartTime
	case types.TaskFilterSpecTimeOptionCompletedTime:
		at = info.CompleteTime
	case types.TaskFilterSpecTimeOptionQueuedTime:
	}

	if at == nil {
		return false
	}

	return (spec.BeginTime == nil || !at.Before(*spec.BeginTime)) && (spec.EndTime == nil || !at.After(*spec.EndTime))
}
