package vcapi

import (
	"encoding/json"
	"time"
)

// updateSet is what is needed of vmodl.query.PropertyCollector.UpdateSet: what else is in it cannot make it unreadable.
type updateSet struct {
	Version   string `json:"version"`
	Truncated *bool  `json:"truncated"`
	FilterSet []struct {
		ObjectSet []objectUpdate `json:"objectSet"`
	} `json:"filterSet"`
}

// hasMore reports whether there is more, to be had at once.
func (set *updateSet) hasMore() bool { return set.Truncated != nil && *set.Truncated }

type objectUpdate struct {
	Kind      string `json:"kind"` // enter, modify, leave
	Obj       moRef  `json:"obj"`
	ChangeSet []struct {
		Name string          `json:"name"`
		Op   string          `json:"op"` // assign, add, remove, indirectRemove
		Val  json.RawMessage `json:"val"`
	} `json:"changeSet"`
	malformed bool // it is not understood
}

// UnmarshalJSON takes what is odd in one object for that object's own: it is read by itself then, and the others are not held up. Where it cannot be
// told whose it is, the whole is not understood.
func (u *objectUpdate) UnmarshalJSON(raw []byte) error {
	type plain objectUpdate
	err := json.Unmarshal(raw, (*plain)(u))
	if err == nil {
		return nil
	}
	if *u = (objectUpdate{Obj: objectOf(raw), malformed: true}); u.Obj.Value != "" {
		return nil
	}
	return err
}

// apply takes an update in. The first of a generation is fresh; the one that shows that the poll stands also ends Down, together with what it brings.
func (p *poller) apply(set updateSet, fresh, stands bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastAnswer = time.Now()
	stood := !p.allShownAt.IsZero() && !fresh
	switch { // what is on a later page is not overdue
	case set.hasMore():
		p.allShownAt = time.Time{}
	case !stood:
		p.allShownAt = p.lastAnswer
		wake(p.changed)
	}
	if stands && p.down != nil {
		p.down = nil
		for _, o := range p.objects {
			o.notify()
		}
	}
	for _, filter := range set.FilterSet {
		for _, update := range filter.ObjectSet {
			o := p.objects[moRef{Type: update.Obj.Type, Value: update.Obj.Value}]
			if o == nil || len(o.watchers) == 0 && update.Kind == "leave" {
				continue // not watched any more
			}
			if stood && update.Kind == "enter" && !o.shown && !o.reAdded {
				p.missesAdded = false // it does show what is added
			}
			if update.Kind == "leave" { // deleted, or taken out of the view and already added again
				o.shown, o.mustRead, o.checkAt = false, true, time.Time{}
				wake(p.changed)
				continue
			}
			if update.malformed || update.Kind != "enter" && !o.known { // a part of what is not known: the whole is read
				o.shown, o.mustRead, o.checkAt = true, true, time.Time{}
				o.updates++
				wake(p.changed)
				continue
			}
			props := make(properties, len(o.props)+len(update.ChangeSet))
			if update.Kind != "enter" {
				for name, value := range o.props {
					props[name] = value
				}
			}
			for _, change := range update.ChangeSet {
				if change.Op == "remove" || change.Op == "indirectRemove" {
					delete(props, change.Name)
					continue
				}
				props.set(change.Name, change.Val)
			}
			o.setProps(props)
		}
	}
}

// set assigns a property. A whole TaskInfo replaces the parts of an older one.
func (p properties) set(name string, value json.RawMessage) {
	if name == "info" {
		clear(p)
	}
	p[name] = value
}
