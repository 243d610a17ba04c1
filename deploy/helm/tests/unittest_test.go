package chart

import (
	"bytes"
	"testing"

	"github.com/helm-unittest/helm-unittest/pkg/unittest"
	"github.com/helm-unittest/helm-unittest/pkg/unittest/printer"
)

// TestUnit runs the suites of deploy/helm/tests with helm-unittest.
func TestUnit(t *testing.T) {
	var said bytes.Buffer
	runner := unittest.TestRunner{Printer: printer.NewPrinter(&said, new(bool)), Strict: true,
		TestFiles: []string{"tests/*_test.yaml"}}
	if !runner.RunV3([]string{chartDir}) || bytes.Contains(said.Bytes(), []byte("0 passed, 0 total\nTests")) {
		t.Error("\n" + said.String())
	}
}
