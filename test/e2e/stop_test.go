package e2e

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/guestflow/guestflow/internal/events/stream/natstest"
	"github.com/guestflow/guestflow/internal/vcsim"
)

// Where an owner is stopped, all between its intent and its fact.
const (
	atIntent   = "with its intent published"
	inReadBack = "while it reads its intent back"
	callLost   = "with its call on the way, which is lost"
	callDone   = "with its call on the way, which takes effect"
	meanwhile  = "with its intent published, until the other is in the middle of the run"
)

// An owner is stopped with SIGSTOP between the intent and the fact of each act, until the other replica has taken the
// run to its end, or has the next fact of it; then it goes on, not knowing that time has passed. It does nothing more:
// everything was done once, and the run ended once.
func TestOwnerStoppedForLongerThanTheAckWait(t *testing.T) {
	t.Parallel()
	cluster := natstest.StartCluster(t, 3)
	type stop struct {
		act
		point string
	}
	var cases []stop
	for _, act := range acts {
		for _, point := range []string{atIntent, inReadBack, callLost, callDone, meanwhile} {
			cases = append(cases, stop{act: act, point: point})
		}
	}
	cases = sample(cases)
	const lanes = 5
	inLanes(t, lanes, func(t *testing.T, n int) {
		l := newLane(t, cluster.URL(), fmt.Sprintf("stop-%d", n+1), 3, len(cases)/lanes+1)
		tried := map[string]string{}
		for k := n; k < len(cases); k += lanes {
			name := cases[k].op + ", owner stopped " + cases[k].point
			tried[name] = l.stopped(name, cases[k].act, cases[k].point)
		}
		for name, vm := range tried {
			if all := l.numbered(name, vm); all[len(all)-1].kind != "run.succeeded" {
				t.Errorf("%s: %v", name, kindsOf(all))
			}
		}
	})
}

// stopped is one such case on a VM of its own.
func (l *lane) stopped(name string, a act, point string) (vm string) {
	l.t.Helper()
	vm = l.vm()
	var once sync.Once
	owner := make(chan string, 1)
	stop := func(instance string) {
		once.Do(func() {
			l.replica(instance).signal(syscall.SIGSTOP)
			owner <- instance
		})
	}
	l.hook(func(c vcsim.Call, phase vcsim.Phase) vcsim.Action {
		action := vcsim.Proceed
		if c.Op == a.op && phase == vcsim.Before && (point == callLost || point == callDone) {
			once.Do(func() {
				instance := l.holder()
				l.replica(instance).signal(syscall.SIGSTOP)
				owner <- instance
				if point == callLost {
					action = vcsim.Drop
				}
			})
		}
		return action
	})
	// One channel keeps what was published in order.
	said := make(chan *nats.Msg, 1024)
	for _, subject := range []string{"guestflow.events." + l.vcenter + "." + vm + ".>",
		"$JS.API.STREAM.MSG.GET.GUESTFLOW_EVENTS"} {
		sub, err := l.conn.ChanSubscribe(subject, said)
		if err != nil {
			l.t.Fatal(err)
		}
		defer func() {
			if err := sub.Unsubscribe(); err != nil {
				l.t.Error(err)
			}
		}()
	}
	quit := make(chan struct{})
	var listening sync.WaitGroup
	listening.Go(func() {
		intent := ""
		for {
			select {
			case m := <-said:
				switch {
				case strings.HasPrefix(m.Subject, "guestflow."):
					if e := l.read(m); e.kind == a.starting {
						intent = e.run.Owner.Instance
					}
					if intent != "" && (point == atIntent || point == meanwhile) {
						stop(intent)
					}
				case intent != "" && point == inReadBack && strings.Contains(string(m.Data), vm) &&
					!strings.HasPrefix(m.Reply, ownInbox):
					stop(intent)
				}
			case <-quit:
				return
			}
		}
	})
	defer listening.Wait()
	defer close(quit)

	l.publish(vm, name, fullRequest("exit 0"))
	stale := <-owner
	p := l.replica(stale)
	if point == meanwhile {
		l.until(name+": the other has its fact", func() bool {
			return slices.ContainsFunc(l.stored(vm), func(e event) bool {
				return e.kind == a.started && e.run.Owner.Instance == other(stale)
			})
		})
		p.signal(syscall.SIGCONT)
	}
	if end := l.settled(name, vm); end.run.Owner.Instance != other(stale) {
		l.t.Errorf("%s: ended by %s, which was stopped", name, stale)
	}
	l.hook(nil)
	before := l.stored(vm)
	p.signal(syscall.SIGCONT)
	l.until(name+": the stale owner gives up", func() bool {
		return slices.ContainsFunc(strings.Split(p.log.String(), "\n"), func(line string) bool {
			return strings.Contains(line, "another owner goes on with this request") &&
				strings.Contains(line, `"`+vm+`"`)
		})
	})
	l.once(name, vm)
	if diff := cmp.Diff(kindsOf(before), kindsOf(l.stored(vm))); diff != "" {
		l.t.Errorf("%s: the stale owner was not silent (-before +after):\n%s", name, diff)
	}
	l.publish(vm, name+", afterwards", map[string]any{"verify": false})
	if end := l.settled(name+", afterwards", vm); end.kind != "run.succeeded" {
		l.t.Errorf("%s: the request that followed ended with %s: %+v", name, end.kind, end.run.Error)
	}
	l.t.Logf("%s: %v", name, kindsOf(before))
	return vm
}

func (p *service) signal(s syscall.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Errorf("%s: %v", s, err)
	}
}
