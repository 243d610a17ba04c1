package vcapi_test

import (
	"context"
	"crypto/x509"
	"fmt"

	"github.com/guestflow/guestflow/internal/vcapi"
	"github.com/guestflow/guestflow/internal/vcsim"
)

// A client starts the network of a VM, behind its caller's fence, and watches the Task until its end.
func Example() {
	v, err := vcsim.Start(vcsim.Options{VMs: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer v.Close()

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(v.CAPEM())
	c, err := vcapi.New(vcapi.Config{
		URL:      v.URL(),
		Username: v.Username(),
		Password: func() (string, error) { return v.Password(), nil },
		RootCAs:  roots,
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer c.Close(context.Background())
	defer cancel()
	go func() { _ = c.Run(ctx) }()

	fence := func(context.Context) error { return nil } // still the owner of this run?
	vm := v.VMs()[0]
	guest := vcapi.GuestAuth{Username: vcsim.DefaultGuestUsername, Password: vcsim.DefaultGuestPassword}
	task, err := c.StartGuestNetwork(ctx, fence, vm, guest)

	if err != nil {
		fmt.Println(err)
		return
	}

	err = c.Watch(ctx, vm, task, func(s vcapi.WatchState) (done bool) {
		return s.Task != nil && s.Task.State == "success"
	})
	fmt.Println(v.VM(vm).Effects().NetworkStarts, "network start,", err)

	// Output:
	// 1 network start, <nil>
}
