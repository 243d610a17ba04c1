package fakevc

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// view is a ListView.
type view struct {
	objects map[moRef]bool
	filters []*collector // that show what is in it
}

// collector is a PropertyCollector with at most one filter, over one view.
type collector struct {
	filter  filterSpec
	view    *view
	version int
	order   []moRef          // that have to be shown, the oldest first
	kinds   map[moRef]string // of those: enter, modify or leave
	known   map[moRef]bool   // that were shown
	wake    chan struct{}    // holds one
	gone    chan struct{}    // closed when it is destroyed
}

func (s *Server) createCollector(*request, http.ResponseWriter) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.newID("collector")
	s.collectors[id] = &collector{kinds: map[moRef]string{}, known: map[moRef]bool{}, wake: make(chan struct{}, 1),
		gone: make(chan struct{})}
	return ref("PropertyCollector", id), nil
}

func (s *Server) destroyCollector(r *request, _ http.ResponseWriter) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.collectors[r.id]; c != nil {
		close(c.gone)
		delete(s.collectors, r.id)
		if c.view != nil {
			c.view.filters = nil
		}
	}
	return nil, nil
}

func (s *Server) createView(*request, http.ResponseWriter) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.newID("view")
	s.views[id] = &view{objects: map[moRef]bool{}}
	return ref("ListView", id), nil
}

func (s *Server) destroyView(r *request, _ http.ResponseWriter) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.views, r.id)
	return nil, nil
}

func (s *Server) modifyView(r *request, _ http.ResponseWriter) ([]byte, error) {
	var in struct {
		Add    []moRef `json:"add"`
		Remove []moRef `json:"remove"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.views[r.id]
	if v == nil {
		return nil, &fault{http.StatusInternalServerError, "ManagedObjectNotFound"}
	}
	unresolved := []byte("[")
	for _, o := range in.Add {
		switch {
		case !s.exists(o):
			if len(unresolved) > 1 {
				unresolved = append(unresolved, ',')
			}
			unresolved = append(unresolved, ref(o.Type, o.Value)...)
		case !v.objects[o]:
			v.objects[o] = true
			for _, c := range v.filters {
				c.show(o, "enter")
			}
		}
	}
	for _, o := range in.Remove {
		delete(v.objects, o)
		for _, c := range v.filters {
			c.show(o, "leave")
		}
	}
	return append(unresolved, ']'), nil
}

func (s *Server) createFilter(r *request, _ http.ResponseWriter) ([]byte, error) {
	var in struct {
		Spec filterSpec `json:"spec"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.collectors[r.id]
	if c == nil || len(in.Spec.ObjectSet) != 1 || s.views[in.Spec.ObjectSet[0].Obj.Value] == nil {
		return nil, &fault{http.StatusInternalServerError, "ManagedObjectNotFound"}
	}
	c.filter, c.view = in.Spec, s.views[in.Spec.ObjectSet[0].Obj.Value]
	c.view.filters = append(c.view.filters, c)
	for o := range c.view.objects {
		c.show(o, "enter")
	}
	return ref("PropertyFilter", s.newID("filter")), nil
}

// changed puts an object into the next answer of every poll that watches it. The caller holds mu.
func (s *Server) changed(o moRef) {
	for _, c := range s.collectors {
		if c.view != nil && c.view.objects[o] {
			c.show(o, "modify")
		}
	}
}

// show puts an object into the next answer. The caller holds Server.mu.
func (c *collector) show(o moRef, kind string) {
	was, waits := c.kinds[o]
	switch {
	case !waits:
		c.order = append(c.order, o)
	case kind == "modify":
		kind = was // it enters, and shows the change
	}
	c.kinds[o] = kind
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (s *Server) waitForUpdates(r *request, _ http.ResponseWriter) ([]byte, error) {
	var in struct {
		Version string `json:"version"`
		Options struct {
			MaxWaitSeconds   int `json:"maxWaitSeconds"`
			MaxObjectUpdates int `json:"maxObjectUpdates"`
		} `json:"options"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	s.mu.Lock()
	c := s.collectors[r.id]
	s.mu.Unlock()
	if c == nil {
		return nil, &fault{http.StatusInternalServerError, "ManagedObjectNotFound"}
	}
	timeout := time.NewTimer(time.Duration(in.Options.MaxWaitSeconds) * time.Second)
	defer timeout.Stop()
	for {
		if answer := s.updates(c, in.Options.MaxObjectUpdates); answer != nil {
			return answer, nil
		}
		select {
		case <-c.wake:
		case <-c.gone:
			return nil, &fault{http.StatusInternalServerError, "ManagedObjectNotFound"}
		case <-timeout.C:
			return []byte("null"), nil
		case <-r.Context().Done():
			return nil, &fault{http.StatusInternalServerError, "RequestCanceled"}
		}
	}
}

// updates is the next answer of a poll, with at most so many objects; nil where nothing has changed.
func (s *Server) updates(c *collector, most int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(c.order) == 0 {
		return nil
	}
	n := min(len(c.order), max(most, 1))
	var b bytes.Buffer
	c.version++
	fmt.Fprintf(&b, `{"_typeName":"UpdateSet","version":%q,"truncated":%t,"filterSet":[{"_typeName":`+
		`"PropertyFilterUpdate","objectSet":[`, strconv.Itoa(c.version), n < len(c.order))
	for i, o := range c.order[:n] {
		if i > 0 {
			b.WriteByte(',')
		}
		kind := c.kinds[o]
		delete(c.kinds, o)
		fmt.Fprintf(&b, `{"_typeName":"ObjectUpdate","kind":%q,"obj":%s,"changeSet":[`, kind, ref(o.Type, o.Value))
		if kind != "leave" {
			s.writeProps(&b, o, c.changedPaths(o, kind), "PropertyChange", "assign")
		}
		b.WriteString(`]}`)
	}
	b.WriteString(`]}]}`)
	c.order = c.order[n:]
	return b.Bytes()
}

// changedPaths are the properties that an update shows: all, but of a VM that was shown before those that a Task's end
// changes.
func (c *collector) changedPaths(o moRef, kind string) []string {
	if kind == "modify" && o.Type == "VirtualMachine" {
		return []string{"guest.hostName", "guest.net", "guest.ipStack", "guest.customizationInfo"}
	}
	return c.filter.paths(o.Type)
}
