package fakevc

import (
	"encoding/json"
	"maps"
	"net/http"
	"strconv"
	"time"
)

// Control is how the benchmark speaks to the vCenter, beside TLS: what was counted, what was recorded, which Tasks end.
func (s *Server) Control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.stats()) })
	mux.HandleFunc("GET /record", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.recorded()) })
	mux.HandleFunc("GET /held", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.heldTasks()) })
	mux.HandleFunc("GET /ends", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.endTimes()) })
	mux.HandleFunc("POST /reset", func(_ http.ResponseWriter, r *http.Request) {
		s.reset(r.FormValue("record") == "true")
	})
	mux.HandleFunc("POST /hold", func(http.ResponseWriter, *http.Request) { s.holdTasks() })
	mux.HandleFunc("POST /end", func(_ http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.FormValue("n"))
		rate, _ := strconv.Atoi(r.FormValue("rate"))
		s.endHeld(n, rate)
	})
	return mux
}

func writeJSON(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

func (s *Server) stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := Stats{Calls: maps.Clone(s.calls), Handshakes: s.handshakes.Load(), Resumed: s.resumed.Load(),
		VMs: map[string]Effects{}}
	for id, g := range s.vms {
		all.VMs[id] = g.done
	}
	return all
}

func (s *Server) recorded() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record
}

func (s *Server) heldTasks() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}

func (s *Server) endTimes() map[string]time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.ends)
}

// reset begins to count anew, and to record where that is asked for. What was done to the guests stays.
func (s *Server) reset(record bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.calls)
	s.handshakes.Store(0)
	s.resumed.Store(0)
	s.recording, s.record = record, nil
}

// holdTasks keeps Tasks that customize from ending by themselves.
func (s *Server) holdTasks() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold = true
}

// endHeld ends n held Tasks, the oldest first: rate a second, all at once where that is 0. It returns when it is done.
func (s *Server) endHeld(n, rate int) {
	const ticks = 100 // a second
	began, ended := time.Now(), 0
	tick := time.NewTicker(time.Second / ticks)
	defer tick.Stop()
	for ended < n {
		due := n
		if rate > 0 {
			<-tick.C
			due = min(n, int(time.Since(began).Seconds()*float64(rate)))
		}
		s.mu.Lock()
		for ; ended < due; ended++ {
			if len(s.held) == 0 {
				s.mu.Unlock()
				return
			}
			t := s.held[0]
			s.held = s.held[1:]
			s.end(t)
			s.ends[t.vm.id] = t.ended
		}
		s.mu.Unlock()
	}
}
