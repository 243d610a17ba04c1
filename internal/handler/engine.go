package handler

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// engineCode finds the code with which the guest customization engine ended, in the words that vCenter or the guest
// pass on: ERR,<code>,<text>.
var engineCode = regexp.MustCompile(`\bERR, ?(\d{1,3})\b`)

// engineCodes are those codes in words. (Constants of the engine's own scripts, which VMware Tools' guest customization
// package installs.)
var engineCodes = map[int]struct {
	words     string
	retryable bool
}{
	1:   {"it does not know the customization that it was called for", true},
	242: {"the guest's machine ID could not be renewed", false},
	243: {"another customization holds its lock in the guest: wait for its end, or for an hour if it crashed", true},
	244: {"the guest's network service could not be started: see its log in the guest", false},
	245: {"it could not read its configuration: see that VMware Tools run and are up to date", true},
	246: {"the MAC addresses of the guest's NICs could not be renewed", false},
	247: {"it could not write its marker file: see that the guest's disk is neither full nor read-only", false},
	248: {"the password could not be set", false},
	249: {"the script failed when it was called with postcustomization", false},
	250: {"the script failed when it was called with precustomization", false},
	251: {"the guest's date or time could not be set: see the spec's timeZone and hwClockUTC", false},
	252: {"the guest's DNS settings could not be written: see the spec's DNS servers and suffixes", false},
	253: {"a NIC could not be set up: see the spec's nicSettingMap, and that its MAC addresses are the VM's", false},
	254: {"the guest's host name or network could not be set up: see the spec", false},
	255: {"a general error: see its log in the guest, " + engineLog, false},
}

// engineLog is where the engine writes what it does, in the guest, whether it succeeds or not. (Recovering from Guest
// Network Customization Errors, vSphere Web Services SDK Programming Guide.)
const engineLog = "/var/log/vmware-gosc/instant_clone_customization.log"

// engineWords explains the engine's code in text; "" where there is none. retryable reports whether the same may
// succeed another time.
func engineWords(text string) (words string, retryable bool) {
	found := engineCode.FindStringSubmatch(text)
	if found == nil {
		return "", false
	}
	n, _ := strconv.Atoi(found[1])
	code, ok := engineCodes[n]
	if !ok {
		return "", false
	}
	return fmt.Sprintf("the customization engine in the guest ended with code %d: %s", n, code.words), code.retryable
}

// What an event holds of the engine's log.
const (
	logBytes = 4 << 10
	logLines = 30
)

// readEngineLog gives the end of the engine's log in the guest, where the run made the engine work and the log can be
// read.
func (r *run) readEngineLog() []string {
	if r.spec == nil || len(r.point.Tasks) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(r.life, observeTime)
	defer cancel()
	auth, err := r.guestAuth(ctx, "customize")
	if err != nil {
		return nil
	}
	end, err := r.vc.GuestFile(ctx, r.vm, auth, engineLog, logBytes)
	if err != nil {
		return nil // the run's own error is the one to tell
	}
	secrets, err := r.namedSecrets(ctx)
	if err != nil {
		return nil // what cannot be read cannot be hidden
	}
	text := strings.ToValidUTF8(string(end), "")
	if len(end) == logBytes { // it begins in the middle of a line
		_, text, _ = strings.Cut(text, "\n")
	}
	for _, secret := range secrets {
		text = strings.ReplaceAll(text, secret, "***")
	}
	if text = strings.TrimSpace(text); text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	return lines[max(0, len(lines)-logLines):]
}
