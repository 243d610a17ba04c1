package vcsim_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"

	"github.com/guestflow/guestflow/internal/vcsim"
)

// A test starts a simulated vCenter, scripts how it answers, and afterwards checks which calls arrived.
func Example() {
	v, err := vcsim.Start(vcsim.Options{VMs: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer v.Close()

	vm := v.VM(v.VMs()[0])
	v.Script(vcsim.Rule{VM: vm.ID(), Op: "GET guest/customization", RESTError: "SERVICE_UNAVAILABLE", Times: 1})

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(v.CAPEM())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}

	for range 2 {
		resp, err := client.Get(v.URL() + "/api/vcenter/vm/" + vm.ID() + "/guest/customization")
		if err != nil {
			fmt.Println(err)
			return
		}
		_ = resp.Body.Close()
		fmt.Println(resp.Status)
	}

	fmt.Println(v.Count("GET guest/customization", vm.ID()), "calls")

	// Output:
	// 503 Service Unavailable
	// 401 Unauthorized
	// 2 calls
}
