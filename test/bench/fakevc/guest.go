package fakevc

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// guest is a VM and what runs in it.
type guest struct {
	id         string
	booted     time.Time
	host, ip   string
	customized time.Time // when its customization ended
	tasks      []*task
	processes  []process
	histories  int // collectors of its history that were made
	done       Effects
}

// number is the VM's id without its kind: every other id that belongs to it is made of it.
func (g *guest) number() string { return strings.TrimPrefix(g.id, "vm-") }

// guest finds a VM, or makes it. The caller holds mu.
func (s *Server) guest(id string) *guest {
	g := s.vms[id]
	if g == nil {
		g = &guest{id: id, booted: time.Now().Add(-time.Hour), host: "template", ip: "10.0.9.9"}
		s.vms[id] = g
	}
	return g
}

// task is a Task. The caller of its methods holds mu.
type task struct {
	id, method string
	vm         *guest
	queued     time.Time
	ended      time.Time // zero: it runs
	finish     func()    // what it has done to the guest at its end
}

func (t *task) info() []byte {
	state, progress, complete := "running", 0, ""
	if !t.ended.IsZero() {
		state, progress, complete = "success", 100, `,"completeTime":"`+stamp(t.ended)+`"`
	}
	return fmt.Appendf(nil, `{"_typeName":"TaskInfo","key":%q,"task":%s,"name":%q,"descriptionId":"vm.%s",`+
		`"entity":%s,"entityName":%q,"state":%q,"cancelled":false,"cancelable":true,"progress":%d,`+
		`"reason":{"_typeName":"TaskReasonUser","userName":%q},"queueTime":%q,"startTime":%q%s,"eventChainId":7}`,
		t.id, ref("Task", t.id), t.method, t.method, ref("VirtualMachine", t.vm.id), t.vm.id, state, progress,
		Username, stamp(t.queued), stamp(t.queued), complete)
}

// begin makes a Task that ends at once, or is held. The caller holds mu.
func (s *Server) begin(g *guest, method string, held bool, finish func()) *task {
	t := &task{id: fmt.Sprintf("task-%s-%d", g.number(), len(g.tasks)+1), method: method, vm: g, queued: time.Now(),
		finish: finish}
	s.tasks[t.id] = t
	g.tasks = append(g.tasks, t)
	if held {
		s.held = append(s.held, t)
	} else {
		s.end(t)
	}
	return t
}

// end ends a Task. The caller holds mu.
func (s *Server) end(t *task) {
	t.ended = time.Now()
	t.finish()
	s.changed(moRef{"VirtualMachine", t.vm.id})
	s.changed(moRef{"Task", t.id})
}

// authorized is the body of a call of the guest customization manager.
type authorized struct {
	VM   moRef `json:"vm"`
	Auth struct {
		Username string `json:"username"`
		Password string `json:"password"`
	} `json:"auth"`
	Spec struct {
		Identity struct {
			HostName struct {
				Name string `json:"name"`
			} `json:"hostName"`
		} `json:"identity"`
		NicSettingMap []struct {
			Adapter struct {
				IP struct {
					IPAddress string `json:"ipAddress"`
				} `json:"ip"`
			} `json:"adapter"`
		} `json:"nicSettingMap"`
	} `json:"spec"`
}

// login reads the body of such a call, and checks the guest's login.
func (r *request) login() (in authorized, err error) {
	if err := r.decode(&in); err != nil {
		return in, err
	}
	if in.Auth.Username != GuestUsername || in.Auth.Password != GuestPassword {
		return in, &fault{http.StatusInternalServerError, "InvalidGuestLogin"}
	}
	return in, nil
}

func (s *Server) customize(r *request, _ http.ResponseWriter) ([]byte, error) {
	in, err := r.login()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()

	g := s.guest(in.VM.Value)
	g.done.Customized++
	t := s.begin(g, "CustomizeGuest_Task", s.hold, func() {
		g.host, g.customized = in.Spec.Identity.HostName.Name, time.Now()
		if len(in.Spec.NicSettingMap) > 0 {
			g.ip = in.Spec.NicSettingMap[0].Adapter.IP.IPAddress
		}
	})
	return ref("Task", t.id), nil
}

func (s *Server) startNetwork(r *request, _ http.ResponseWriter) ([]byte, error) {
	in, err := r.login()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()

	g := s.guest(in.VM.Value)
	g.done.NetworkStarted++
	return ref("Task", s.begin(g, "StartGuestNetwork_Task", false, func() {}).id), nil
}

// process is a program in a guest. It ends as soon as it has begun.
type process struct {
	pid     int
	command string
	began   time.Time
}

func (p process) json(exit bool) string {
	command, _ := json.Marshal(p.command)
	text := fmt.Sprintf(`{"pid":%d,"name":"sh","owner":"root","command":%s,"started":"%s"`,
		p.pid, command, stamp(p.began))
	if exit {
		text += fmt.Sprintf(`,"finished":"%s","exit_code":0`, stamp(p.began))
	}
	return text + "}"
}

// routeREST finds what answers a call about a VM.
func (s *Server) routeREST(r *request, path string) answerFunc {
	id, rest, _ := strings.Cut(path, "/")
	r.id = id
	action := r.URL.Query().Get("action")
	switch {
	case rest == "guest/customization" && r.Method == http.MethodGet:
		r.op = "GET guest/customization"
		return s.customizationStatus
	case rest == "guest/customization" && action == "check":
		r.op = "guest/customization check"
		return constant(`{"check_status":"SUPPORTED","supported_guest_os":true,"supported_power_state":true}`)
	case rest == "guest/processes" && (action == "create" || action == "list"):
		r.op = "guest/processes " + action
		return s.guestProcesses
	case strings.HasPrefix(rest, "guest/processes/") && action == "get":
		r.op, r.kind = "guest/processes get", strings.TrimPrefix(rest, "guest/processes/")
		return s.guestProcesses
	}
	return nil
}

func (s *Server) customizationStatus(r *request, _ http.ResponseWriter) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.guest(r.id)
	if g.customized.IsZero() {
		return []byte(`{"status":"IDLE"}`), nil
	}
	return fmt.Appendf(nil, `{"status":"SUCCEEDED","start_time":%q,"end_time":%q}`, stamp(g.customized),
		stamp(g.customized)), nil
}

// guestProcesses creates, lists or gets processes.
func (s *Server) guestProcesses(r *request, _ http.ResponseWriter) ([]byte, error) {
	var in struct {
		Credentials struct {
			UserName string `json:"user_name"`
			Password string `json:"password"`
		} `json:"credentials"`
		Spec struct {
			Path      string `json:"path"`
			Arguments string `json:"arguments"`
		} `json:"spec"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if in.Credentials.UserName != GuestUsername || in.Credentials.Password != GuestPassword {
		return nil, &fault{http.StatusUnauthorized, "UNAUTHENTICATED"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()

	g := s.guest(r.id)
	switch r.op {
	case "guest/processes create":
		g.done.Processes++
		p := process{pid: 4710 + len(g.processes) + 1, began: time.Now(),
			command: `"` + in.Spec.Path + `" ` + in.Spec.Arguments}
		g.processes = append(g.processes, p)
		return fmt.Append(nil, p.pid), nil
	case "guest/processes list":
		list := []string{process{pid: 1, command: "/sbin/init", began: g.booted}.json(false)}
		for _, p := range g.processes {
			list = append(list, p.json(false))
		}
		return []byte("[" + strings.Join(list, ",") + "]"), nil
	}
	for _, p := range g.processes {
		if fmt.Sprint(p.pid) == r.kind {
			return []byte(p.json(true)), nil
		}
	}
	return nil, &fault{http.StatusNotFound, "NOT_FOUND"}
}
