package vcapi

import (
	"encoding/json"
	"maps"
	"time"
)

// updateSet has the members of vmodl.query.PropertyCollector.UpdateSet that are used. Others cannot make it unreadable.
type updateSet struct {
	Version   string         `json:"version"`
	Truncated *bool          `json:"truncated"`
	FilterSet []filterUpdate `json:"filterSet"`
}

type filterUpdate struct {
	ObjectSet []objectUpdate `json:"objectSet"`
}

// decodeBody decodes the response at once; only where that fails, object by object, for a large one is read twice then.
func (set *updateSet) decodeBody(body []byte) error {
	var whole struct {
		Version   string `json:"version"`
		Truncated *bool  `json:"truncated"`
		FilterSet []struct {
			ObjectSet []plainUpdate `json:"objectSet"`
		} `json:"filterSet"`
	}
	if json.Unmarshal(body, &whole) != nil {
		return json.Unmarshal(body, set)
	}

	set.Version, set.Truncated = whole.Version, whole.Truncated
	set.FilterSet = make([]filterUpdate, len(whole.FilterSet))
	for i, filter := range whole.FilterSet {
		objects := make([]objectUpdate, len(filter.ObjectSet))
		for k := range filter.ObjectSet {
			objects[k] = objectUpdate(filter.ObjectSet[k])
		}
		set.FilterSet[i].ObjectSet = objects
	}
	return nil
}

// hasMore reports whether another page can be had at once.
func (set *updateSet) hasMore() bool { return set.Truncated != nil && *set.Truncated }

// objectUpdate is a change of one object.
type objectUpdate struct {
	Kind      string `json:"kind"` // enter, modify, leave
	Obj       moRef  `json:"obj"`
	ChangeSet []struct {
		Name string          `json:"name"`
		Op   string          `json:"op"` // assign, add, remove, indirectRemove
		Val  json.RawMessage `json:"val"`
	} `json:"changeSet"`

	malformed bool // only Obj could be decoded
}

// UnmarshalJSON accepts an update that cannot be decoded as a whole, as long as it names its object: that object is
// read by itself then, and the others are not delayed.
func (u *objectUpdate) UnmarshalJSON(raw []byte) error {
	err := json.Unmarshal(raw, (*plainUpdate)(u))
	if err == nil {
		return nil
	}
	if *u = (objectUpdate{Obj: objectOf(raw), malformed: true}); u.Obj.Value != "" {
		return nil
	}
	return err
}

// plainUpdate is an objectUpdate that is decoded strictly.
type plainUpdate objectUpdate

// apply stores a response of the poll. first is that it is the first of its generation; works, that it proves that the
// poll works: then the poll is no longer down, and its watchers see that together with what the response shows.
func (p *poller) apply(set updateSet, first, works bool) {
	p.mu.Lock()
	defer p.mu.Unlock()

	p.lastAnswer = time.Now()
	allWereShown := !p.allShownAt.IsZero() && !first
	switch {
	case set.hasMore(): // an object on a later page is not overdue
		p.allShownAt = time.Time{}
	case !allWereShown:
		p.allShownAt = p.lastAnswer
		wake(p.changed)
	}

	if works && p.down != nil {
		p.down = nil
		for _, o := range p.objects {
			o.notify()
		}
	}

	for _, filter := range set.FilterSet {
		for _, update := range filter.ObjectSet {
			p.applyObject(update, allWereShown)
		}
	}
}

// applyObject stores the change of one object. allWereShown is that the poll had shown all objects before: then an
// object that enters was added to the view since. The caller holds mu.
func (p *poller) applyObject(update objectUpdate, allWereShown bool) {
	o := p.objects[moRef{Type: update.Obj.Type, Value: update.Obj.Value}]
	if o == nil || len(o.watchers) == 0 && update.Kind == "leave" {
		return // no longer watched
	}
	if allWereShown && update.Kind == "enter" && !o.shown && !o.reAdded {
		p.missesAdded = false // this server does show what is added
	}

	switch {
	case update.Kind == "leave": // deleted, or removed from the view and already added again
		o.shown, o.mustRead, o.checkAt = false, true, time.Time{}
		wake(p.changed)
	case update.malformed, update.Kind != "enter" && !o.known: // a change of what is not known: read the whole object
		o.shown, o.mustRead, o.checkAt = true, true, time.Time{}
		o.updates++
		wake(p.changed)
	default:
		o.setProps(update.props(o.props))
	}
}

// props are the object's properties after the update, given those before it.
func (u *objectUpdate) props(before properties) properties {
	props := make(properties, len(before)+len(u.ChangeSet))
	if u.Kind != "enter" {
		maps.Copy(props, before)
	}

	for _, change := range u.ChangeSet {
		if change.Op == "remove" || change.Op == "indirectRemove" {
			delete(props, change.Name)
			continue
		}
		props.set(change.Name, change.Val)
	}

	return props
}

// set assigns a property. A whole TaskInfo replaces the single members of an older one.
func (p properties) set(name string, value json.RawMessage) {
	if name == "info" {
		clear(p)
	}
	p[name] = value
}
