package schemas_test

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/guestflow/guestflow/schemas"
)

// A publisher checks the data of a request before it sends it.
func ExampleCheck() {
	d := json.NewDecoder(strings.NewReader(`{
		"vm": "vm-42",
		"network": {},
		"processes": [{"name": "join-domain", "run": {"arguments": "--domain example.test"}}]
	}`))
	d.UseNumber()
	var request any
	if err := d.Decode(&request); err != nil {
		fmt.Println(err)
		return
	}

	for _, p := range schemas.Check(schemas.Requested, request) {
		fmt.Println(p)
	}
	// Output:
	// guest: is required
	// processes[0].run.path: is required
}
