package vcsim_test

import (
	"testing"
	"time"

	"github.com/guestflow/guestflow/internal/vcsim"
)

func TestSpeed(t *testing.T) {
	for _, n := range []int{1, 8, 100, 500} {
		at := time.Now()
		v := start(t, vcsim.Options{VMs: n})
		t.Log(n, time.Since(at), v.VMs()[:1], v.VM(v.VMs()[0]).MACs(), len(v.VMs()))
	}
}
