package custspec

import (
	"slices"
	"strings"
)

// nearest is a hint at which of the names may have been meant.
func nearest(name string, among []string) string {
	if near := Nearest(name, among); near != "" {
		return " (did you mean " + near + "?)"
	}
	return ""
}

// Nearest is the most similar name, "" where none is similar enough.
func Nearest(name string, among []string) string {
	const longest = 80
	best, least := "", max(2, len(name)/3)+1
	if len(name) <= 3 { // two changes make any short name of another
		least = 2
	}

	for _, other := range slices.Sorted(slices.Values(among)) {
		if len(name) > longest || len(other) > longest {
			continue
		}
		if d := distance(normalize(name), normalize(other)); d < least {
			best, least = other, d
		}
	}

	return best
}

// normalize removes what people write differently in a name: letter case, '_' and '-'.
func normalize(name string) string {
	return strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(name))
}

// distance is how many bytes have to be inserted, removed or replaced to turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for k := range row {
		row[k] = k
	}

	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for k := range len(b) {
			cost := before
			if a[i] != b[k] {
				cost++
			}
			before = row[k+1]
			row[k+1] = min(cost, row[k]+1, before+1)
		}
	}

	return row[len(b)]
}
