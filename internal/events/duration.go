package events

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Duration is a duration in a request: a Go duration string such as "90s" or "20m". The zero value is one that was not
// given; a "0s" that was written is kept apart from it (as a negative value), because for guest.readyTimeout it means
// "not at all". Read it with Or.
type Duration time.Duration

// explicitZero is a "0s" that somebody wrote.
const explicitZero Duration = -1

// Or returns the duration, or def where none was given.
func (d Duration) Or(def time.Duration) time.Duration {
	switch {
	case d == 0:
		return def
	case d < 0:
		return 0
	}
	return time.Duration(d)
}

// String writes the duration as Go does; one that was not given is "0s", like an explicit zero.
func (d Duration) String() string { return d.Or(0).String() }

// MarshalJSON writes the duration as a Go duration string.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads a Go duration string. Null is read as absent; a negative duration and one without a unit (but
// "0") are errors.
func (d *Duration) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("a duration is a string such as \"90s\" or \"20m\", not %.40s", b)
	}
	v, err := ParseDuration(s)
	if err != nil {
		return err
	}
	*d = v
	return nil
}

// ParseDuration reads a Go duration string that is not negative.
func ParseDuration(s string) (Duration, error) {
	v, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%.40q is not a duration: write it as \"90s\", \"20m\" or \"1h30m\"", s)
	}
	if v < 0 || strings.HasPrefix(s, "-") {
		return 0, fmt.Errorf("duration %.40q is negative", s)
	}
	if v == 0 {
		return explicitZero, nil
	}
	return Duration(v), nil
}
