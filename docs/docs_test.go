// Package docs_test holds the documentation true: what it shows is run, what it lists is complete.
package docs_test

import (
	"context"
	"flag"
	"go/ast"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/guestflow/guestflow/sandbox"
)

// bin is where programs builds.
var bin string

var (
	update     = flag.Bool("update", false, "write the examples and outputs that a run produced into the pages")
	everything = flag.Bool("all", false,
		"run the snippets too that need programs of others: nats, Python, Node.js, Terraform, Ansible")
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "guestflow-docs-")
	if err != nil {
		panic(err)
	}
	bin = dir
	flag.Parse()
	if err := flag.Set("test.parallel", "10"); err != nil { // these tests wait more than they compute
		panic(err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}), goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*Server).Shutdown"))
}

// patience bounds every wait for a thing: long, so that only what never happens fails.
const patience = 2 * time.Minute

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// start runs a sandbox until the end of the test.
func start(t *testing.T, o sandbox.Options) *sandbox.Sandbox {
	t.Helper()
	s, err := sandbox.Start(patient(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func connect(t *testing.T, url string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// constants are the values of the contract's words of a type in events, such as Kind and Code.
func constants(t *testing.T, typ string) (all []string) {
	t.Helper()
	inFolder(t, "internal/events", func(n ast.Node) {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return
		}
		if is, ok := spec.Type.(*ast.Ident); !ok || is.Name != typ {
			return
		}
		for _, v := range spec.Values {
			all = append(all, text(v))
		}
	})
	if len(all) < 3 {
		t.Fatalf("only %d constants of type %s in internal/events", len(all), typ)
	}
	slices.Sort(all)
	return all
}

// sections are the texts under the headings of a level ("## "), by heading.
func sections(page, level string) map[string]string {
	all := map[string]string{}
	for _, s := range strings.Split("\n"+page, "\n"+level)[1:] {
		heading, text, _ := strings.Cut(s, "\n")
		all[strings.Trim(heading, "` ")] = text
	}
	return all
}
