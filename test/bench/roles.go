package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/guestflow/guestflow/test/bench/fakevc"
)

func cores() int { return runtime.NumCPU() }

// natsReady is what a nats-server says once it listens.
type natsReady struct {
	URL        string
	Monitoring string // HTTP
}

// natsRole is a nats-server with JetStream on disk.
func natsRole() error {
	flags := flag.NewFlagSet("nats", flag.ExitOnError)
	dir := flags.String("dir", "", "for the streams")
	if err := flags.Parse(os.Args[2:]); err != nil {
		return err
	}
	s, err := server.NewServer(&server.Options{
		ServerName: "bench", Host: "127.0.0.1", Port: server.RANDOM_PORT,
		HTTPHost: "127.0.0.1", HTTPPort: server.RANDOM_PORT,
		JetStream: true, StoreDir: *dir, NoSigs: true, NoLog: true,
	})
	if err != nil {
		return err
	}
	s.Start()
	if !s.ReadyForConnections(time.Minute) {
		return errors.New("it does not listen")
	}
	monitoring := fmt.Sprintf("http://127.0.0.1:%d", s.MonitorAddr().Port)
	err = isReady(natsReady{URL: s.ClientURL(), Monitoring: monitoring})
	s.Shutdown()
	return err
}

// vcenterReady is what a fake vCenter says once it listens.
type vcenterReady struct {
	URL     string
	Control string // HTTP
	CA      []byte // PEM
}

// vcenterRole is a fake vCenter.
func vcenterRole() error {
	certificate, err := fakevc.NewCertificate()
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := fakevc.New()
	failed := make(chan error, 2)
	go func() { failed <- s.Serve(listener, certificate) }()
	go func() {
		failed <- (&http.Server{Handler: s.Control(), ReadHeaderTimeout: time.Minute}).Serve(control)
	}()
	go func() {
		fmt.Fprintln(os.Stderr, "bench vcenter:", <-failed)
		os.Exit(1)
	}()
	return isReady(vcenterReady{
		URL:     "https://" + listener.Addr().String(),
		Control: "http://" + control.Addr().String(),
		CA:      certificate.PEM,
	})
}
