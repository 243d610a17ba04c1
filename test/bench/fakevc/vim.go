package fakevc

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"time"
)

const release = "9.0.0.0"

// content is ServiceInstance.content.
var content = `{"_typeName":"ServiceContent","about":{"_typeName":"AboutInfo","name":"VMware vCenter Server",` +
	`"apiVersion":"` + release + `","instanceUuid":"5c2b0f9e-bench","build":"1"},` +
	member("sessionManager", "SessionManager") + `,` +
	member("propertyCollector", "PropertyCollector") + `,` +
	member("viewManager", "ViewManager") + `,` +
	member("taskManager", "TaskManager") + `,` +
	member("guestCustomizationManager", "VirtualMachineGuestCustomizationManager") + `,` +
	member("guestOperationsManager", "GuestOperationsManager") + `,` +
	member("customizationSpecManager", "CustomizationSpecManager") + `,` +
	member("authorizationManager", "AuthorizationManager") + `}`

func member(name, kind string) string { return `"` + name + `":` + string(ref(kind, kind)) }

// ref is a ManagedObjectReference.
func ref(kind, id string) []byte {
	return fmt.Appendf(nil, `{"_typeName":"ManagedObjectReference","type":%q,"value":%q}`, kind, id)
}

// moRef names a managed object.
type moRef struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

// vimMethods are the methods of VI JSON that there are.
func (s *Server) vimMethods() map[string]answerFunc {
	return map[string]answerFunc{
		"content":                  constant(content),
		"Login":                    s.login,
		"Logout":                   s.logout,
		"SessionIsActive":          constant("true"),
		"CurrentTime":              s.currentTime,
		"RetrievePropertiesEx":     s.retrieve,
		"HasPrivilegeOnEntities":   s.privileges,
		"CreateCollectorForTasks":  s.createHistory,
		"ReadNextTasks":            s.readHistory,
		"DestroyCollector":         s.destroyHistory,
		"CustomizeGuest_Task":      s.customize,
		"StartGuestNetwork_Task":   s.startNetwork,
		"CancelTask":               constant("null"),
		"CreatePropertyCollector":  s.createCollector,
		"DestroyPropertyCollector": s.destroyCollector,
		"CreateListView":           s.createView,
		"ModifyListView":           s.modifyView,
		"DestroyView":              s.destroyView,
		"CreateFilter":             s.createFilter,
		"WaitForUpdatesEx":         s.waitForUpdates,
	}
}

func (s *Server) login(r *request, w http.ResponseWriter) ([]byte, error) {
	var in struct{ UserName, Password string }
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if in.UserName != Username || in.Password != Password {
		return nil, &fault{http.StatusInternalServerError, "InvalidLogin"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	token := s.newID("token")
	s.sessions[token] = true
	w.Header().Set(sessionHeader, token)
	return fmt.Appendf(nil, `{"_typeName":"UserSession","key":"key-%s","userName":%q}`, token, Username), nil
}

func (s *Server) logout(r *request, _ http.ResponseWriter) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, r.Header.Get(sessionHeader))
	return nil, nil
}

func (s *Server) currentTime(*request, http.ResponseWriter) ([]byte, error) {
	return []byte(`"` + stamp(time.Now()) + `"`), nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }

// filterSpec is what is read of a PropertyFilterSpec.
type filterSpec struct {
	PropSet []struct {
		Type    string   `json:"type"`
		PathSet []string `json:"pathSet"`
	} `json:"propSet"`
	ObjectSet []struct {
		Obj moRef `json:"obj"`
	} `json:"objectSet"`
}

// paths are the properties that the spec asks for of a kind of object.
func (f *filterSpec) paths(kind string) []string {
	for _, p := range f.PropSet {
		if p.Type == kind {
			return p.PathSet
		}
	}
	return nil
}

func (s *Server) retrieve(r *request, _ http.ResponseWriter) ([]byte, error) {
	var in struct {
		SpecSet []filterSpec `json:"specSet"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()

	var b bytes.Buffer
	b.WriteString(`{"_typeName":"RetrieveResult","objects":[`)
	first := true
	for _, spec := range in.SpecSet {
		for _, o := range spec.ObjectSet {
			if !s.exists(o.Obj) {
				return nil, &fault{http.StatusInternalServerError, "ManagedObjectNotFound"}
			}
			if !first {
				b.WriteByte(',')
			}
			first = false
			b.WriteString(`{"_typeName":"ObjectContent","obj":`)
			b.Write(ref(o.Obj.Type, o.Obj.Value))
			b.WriteString(`,"propSet":[`)
			s.writeProps(&b, o.Obj, spec.paths(o.Obj.Type), "DynamicProperty", "")
			b.WriteString(`]}`)
		}
	}
	b.WriteString(`]}`)
	return b.Bytes(), nil
}

// exists reports whether there is such an object. Every VM is there.
func (s *Server) exists(o moRef) bool {
	if o.Type == "Task" {
		return s.tasks[o.Value] != nil
	}
	return o.Type == "VirtualMachine" && strings.HasPrefix(o.Value, "vm-")
}

// writeProps writes properties of an object as elements of the given type. op is set for changes. The caller holds mu.
func (s *Server) writeProps(b *bytes.Buffer, o moRef, paths []string, element, op string) {
	first := true
	for _, path := range paths {
		var value string
		if o.Type == "Task" {
			value = string(s.tasks[o.Value].info())
		} else {
			value = s.guest(o.Value).property(path)
		}
		if value == "" {
			continue
		}
		if !first {
			b.WriteByte(',')
		}
		first = false
		fmt.Fprintf(b, `{"_typeName":%q,"name":%q,`, element, path)
		if op != "" {
			fmt.Fprintf(b, `"op":%q,`, op)
		}
		fmt.Fprintf(b, `"val":%s}`, value)
	}
}

func (s *Server) privileges(r *request, _ http.ResponseWriter) ([]byte, error) {
	var in struct {
		Entity []moRef  `json:"entity"`
		PrivID []string `json:"privId"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	var entities []string
	for _, e := range in.Entity {
		var granted []string
		for _, id := range in.PrivID {
			granted = append(granted,
				fmt.Sprintf(`{"_typeName":"PrivilegeAvailability","privId":%q,"isGranted":true}`, id))
		}
		entities = append(entities, fmt.Sprintf(`{"_typeName":"EntityPrivilege","entity":%s,"privAvailability":[%s]}`,
			ref(e.Type, e.Value), strings.Join(granted, ",")))
	}
	return []byte("[" + strings.Join(entities, ",") + "]"), nil
}

func (s *Server) createHistory(r *request, _ http.ResponseWriter) ([]byte, error) {
	var in struct {
		Filter struct {
			Entity struct {
				Entity moRef `json:"entity"`
			} `json:"entity"`
			Time struct {
				BeginTime time.Time `json:"beginTime"`
			} `json:"time"`
		} `json:"filter"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()

	// The id is made of the VM's number and not of a counter: who replays a recorded run knows it beforehand.
	g := s.guest(in.Filter.Entity.Entity.Value)
	g.histories++
	id := fmt.Sprintf("history-%s-%d", g.number(), g.histories)
	left := []*task{}
	for _, t := range g.tasks {
		if !t.queued.Before(in.Filter.Time.BeginTime) {
			left = append(left, t)
		}
	}
	s.histories[id] = left
	return ref("TaskHistoryCollector", id), nil
}

func (s *Server) readHistory(r *request, _ http.ResponseWriter) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	tasks, ok := s.histories[r.id]
	if !ok {
		return nil, &fault{http.StatusInternalServerError, "ManagedObjectNotFound"}
	}
	s.histories[r.id] = nil
	var infos []string
	for _, t := range tasks {
		infos = append(infos, string(t.info()))
	}
	return []byte("[" + strings.Join(infos, ",") + "]"), nil
}

func (s *Server) destroyHistory(r *request, _ http.ResponseWriter) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.histories, r.id)
	return nil, nil
}
