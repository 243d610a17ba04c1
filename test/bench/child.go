package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// child is a process that the benchmark started.
type child struct {
	name  string
	cmd   *exec.Cmd
	stdin io.Closer // while it is open the process runs: it ends with the program that started it
	ended chan struct{}
}

// startRole starts this program again in a role, and reads the line of JSON with which the role says that it is ready.
func startRole(ready any, role string, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, append([]string{role}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c, err := startChild(role, cmd)
	if err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, ready)
	}
	if err != nil {
		c.kill()
		return nil, fmt.Errorf("bench %s does not get ready: %w", role, err)
	}
	return c, nil
}

func startChild(name string, cmd *exec.Cmd) (*child, error) {
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	c := &child{name: name, cmd: cmd, stdin: stdin, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // that it has ended is all there is to know
		close(c.ended)
	}()
	return c, nil
}

// kill ends the process with SIGKILL and waits until it is gone.
func (c *child) kill() {
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return
	}
	<-c.ended
	_ = c.stdin.Close()
}

// isReady says, in a role, that it is ready, and waits for the end of the program that started it.
func isReady(ready any) error {
	line, err := json.Marshal(ready)
	if err != nil {
		return err
	}
	fmt.Println(string(line))
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// cpu is the time that the process has computed, user and system, in hundredths of a second.
func (c *child) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(text), ") ") // the name before may hold blanks
	fields := strings.Fields(after)
	const utime, stime = 11, 12 // proc(5), counted from the state
	if len(fields) <= stime {
		return 0, fmt.Errorf("/proc/%d/stat is not understood", c.cmd.Process.Pid)
	}
	var ticks int64
	for _, field := range fields[utime : stime+1] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil // Linux shows ticks of 10 ms on every machine
}

// memory is a figure of the process's memory in KiB: VmRSS is what it has now, VmHWM the most it ever had.
func (c *child) memory(figure string) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, figure+":"); ok {
			return strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no %s", c.cmd.Process.Pid, figure)
}

// describeMachine says on what the figures are measured.
func describeMachine(w io.Writer) {
	model := "unknown"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if _, value, ok := strings.Cut(line, ":"); ok && strings.HasPrefix(line, "model name") {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	load, _ := os.ReadFile("/proc/loadavg")
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	_, _ = fmt.Fprintf(w, "machine: %s, %d cores, Linux %s, load before: %s\n", model, cores(),
		strings.TrimSpace(string(kernel)), strings.TrimSpace(string(load)))
}
