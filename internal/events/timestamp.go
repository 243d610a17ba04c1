package events

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// timestampPattern is the date-time of RFC 3339, 5.6: T and Z in either case. time.Parse takes other things as well,
// and refuses these.
var timestampPattern = regexp.MustCompile(`^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:(\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)$`)

// parseTimestamp reads an RFC 3339 time. A leap second is the moment at which the next second begins, for Go's clock
// has none.
func parseTimestamp(s string) (time.Time, error) {
	wrong := fmt.Errorf("is %.40q, which is no RFC 3339 time: write it as 2026-01-02T15:04:05Z", s)
	m := timestampPattern.FindStringSubmatchIndex(s)
	if m == nil {
		return time.Time{}, wrong
	}
	leap := s[m[2]:m[3]] == "60"
	if leap {
		s = s[:m[2]] + "59" + s[m[3]:]
	}
	t, err := time.Parse(time.RFC3339, strings.ToUpper(s))
	if err != nil {
		return time.Time{}, wrong
	}
	if !leap {
		return t, nil
	}
	// The end of a month, in UTC, is where a leap second can be (RFC 3339, 5.7).
	next := t.Truncate(time.Second).Add(time.Second)
	if u := next.UTC(); u.Day() != 1 || u.Hour() != 0 || u.Minute() != 0 {
		return time.Time{}, wrong
	}
	return next, nil
}

// plainTimes writes the times in a request's data as Go reads them, where it does not read what RFC 3339 allows.
func plainTimes(tree map[string]any) {
	list, _ := tree["processes"].([]any)
	for _, item := range list {
		p, _ := item.(map[string]any)
		watch, _ := p["watch"].(map[string]any)
		s, _ := watch["startedAt"].(string)
		if _, err := time.Parse(time.RFC3339, s); err == nil {
			continue
		}
		if t, err := parseTimestamp(s); err == nil {
			watch["startedAt"] = t.Format(time.RFC3339Nano)
		}
	}
}
