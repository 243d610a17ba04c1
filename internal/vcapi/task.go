package vcapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Task reads one Task. It may be repeated. Fault: ManagedObjectNotFound, where vCenter forgot the Task (some ten
// minutes after its end, or after a restart); the history may still have it then, see Tasks.
//
// Source: VI JSON, Task.info.
func (c *Client) Task(ctx context.Context, id string) (Task, error) {
	var raw json.RawMessage
	if err := c.callVIM(ctx, objectRef("Task", id), "", "info", nil, &raw); err != nil {
		return Task{}, err
	}

	task, ok := decodeTask(properties{"info": raw}, c.secrets.redactor())
	if !ok {
		e := &Error{Status: http.StatusOK, Class: Permanent, Message: "the answer is not a TaskInfo: " + oneLine(raw)}
		return Task{}, e.withCall("GET Task/info", "GET Task/"+id+"/info", c.host)
	}
	return task, nil
}

// Tasks are the Tasks of a VM that vCenter shows, the oldest first: those in VM.recentTask, whatever their age, and
// those in the task history since a time (by queueTime, in vCenter's clock; the zero time means all). history is false
// where vCenter refuses or does not have the history: then only recentTask counts. recentTask holds what runs, what
// ended within ten minutes, and the last 200; it is empty after a restart of vCenter. It may be repeated.
//
// Source: VI JSON, TaskManager.recentTask, TaskManager.CreateCollectorForTasks, TaskHistoryCollector.ReadNextTasks.
func (c *Client) Tasks(ctx context.Context, vm string, since time.Time) (tasks []Task, history bool, err error) {
	recent, err := c.recentTasks(ctx, vm)
	if err != nil {
		return nil, false, err
	}

	filter := map[string]any{
		"_typeName": "TaskFilterSpec",
		"entity": map[string]any{
			"_typeName": "TaskFilterSpecByEntity",
			"entity":    refTo(virtualMachine, vm),
			"recursion": "self",
		},
	}

	if !since.IsZero() {
		filter["time"] = map[string]any{
			"_typeName": "TaskFilterSpecByTime",
			"timeType":  "queuedTime",
			"beginTime": formatTime(since),
		}
	}

	past, history, err := c.taskHistory(ctx, filter, 0)
	if err != nil {
		return nil, false, err
	}

	byID := make(map[string]Task)
	for _, task := range append(past, recent...) { // what recentTask says is newer
		byID[task.ID] = task
	}

	tasks = slices.SortedFunc(maps.Values(byID), func(a, b Task) int {
		return cmp.Or(a.QueueTime.Compare(b.QueueTime), cmp.Compare(a.ID, b.ID))
	})
	return tasks, history, nil
}

// AnyTaskBefore reports whether the task history holds a Task, of any object, that was queued before t (vCenter's
// clock). Then the history reaches back behind t. A history that cannot be read is an error here. It may be repeated.
//
// Source: as for Tasks.
func (c *Client) AnyTaskBefore(ctx context.Context, t time.Time) (bool, error) {
	tasks, history, err := c.taskHistory(ctx, map[string]any{
		"_typeName": "TaskFilterSpec",
		"time": map[string]any{
			"_typeName": "TaskFilterSpecByTime",
			"timeType":  "queuedTime",
			"endTime":   formatTime(t),
		},
	}, 1)
	if err != nil {
		return false, err
	}

	if !history {
		e := &Error{Class: Permanent, Message: "this vCenter does not let the account read the task history"}
		return false, e.withCall("CreateCollectorForTasks", "", c.host)
	}

	for _, task := range tasks {
		if task.QueueTime.Before(t) {
			return true, nil
		}
	}

	return false, nil
}

func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// recentTasks reads the infos of VM.recentTask. A Task that vanishes between the two reads is left out.
func (c *Client) recentTasks(ctx context.Context, vm string) ([]Task, error) {
	all, err := c.retrieve(ctx, virtualMachine, []string{"recentTask"}, vm)
	if err != nil {
		return nil, err
	}

	props, ok := all[vm]
	if !ok {
		return nil, objectNotFound(virtualMachine, vm).withCall("RetrievePropertiesEx", "", c.host)
	}

	ids := decodeVM(props, redactor{}).RecentTasks
	if len(ids) == 0 {
		return nil, nil
	}

	infos, err := c.retrieve(ctx, "Task", []string{"info"}, ids...)
	if isGone(err) { // one of them: each by itself then
		infos = make(map[string]properties)
		for _, id := range ids {
			one, err := c.retrieve(ctx, "Task", []string{"info"}, id)
			if err != nil && !isGone(err) {
				return nil, err
			}
			if props, ok := one[id]; ok {
				infos[id] = props
			}
		}
	} else if err != nil {
		return nil, err
	}

	var tasks []Task
	for id, props := range infos {
		if task, ok := decodeTask(props, c.secrets.redactor()); ok {
			task.ID = cmp.Or(task.ID, id)
			tasks = append(tasks, task)
		}
	}

	return tasks, nil
}

func isGone(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Name == "ManagedObjectNotFound"
}

// taskHistory reads the Tasks of the history that filter selects, from the oldest on, at most limit (0: all). readable
// is false where vCenter does not give the history; err is only that it did not answer.
func (c *Client) taskHistory(ctx context.Context, filter any, limit int) (tasks []Task, readable bool, err error) {
	// A collector exists only in its session: where that is lost, the whole read begins again in the next one, once.
	for renewed := false; ; renewed = true {
		s, err := c.vimLogin.get(ctx)
		if err != nil {
			return nil, false, err
		}

		tasks, err = c.readHistory(ctx, s, filter, limit)
		var e *Error
		switch {
		case err == nil:
			return tasks, true, nil
		case !errors.As(err, &e) || e.Status == 0 && e.Name == "":
			return nil, false, err // no answer
		case e.Class == SessionLost:
			c.forgetSession(s, true)
			if renewed {
				return nil, false, err
			}
		case e.Name == "InvalidState" && !renewed && s.historyCollectors.Load() > 0:
			// vCenter allows no further collector. Some of ours are left, and end with the session.
			c.forgetSession(s, false)
		case e.Name == "" || e.Status == http.StatusTooManyRequests:
			if e.Class == Transient { // a proxy's answer, not vCenter's word on the history
				return nil, false, err
			}
			return nil, false, nil
		default:
			return nil, false, nil
		}
	}
}

// maxHistoryReads is how many histories are read at once: vCenter allows a client 32 collectors
// [TaskManager.maxCollector], and refuses more with InvalidState.
const maxHistoryReads = 16

// readHistory creates a collector, reads its pages and destroys it.
func (c *Client) readHistory(ctx context.Context, s *session, filter any, limit int) ([]Task, error) {
	select {
	case c.historySlots <- struct{}{}:
	case <-ctx.Done():
		return nil, c.canceledError(ctx, createHistoryCollector)
	}

	in, release := map[string]any{"filter": filter}, func() { <-c.historySlots }
	collector, err := c.cleaner.create(ctx, s, taskManager, "TaskManager", createHistoryCollector, in, release)
	if err != nil {
		return nil, err
	}

	here := objectRef(collector.ref.Type, collector.ref.Value)
	defer c.cleaner.remove(ctx, collector)
	page := 100
	if limit > 0 {
		page = limit
	}

	var tasks []Task
	seen := make(map[string]bool)
	for {
		var raw json.RawMessage
		in := map[string]int{"maxCount": page}
		if err := c.callVIMIn(ctx, s, here, "TaskHistoryCollector", "ReadNextTasks", in, &raw); err != nil {
			return nil, err
		}

		fresh := 0
		forEachElement(raw, func(info json.RawMessage) {
			if task, ok := decodeTask(properties{"info": info}, c.secrets.redactor()); ok && !seen[task.ID] {
				seen[task.ID] = true
				tasks = append(tasks, task)
				fresh++
			}
		})

		if fresh == 0 || limit > 0 && len(tasks) >= limit { // an empty page is the end, and so is a repeated one
			return tasks, nil
		}
	}
}

// decodeTask reads a TaskInfo: the property info, with the single members that a server may push alone (info.state) in
// place of its own.
func decodeTask(p properties, s redactor) (Task, bool) {
	var info map[string]json.RawMessage
	if json.Unmarshal(anyValue(p["info"]), &info) != nil || info == nil {
		info = make(map[string]json.RawMessage)
	}

	for path, value := range p {
		if part, ok := strings.CutPrefix(path, "info."); ok {
			info[part] = anyValue(value)
		}
	}

	var ref, entity moRef
	var reason struct {
		UserName string `json:"userName"`
	}
	_ = json.Unmarshal(info["task"], &ref)
	_ = json.Unmarshal(info["entity"], &entity)
	_ = json.Unmarshal(info["reason"], &reason)
	task := Task{
		ID:            cmp.Or(ref.Value, textOf(info["key"])),
		Name:          textOf(info["name"]),
		DescriptionID: textOf(info["descriptionId"]),
		Entity:        entity.Value,
		State:         anyString(info["state"]),
		UserName:      reason.UserName,
		StartTime:     anyTime(info["startTime"]),
		CompleteTime:  anyTime(info["completeTime"]),
	}

	if cancelable := anyBool(info["cancelable"]); cancelable != nil {
		task.Cancelable = *cancelable
	}
	if queued := anyTime(info["queueTime"]); queued != nil {
		task.QueueTime = *queued
	}
	if json.Unmarshal(anyValue(info["progress"]), &task.Progress) != nil {
		task.Progress = nil
	}

	if raw := dropNull(info["error"]); task.State == "error" {
		task.Err = decodeError(0, raw, s)
		task.Err.Op, task.Err.Sent = task.Name, Answered
		if len(raw) == 0 {
			task.Err.Message = "the task failed, and vCenter does not say why"
		}
	}

	return task, task.State != ""
}

// CancelTask asks vCenter to cancel a Task; it does not wait for its end. An effect, see the package comment; it may be
// repeated.
//
// Faults: InvalidState (it has ended), NotSupported (it cannot be canceled), ManagedObjectNotFound.
//
// Source: VI JSON, Task.CancelTask.
func (c *Client) CancelTask(ctx context.Context, fence Fence, task string) error {
	_, _, err := c.effect(ctx, fence, c.vimLogin, func(s *session) (*call, error) {
		return c.newVIMCall(s.service, objectRef("Task", task), "", "CancelTask", noParams)
	})
	return err
}

// startTask is an effect whose response names a Task.
func (c *Client) startTask(ctx context.Context, fence Fence, build func(*session) (*call, error)) (string, error) {
	resp, cl, err := c.effect(ctx, fence, c.vimLogin, build)
	if err != nil {
		return "", err
	}
	var ref moRef
	if err := c.decode(cl, resp, &ref); err != nil {
		return "", err
	}
	if ref.Value == "" {
		return "", c.notUnderstood(cl, resp, fmt.Errorf("it names no task: %s", oneLine(resp.body)))
	}
	return ref.Value, nil
}
