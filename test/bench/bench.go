package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/guestflow/guestflow/test/bench/fakevc"
)

// bench is what the modes have in common.
type bench struct {
	settings
	dir     string // of the service that is built for profiles
	say     io.Writer
	records *os.File // the figures of each round
	crowd   *crowd   // the runs that wait, once there are some
}

func newBench(s settings, say io.Writer) (*bench, error) {
	b := &bench{settings: s, say: say}
	var err error
	if b.dir, err = os.MkdirTemp("", "guestflow-bench-"); err != nil {
		return nil, err
	}
	if s.json != "" {
		if b.records, err = os.Create(s.json); err != nil {
			return nil, err
		}
	}
	if s.profile != "" {
		binary, err := buildProfiled(b.dir)
		if err != nil {
			return nil, err
		}
		b.services = []string{binary}
	}
	return b, nil
}

func (b *bench) close() {
	_ = os.RemoveAll(b.dir)
	if b.records != nil {
		_ = b.records.Close()
	}
}

// write keeps the figures of a round.
func (b *bench) write(v any) error {
	if b.records == nil {
		return nil
	}
	return json.NewEncoder(b.records).Encode(v)
}

// contender is what is measured.
type contender struct {
	name  string
	start func(context.Context, *lab) (*child, error)
}

// job is what the runs of a mode are to do.
type job struct {
	mode string
	data func(vm string) map[string]any
	want fakevc.Effects // on each VM
}

// loopName is how the bare loop is called in tables: every ratio is to it.
const loopName = "bare loop"

// contenders are the services, and the bare loop where there is a script for it.
func (b *bench) contenders(s *script) (all []contender) {
	for _, binary := range b.services {
		name := "guestflow"
		if len(b.services) > 1 {
			name = filepath.Base(binary)
		}
		all = append(all, contender{name, func(ctx context.Context, l *lab) (*child, error) {
			return l.startService(ctx, binary, "bench", b.profileEnv()...)
		}})
	}
	if s == nil {
		return all
	}
	return append(all, contender{loopName, func(_ context.Context, l *lab) (*child, error) {
		text, err := json.Marshal(loopConfig{NATS: l.natsAt.URL, VCenter: l.vcAt.URL, CA: l.vcAt.CA,
			InFlight: l.inFlight, Script: *s})
		if err != nil {
			return nil, err
		}
		file := filepath.Join(l.dir, "loop.json")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return nil, err
		}
		return startRole(&struct{}{}, "loop", "-config", file)
	}})
}

// The data of requests.

func checkRequest(vm string) map[string]any { return map[string]any{"vm": vm} }

func customizeRequest(vm string) map[string]any {
	return map[string]any{
		"vm":      vm,
		"timeout": "24h",
		"guest":   map[string]any{"credentials": map[string]any{"secretRef": "linux-root"}},
		"customize": map[string]any{"timeout": "12h", "spec": map[string]any{
			"_typeName": "CustomizationSpec",
			"identity": map[string]any{"_typeName": "CustomizationLinuxPrep", "domain": "example.test",
				"hostName": map[string]any{"_typeName": "CustomizationFixedName", "name": "web-" + vm[len("vm-"):]}},
			"globalIPSettings": map[string]any{"_typeName": "CustomizationGlobalIPSettings"},
			"nicSettingMap": []any{map[string]any{"_typeName": "CustomizationAdapterMapping",
				"adapter": map[string]any{"_typeName": "CustomizationIPSettings", "subnetMask": "255.255.255.0",
					"ip": map[string]any{"_typeName": "CustomizationFixedIp", "ipAddress": "10.0.0.7"}}}},
		}},
	}
}

func fullRequest(vm string) map[string]any {
	data := customizeRequest(vm)
	data["network"] = map[string]any{}
	data["processes"] = []any{map[string]any{"name": "join",
		"run": map[string]any{"path": "/bin/sh", "arguments": "-c 'exit 0'"}}}
	return data
}

// printf tells the reader something.
func (b *bench) printf(format string, args ...any) { _, _ = fmt.Fprintf(b.say, format, args...) }
