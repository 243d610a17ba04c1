package vcapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sort"
	"strings"
	"time"
)

// Task reads one task. Error: ManagedObjectNotFound, where vCenter forgot it (some ten minutes after its end, or after a restart); it may still be
// in the task history then, see Tasks.
//
// Source: VI JSON, Task.info.
func (c *Client) Task(ctx context.Context, id string) (Task, error) {
	var raw json.RawMessage
	if err := c.vim(ctx, at("Task", id), "", "info", nil, &raw); err != nil {
		return Task{}, err
	}
	task, ok := decodeTask(properties{"info": raw}, c.known.veil())
	if !ok {
		e := &Error{Status: http.StatusOK, Class: Permanent, Message: "the answer is no TaskInfo: " + words(raw)}
		return Task{}, e.fill("GET Task/info", "GET Task/"+id+"/info", c.host)
	}
	return task, nil
}

// Tasks are the tasks of a VM that vCenter shows: VM.recentTask, whatever its age, and the task history from since on (by queueTime, vCenter's
// clock; the zero time: all of it), the oldest first. history is false where vCenter refused or lacks the history, and recentTask alone is told.
// recentTask holds what runs and what ended within ten minutes and the last 200; it is empty after a restart of vCenter.
//
// Source: VI JSON, TaskManager.recentTask, TaskManager.CreateCollectorForTasks, TaskHistoryCollector.ReadNextTasks.
func (c *Client) Tasks(ctx context.Context, vm string, since time.Time) (tasks []Task, history bool, err error) {
	byID := make(map[string]Task)
	recent, err := c.recentTasks(ctx, vm)
	if err != nil {
		return nil, false, err
	}
	filter := map[string]any{"_typeName": "TaskFilterSpec",
		"entity": map[string]any{"_typeName": "TaskFilterSpecByEntity", "entity": refTo(virtualMachine, vm), "recursion": "self"}}
	if !since.IsZero() {
		filter["time"] = map[string]any{"_typeName": "TaskFilterSpecByTime", "timeType": "queuedTime", "beginTime": wire(since)}
	}
	past, history, err := c.taskHistory(ctx, filter, 0)
	if err != nil {
		return nil, false, err
	}
	for _, task := range append(past, recent...) { // the recent ones are the fresher ones
		byID[task.ID] = task
	}
	for _, task := range byID {
		tasks = append(tasks, task)
	}
	sort.Slice(tasks, func(i, j int) bool {
		if !tasks[i].QueueTime.Equal(tasks[j].QueueTime) {
			return tasks[i].QueueTime.Before(tasks[j].QueueTime)
		}
		return tasks[i].ID < tasks[j].ID
	})
	return tasks, history, nil
}

// AnyTaskBefore reports whether the task history holds a task, of whatever object, that was queued before t (vCenter's clock): then vCenter's memory
// reaches back behind t. A history that cannot be read is an error here.
func (c *Client) AnyTaskBefore(ctx context.Context, t time.Time) (bool, error) {
	tasks, history, err := c.taskHistory(ctx, map[string]any{"_typeName": "TaskFilterSpec",
		"time": map[string]any{"_typeName": "TaskFilterSpecByTime", "timeType": "queuedTime", "endTime": wire(t)}}, 1)
	if err != nil {
		return false, err
	}
	if !history {
		e := &Error{Class: Permanent, Message: "this vCenter does not let the account read the task history"}
		return false, e.fill("CreateCollectorForTasks", "", c.host)
	}
	for _, task := range tasks {
		if task.QueueTime.Before(t) {
			return true, nil
		}
	}
	return false, nil
}

func wire(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// recentTasks reads the infos behind VM.recentTask. One that vanishes between the two reads is left out.
func (c *Client) recentTasks(ctx context.Context, vm string) ([]Task, error) {
	all, err := c.retrieve(ctx, virtualMachine, []string{"recentTask"}, vm)
	if err != nil {
		return nil, err
	}
	props, ok := all[vm]
	if !ok {
		return nil, missing(virtualMachine, vm).fill("RetrievePropertiesEx", "", c.host)
	}
	ids := decodeVM(props, veil{}).RecentTasks
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
		if task, ok := decodeTask(props, c.known.veil()); ok {
			task.ID = firstOf(task.ID, id)
			tasks = append(tasks, task)
		}
	}
	return tasks, nil
}

func isGone(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Name == "ManagedObjectNotFound"
}

// taskHistory reads the history that filter selects, from its oldest task on, at most the given number (0: all). readable is false where vCenter
// gives none; an error is only that it could not be asked.
func (c *Client) taskHistory(ctx context.Context, filter any, most int) (tasks []Task, readable bool, err error) {
	// A collector lives in its session: all in one, and once more with the next session where this one was lost.
	for renewed := false; ; renewed = true {
		s, err := c.vimLogin.get(ctx)
		if err != nil {
			return nil, false, err
		}
		tasks, err = c.collect(ctx, s, filter, most)
		var e *Error
		switch {
		case err == nil:
			return tasks, true, nil
		case !errors.As(err, &e) || e.Status == 0 && e.Name == "":
			return nil, false, err // no answer
		case e.Class == SessionLost:
			c.forget(s, true)
			if renewed {
				return nil, false, err
			}
		case e.Name == "InvalidState" && !renewed && s.histories.Load() > 0: // no place for more collectors: some of ours are left, which end with the session
			c.forget(s, false)
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

// collectors is how many histories are read at once: vCenter allows a client 32 collectors [TaskManager.maxCollector], and refuses more with InvalidState.
const collectors = 16

// collect makes a collector, reads its pages and destroys it: vCenter allows a client few of them.
func (c *Client) collect(ctx context.Context, s *session, filter any, most int) ([]Task, error) {
	select {
	case c.histories <- struct{}{}:
	case <-ctx.Done():
		return nil, c.givenUp(ctx, historyCollector)
	}
	collector, err := c.keeper.create(ctx, s, taskManager, "TaskManager", historyCollector, map[string]any{"filter": filter}, func() { <-c.histories })
	if err != nil {
		return nil, err
	}
	here := at(collector.ref.Type, collector.ref.Value)
	defer c.keeper.takeDown(ctx, collector)
	page := 100
	if most > 0 {
		page = most
	}
	var tasks []Task
	seen := make(map[string]bool)
	for {
		var raw json.RawMessage
		if err := c.vimIn(ctx, s, here, "TaskHistoryCollector", "ReadNextTasks", map[string]int{"maxCount": page}, &raw); err != nil {
			return nil, err
		}
		fresh := 0
		each(raw, func(info json.RawMessage) {
			if task, ok := decodeTask(properties{"info": info}, c.known.veil()); ok && !seen[task.ID] {
				seen[task.ID] = true
				tasks = append(tasks, task)
				fresh++
			}
		})
		if fresh == 0 || most > 0 && len(tasks) >= most { // [] is the end; so is a page that repeats
			return tasks, nil
		}
	}
}

// decodeTask reads a TaskInfo: the property info, over which the parts of it that a server may push alone (info.state) are laid.
func decodeTask(p properties, s veil) (Task, bool) {
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
		ID:            firstOf(ref.Value, textOf(info["key"])),
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
	if raw := present(info["error"]); task.State == "error" {
		task.Err = decodeError(0, raw, s)
		task.Err.Op, task.Err.Sent = task.Name, Answered
		if len(raw) == 0 {
			task.Err.Message = "the task failed, and vCenter does not say why"
		}
	}
	return task, task.State != ""
}

// CancelTask asks vCenter to cancel a task; it does not wait for its end. An act: see Client.
//
// Faults: InvalidState (it has ended), NotSupported (it cannot be canceled), ManagedObjectNotFound. Source: VI JSON, Task.CancelTask.
func (c *Client) CancelTask(ctx context.Context, fence Fence, task string) error {
	_, _, err := c.act(ctx, fence, c.vimLogin, func(s *session) (*call, error) {
		return c.vimCall(s.service, at("Task", task), "", "CancelTask", none)
	})
	return err
}

// startTask is an act whose answer is a Task.
func (c *Client) startTask(ctx context.Context, fence Fence, build func(*session) (*call, error)) (string, error) {
	ans, cl, err := c.act(ctx, fence, c.vimLogin, build)
	if err != nil {
		return "", err
	}
	var ref moRef
	if err := c.decode(cl, ans, &ref); err != nil {
		return "", err
	}
	if ref.Value == "" {
		return "", c.notUnderstood(cl, ans, fmt.Errorf("it names no task: %s", words(ans.body)))
	}
	return ref.Value, nil
}
