package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
)

// profiled is a file that is added to the service when it is built for profiles: the service that ships has no pprof.
//
//go:embed profiled.go.txt
var profiled []byte

// profileAt is where a service that was built for profiles answers.
const profileAt = "127.0.0.1:6399"

// buildProfiled builds the service of this repository with pprof in it.
func buildProfiled(dir string) (binary string, err error) {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	service := filepath.Join(string(root[:len(root)-1]), "cmd", "consumer")
	added, overlay := filepath.Join(dir, "profiled.go"), filepath.Join(dir, "overlay.json")
	text, err := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(service, "profiled.go"): added}})
	if err != nil {
		return "", err
	}
	if err := errors.Join(os.WriteFile(added, profiled, 0o600), os.WriteFile(overlay, text, 0o600)); err != nil {
		return "", err
	}
	binary = filepath.Join(dir, "consumer")
	build := exec.Command("go", "build", "-overlay", overlay, "-o", binary, service)
	build.Stderr = os.Stderr
	return binary, build.Run()
}

// profileEnv are the settings of a service that was built for profiles.
func (b *bench) profileEnv() []string {
	if b.profile == "" {
		return nil
	}
	return []string{"GUESTFLOW_BENCH_PROFILE=" + profileAt}
}

// startProfile begins a CPU profile of the service.
func (b *bench) startProfile(ctx context.Context, name string) error {
	if b.profile == "" || name == loopName {
		return nil
	}
	_, err := fetch(ctx, "http://"+profileAt+"/start")
	return err
}

// stopProfile writes the CPU profile, and those of the memory, into the folder of the flag -profile.
func (b *bench) stopProfile(ctx context.Context, name, mode string) error {
	if b.profile == "" || name == loopName {
		return nil
	}
	if err := os.MkdirAll(b.profile, 0o750); err != nil {
		return err
	}
	for _, kind := range []string{"cpu", "heap", "allocs", "goroutine"} {
		text, err := fetch(ctx, "http://"+profileAt+"/"+kind)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(b.profile, mode+"."+kind), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// fetch is the body of what answers a GET.
func fetch(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", address, resp.Status)
	}
	return body, nil
}
