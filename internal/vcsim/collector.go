package vcsim

import (
	"maps"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	// keptVersions is how many answered versions of a collector can be asked again.
	keptVersions = 64
	// gatherFor lets changes that come together be told together.
	gatherFor = 5 * time.Millisecond
	// maxObjectUpdates is vCenter's own limit of one answer.
	maxObjectUpdates = 100
)

// propertyCollector replaces vcsim's, which loses updates when a connection is cut during a wait, and misses objects
// that are added to a view during one. It keeps what each answered version showed, and returns the difference between
// that and the present state. So any version can be asked for again, by any number of waits.
//
// vcsim copies the singleton for each session with reflect.New: so the zero value must work, and it finds what it needs
// in the registry.
type propertyCollector struct {
	simulator.PropertyCollector

	state struct {
		mu       sync.Mutex
		filters  []*propertyFilter
		version  int
		shown    map[int]view // what each answered version showed
		canceled chan struct{}
	}
}

// view is what a collector shows: per filter and object, its properties.
type view map[types.ManagedObjectReference]map[types.ManagedObjectReference]*objectState

// objectState is one object's properties as read at a generation. It is never changed: views share them.
type objectState struct {
	gen     uint64
	props   []types.DynamicProperty
	missing []types.MissingProperty
}

// propertyFilter is a filter of a propertyCollector.
type propertyFilter struct {
	mo.PropertyFilter
	pc *propertyCollector

	mu      sync.Mutex
	gen     uint64 // of refs and states
	refs    []types.ManagedObjectReference
	current map[types.ManagedObjectReference]*objectState
}

func newPropertyCollector(v *VCenter) *propertyCollector {
	pc := new(propertyCollector)
	pc.Self = v.content.PropertyCollector
	return pc
}

func (pc *propertyCollector) owner(ctx *simulator.Context) *VCenter {
	return ctx.Map.Get(guestCustomizationManagerRef).(*guestCustomizationManager).v
}

func (pc *propertyCollector) lock() func() {
	pc.state.mu.Lock()
	if pc.state.canceled == nil {
		pc.state.canceled = make(chan struct{})
		pc.state.shown = make(map[int]view)
	}
	return pc.state.mu.Unlock
}

// CreatePropertyCollector creates another collector for a session.
func (pc *propertyCollector) CreatePropertyCollector(
	ctx *simulator.Context, _ *types.CreatePropertyCollector,
) soap.HasFault {
	made := new(propertyCollector)
	made.Self.Type = "PropertyCollector"
	return &methods.CreatePropertyCollectorBody{
		Res: &types.CreatePropertyCollectorResponse{Returnval: ctx.Session.Put(made).Reference()},
	}
}

// DestroyPropertyCollector ends a collector, its filters and its waits.
func (pc *propertyCollector) DestroyPropertyCollector(
	ctx *simulator.Context, req *types.DestroyPropertyCollector,
) soap.HasFault {
	pc.cancel()
	unlock := pc.lock()
	filters := pc.state.filters
	pc.state.filters = nil
	unlock()

	for _, f := range filters {
		ctx.Session.Remove(ctx, f.Self)
	}

	ctx.Session.Remove(ctx, req.This)
	return &methods.DestroyPropertyCollectorBody{Res: new(types.DestroyPropertyCollectorResponse)}
}

// CreateFilter adds a filter; its objects must exist. A wait in flight sees it at once.
func (pc *propertyCollector) CreateFilter(ctx *simulator.Context, req *types.CreateFilter) soap.HasFault {
	body := new(methods.CreateFilterBody)
	probe := req.Spec
	probe.ReportMissingObjectsInResults = types.NewBool(false)
	res := pc.RetrievePropertiesEx(ctx, &types.RetrievePropertiesEx{SpecSet: []types.PropertyFilterSpec{probe}})

	if fault := res.Fault(); fault != nil {
		body.Fault_ = fault
		return body
	}

	f := &propertyFilter{pc: pc}
	f.Self.Type = "PropertyFilter"
	f.Spec, f.PartialUpdates = req.Spec, req.PartialUpdates
	ref := ctx.Session.Put(f).Reference()

	unlock := pc.lock()
	pc.state.filters = append(pc.state.filters, f)
	pc.Filter = append(slices.Clone(pc.Filter), ref)
	unlock()
	pc.owner(ctx).changes.note(ref)
	body.Res = &types.CreateFilterResponse{Returnval: ref}
	return body
}

// DestroyPropertyFilter ends a filter.
func (f *propertyFilter) DestroyPropertyFilter(ctx *simulator.Context, req *types.DestroyPropertyFilter) soap.HasFault {
	unlock := f.pc.lock()
	f.pc.state.filters = slices.DeleteFunc(
		slices.Clone(f.pc.state.filters), func(x *propertyFilter) bool { return x == f },
	)

	f.pc.Filter = slices.DeleteFunc(
		slices.Clone(f.pc.Filter), func(x types.ManagedObjectReference) bool { return x == f.Self },
	)

	unlock()
	ctx.Session.Remove(ctx, req.This)
	return &methods.DestroyPropertyFilterBody{Res: new(types.DestroyPropertyFilterResponse)}
}

// CancelWaitForUpdates ends every wait of this collector with RequestCanceled.
func (pc *propertyCollector) CancelWaitForUpdates(*types.CancelWaitForUpdates) soap.HasFault {
	pc.cancel()
	return &methods.CancelWaitForUpdatesBody{Res: new(types.CancelWaitForUpdatesResponse)}
}

func (pc *propertyCollector) cancel() {
	defer pc.lock()()
	close(pc.state.canceled)
	pc.state.canceled = make(chan struct{})
}

// WaitForUpdates is the deprecated form without a time limit.
func (pc *propertyCollector) WaitForUpdates(ctx *simulator.Context, req *types.WaitForUpdates) soap.HasFault {
	body := new(methods.WaitForUpdatesBody)
	set, fault := pc.wait(ctx, req.Version, nil)
	if fault != nil {
		body.Fault_ = fault
		return body
	}
	body.Res = &types.WaitForUpdatesResponse{Returnval: *set}
	return body
}

// WaitForUpdatesEx returns what changed since the given version, or nothing after maxWaitSeconds. Faults:
// InvalidCollectorVersion, RequestCanceled, NotAuthenticated where the session ends during the wait.
func (pc *propertyCollector) WaitForUpdatesEx(ctx *simulator.Context, req *types.WaitForUpdatesEx) soap.HasFault {
	body := new(methods.WaitForUpdatesExBody)
	set, fault := pc.wait(ctx, req.Version, req.Options)
	if fault != nil {
		body.Fault_ = fault
		return body
	}
	body.Res = &types.WaitForUpdatesExResponse{Returnval: set}
	return body
}

func (pc *propertyCollector) wait(
	ctx *simulator.Context, version string, opts *types.WaitOptions,
) (*types.UpdateSet, *soap.Fault) {
	v := pc.owner(ctx)
	unlock := pc.lock()
	canceled := pc.state.canceled
	before, known := pc.state.shown[0], version == "" // the empty version showed nothing
	if n, err := strconv.Atoi(version); err == nil {
		before, known = pc.state.shown[n]
	}

	unlock()
	if !known {
		return nil, simulator.Fault("The collector's version is not known.", new(types.InvalidCollectorVersion))
	}

	limit := maxObjectUpdates
	var timeout <-chan time.Time
	once := false
	if opts != nil {
		if n := int(opts.MaxObjectUpdates); n > 0 && n < limit {
			limit = n
		}

		if s := opts.MaxWaitSeconds; s != nil {
			once = *s <= 0
			t := time.NewTimer(time.Duration(*s) * time.Second)
			defer t.Stop()
			timeout = t.C
		}
	}

	for {
		gen, wake := v.changes.now()
		if fault := pc.sessionFault(ctx); fault != nil {
			return nil, fault
		}
		if set := pc.difference(ctx, gen, before, limit); set != nil {
			return set, nil
		}
		if once {
			return nil, nil
		}

		select {
		case <-wake:
			if !v.pause(gatherFor) {
				return nil, nil
			}
		case <-timeout:
			return nil, nil
		case <-canceled:
			return nil, simulator.Fault("The task was canceled by a user.", new(types.RequestCanceled))
		case <-v.done:
			return nil, nil
		}
	}
}

// sessionFault is NotAuthenticated where the caller's session has ended during its wait.
func (pc *propertyCollector) sessionFault(ctx *simulator.Context) *soap.Fault {
	m := ctx.Map.SessionManager()
	res := m.SessionIsActive(
		ctx, &types.SessionIsActive{This: m.Self, SessionID: ctx.Session.Key, UserName: ctx.Session.UserName},
	)

	if body, ok := res.(*methods.SessionIsActiveBody); ok && body.Res != nil && !body.Res.Returnval {
		self := pc.Self
		return simulator.Fault("The session is not authenticated.", notAuthenticated(self))
	}
	return nil
}

// difference is what changed between a view and now, at most limit objects, and is kept as a new version. It is nil
// where nothing changed.
func (pc *propertyCollector) difference(ctx *simulator.Context, gen uint64, before view, limit int) *types.UpdateSet {
	unlock := pc.lock()
	filters := pc.state.filters
	unlock()

	set := new(types.UpdateSet)
	after := make(view, len(filters))
	for _, f := range filters {
		old := before[f.Self]
		now, order := f.read(ctx, pc, gen)
		shown := maps.Clone(old)
		if shown == nil {
			shown = make(map[types.ManagedObjectReference]*objectState)
		}

		after[f.Self] = shown
		update := types.PropertyFilterUpdate{Filter: f.Self}
		tell := func(u types.ObjectUpdate) bool {
			if limit == 0 {
				set.Truncated = types.NewBool(true)
				return false
			}
			limit--
			update.ObjectSet = append(update.ObjectSet, u)
			return true
		}

		for _, ref := range order {
			was, is := old[ref], now[ref]
			if was == is {
				continue
			}
			u, changed := objectUpdate(ref, was, is)
			if changed && !tell(u) {
				break
			}

			shown[ref] = is
		}

		for ref := range old {
			if now[ref] == nil {
				if !tell(types.ObjectUpdate{Kind: types.ObjectUpdateKindLeave, Obj: ref}) {
					break
				}
				delete(shown, ref)
			}
		}

		if len(update.ObjectSet) > 0 {
			set.FilterSet = append(set.FilterSet, update)
		}
	}

	if len(set.FilterSet) == 0 {
		return nil
	}

	defer pc.lock()()
	pc.state.version++
	pc.state.shown[pc.state.version] = after
	delete(pc.state.shown, pc.state.version-keptVersions)
	set.Version = strconv.Itoa(pc.state.version)
	return set
}

// objectUpdate is how an object differs from what was shown of it; was is nil where it was not shown.
func objectUpdate(ref types.ManagedObjectReference, was, is *objectState) (types.ObjectUpdate, bool) {
	u := types.ObjectUpdate{Kind: types.ObjectUpdateKindEnter, Obj: ref, MissingSet: is.missing}
	old := make(map[string]types.AnyType)
	if was != nil {
		u.Kind = types.ObjectUpdateKindModify
		if reflect.DeepEqual(was.missing, is.missing) {
			u.MissingSet = nil
		}
		for _, p := range was.props {
			old[p.Name] = p.Val
		}
	}

	for _, p := range is.props {
		val, shown := old[p.Name]
		delete(old, p.Name)
		if !shown || !reflect.DeepEqual(val, p.Val) {
			u.ChangeSet = append(
				u.ChangeSet, types.PropertyChange{Name: p.Name, Op: types.PropertyChangeOpAssign, Val: p.Val},
			)
		}
	}

	for _, name := range slices.Sorted(maps.Keys(old)) { // unset since
		u.ChangeSet = append(u.ChangeSet, types.PropertyChange{Name: name, Op: types.PropertyChangeOpAssign})
	}

	return u, was == nil || len(u.ChangeSet) > 0 || len(u.MissingSet) > 0
}

// read returns what a filter shows now, and its objects in their order. It reads only what changed since the last time.
func (f *propertyFilter) read(ctx *simulator.Context, pc *propertyCollector, gen uint64) (
	map[types.ManagedObjectReference]*objectState, []types.ManagedObjectReference,
) {
	v := pc.owner(ctx)
	changed := v.changes.changedSince
	f.mu.Lock()
	defer f.mu.Unlock()

	if f.current == nil || f.selectionChanged(changed) {
		f.refs = f.resolve(ctx, pc)
	}

	next := make(map[types.ManagedObjectReference]*objectState, len(f.refs))
	var again []types.ObjectSpec
	for _, ref := range f.refs {
		s := f.current[ref]
		if s != nil && (!changed(ref, s.gen) || v.updatesBlocked(ref)) {
			next[ref] = s
			continue
		}

		if s == nil && ref.Type == "Task" && v.updatesBlocked(ref) { // a new one is not shown yet
			continue
		}

		again = append(again, types.ObjectSpec{Obj: ref})
	}

	if len(again) > 0 {
		for _, o := range retrieve(ctx, pc, f.Spec.PropSet, again) {
			next[o.Obj] = &objectState{gen: gen, props: o.PropSet, missing: o.MissingSet}
		}
	}

	f.gen, f.current = gen, next
	order := slices.DeleteFunc(
		slices.Clone(f.refs), func(ref types.ManagedObjectReference) bool { return next[ref] == nil },
	)

	return next, order
}

// selectionChanged reports whether the filter may select other objects than before. With a plain list or one view, the
// roots show that.
func (f *propertyFilter) selectionChanged(changed func(types.ManagedObjectReference, uint64) bool) bool {
	for _, o := range f.Spec.ObjectSet {
		if changed(o.Obj, f.gen) {
			return true
		}
		for _, s := range o.SelectSet {
			if t, ok := s.(*types.TraversalSpec); !ok || len(t.SelectSet) > 0 {
				return true // deeper than one step: any object on the way may have changed
			}
		}
	}
	return false
}

// resolve follows the filter's traversals to the objects that it selects.
func (f *propertyFilter) resolve(ctx *simulator.Context, pc *propertyCollector) []types.ManagedObjectReference {
	kinds := make([]types.PropertySpec, len(f.Spec.PropSet))
	for i, p := range f.Spec.PropSet {
		kinds[i] = types.PropertySpec{Type: p.Type}
	}

	var refs []types.ManagedObjectReference
	for _, o := range retrieve(ctx, pc, kinds, f.Spec.ObjectSet) {
		refs = append(refs, o.Obj)
	}
	return refs
}

// retrieve reads properties as RetrievePropertiesEx does; objects that are gone are left out.
func retrieve(
	ctx *simulator.Context, pc *propertyCollector, props []types.PropertySpec, objects []types.ObjectSpec,
) []types.ObjectContent {
	res := pc.RetrievePropertiesEx(ctx, &types.RetrievePropertiesEx{SpecSet: []types.PropertyFilterSpec{{
		PropSet: props, ObjectSet: objects, ReportMissingObjectsInResults: types.NewBool(true),
	}}})
	body, ok := res.(*methods.RetrievePropertiesExBody)
	if !ok || body.Res == nil || body.Res.Returnval == nil {
		return nil
	}
	return body.Res.Returnval.Objects
}
