package main

import (
	"regexp"
	"strings"
	"unicode/utf8"
)

var (
	colours = regexp.MustCompile("\x1b\\[[0-9;]*m")
	gaps    = regexp.MustCompile(`\S {2,}\S`) // between two columns
)

// seen is the width of a text on the screen.
func seen(s string) int { return utf8.RuneCountInString(colours.ReplaceAllString(s, "")) }

// wrap breaks each line of a text between words where it is wider than the screen, and begins what follows under the
// last column of that line. A word that is wider than the screen stays whole: it may be a path that somebody copies.
func wrap(text string, width int) string {
	if width <= 0 {
		return text
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if seen(line) > width {
			lines[i] = wrapLine(line, width)
		}
	}
	return strings.Join(lines, "\n")
}

func wrapLine(line string, width int) string {
	under := underColumn(colours.ReplaceAllString(line, ""), width)
	var b strings.Builder
	at, spaces, fresh := 0, 0, true // fresh: nothing but spaces is before the next word
	for i, word := range strings.Split(line, " ") {
		if i > 0 {
			spaces++
		}
		n := seen(word)
		if n == 0 {
			b.WriteString(word)
			continue
		}
		if !fresh && at+spaces+n > width {
			b.WriteByte('\n')
			at, spaces = 0, max(min(under, width-n), 0)
		}
		b.WriteString(strings.Repeat(" ", spaces) + word)
		at, spaces, fresh = at+spaces+n, 0, false
	}
	return b.String()
}

// underColumn is where the last column of a line begins, if that leaves a third of the screen for it; else the last
// that does.
func underColumn(line string, width int) int {
	first := len(line) - len(strings.TrimLeft(line, " "))
	under := first
	for _, gap := range gaps.FindAllStringIndex(line, -1) {
		if at := utf8.RuneCountInString(line[:gap[1]]) - 1; at <= width*2/3 {
			under = at
		}
	}
	return under
}

// reflow joins the lines of each paragraph: they were broken for another width.
func reflow(text string) string {
	paragraphs := strings.Split(strings.TrimSpace(text), "\n\n")
	for i, p := range paragraphs {
		paragraphs[i] = strings.Join(strings.Fields(p), " ")
	}
	return strings.Join(paragraphs, "\n\n")
}
