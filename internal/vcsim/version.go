package vcsim

import (
	"fmt"
	"strconv"
	"strings"
)

// apiVersion is "9.0.0.0" in numbers.
type apiVersion [4]int

func parseAPIVersion(s string) (apiVersion, error) {
	var v apiVersion
	parts := strings.Split(s, ".")
	if len(parts) != len(v) {
		return v, fmt.Errorf("vcsim: API version %q: want four numbers, as in 9.0.0.0", s)
	}

	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 {
			return v, fmt.Errorf("vcsim: API version %q: want four numbers, as in 9.0.0.0", s)
		}
		v[i] = n
	}

	return v, nil
}

// before reports whether v is older than the version s, which must be a good one.
func (v apiVersion) before(s string) bool {
	w, err := parseAPIVersion(s)
	if err != nil {
		panic(err)
	}

	for i := range v {
		if v[i] != w[i] {
			return v[i] < w[i]
		}
	}
	return false
}

// product is the version as about.version shows it: "9.0.0".
func (v apiVersion) product() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

// releases are the VI JSON releases that exist, newest first [vi-json.yaml 9.1.1.0].
var releases = []string{
	"9.1.1.0", "9.1.0.0", "9.0.0.0", "8.0.3.1", "8.0.3.0", "8.0.2.0", "8.0.1.0", "8.0.0.2", "8.0.0.1", "8.0.0.0",
	"7.0.3.2", "7.0.3.1", "7.0.3.0", "7.0.2.1", "7.0.2.0", "7.0.1.1", "7.0.1.0", "7.0.0.2", "7.0.0.1", "7.0.0.0",
}

// knows reports whether this vCenter serves a VI JSON release.
func (v *VCenter) knows(release string) bool {
	for _, r := range releases {
		if r == release {
			return !v.api.before(r)
		}
	}
	return false
}
