package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/guestflow/guestflow/internal/events"
)

type colour string

const (
	plain  colour = ""
	bold   colour = "1"
	dim    colour = "2"
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
	cyan   colour = "36"
)

// onAny are colours that can be read on black and on white, if a terminal has 256. Of the first eight, green, yellow
// and cyan cannot be read on white.
var onAny = map[colour]colour{red: "38;5;160", green: "38;5;28", yellow: "38;5;130", cyan: "38;5;31"}

// paints are all that paint writes; "0" ends a colour.
var paints = append(slices.Collect(maps.Values(onAny)), "0", bold, dim, red, green, yellow, cyan)

// screen is what a command writes on: lines, and on a terminal one line below them that changes in place.
type screen struct {
	out, err   io.Writer
	json       bool // JSON lines
	live       bool // a terminal on which lines can be written again
	colour     bool
	columns    func() int
	colours256 bool // 256 colours
	errLive    bool // err is a terminal, too
	errColour  bool

	mu     sync.Mutex
	bottom string
	broken error // of the first write that failed
}

// paint adds colour to a text, if the output has colours.
func (s *screen) paint(c colour, text string) string {
	if !s.colour {
		return text
	}
	return s.painted(c, text)
}

func (s *screen) painted(c colour, text string) string {
	if c == plain || text == "" {
		return text
	}
	if other, ok := onAny[c]; ok && s.colours256 {
		c = other
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// printf writes a line; on a terminal it is wrapped.
func (s *screen) printf(format string, args ...any) {
	text := shown(fmt.Sprintf(format, args...), s.colour)
	if s.live {
		text = wrap(text, s.columns())
	}
	s.println(text)
}

// printJSON writes a line of JSON.
func (s *screen) printJSON(v any) error {
	b, err := jsonLine(v)
	if err != nil {
		return err
	}
	s.println(string(b))
	return nil
}

// println writes a line as it is, so that it can be copied.
func (s *screen) println(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bottom != "" { // one write: a screen that is drawn in between would flicker
		line = "\r\x1b[K" + line
	}
	s.write(s.out, line+"\n"+s.bottom)
}

// errorln writes a line to the error output.
func (s *screen) errorln(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text = shown(text, s.errColour)
	if s.errLive {
		text = wrap(text, s.columns())
	}
	if s.bottom == "" {
		s.write(s.err, text+"\n")
		return
	}
	s.write(s.out, "\r\x1b[K")
	s.write(s.err, text+"\n")
	s.write(s.out, s.bottom)
}

// setBottom replaces the line at the bottom; "" removes it.
func (s *screen) setBottom(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if text = shown(text, s.colour); !s.live || text == s.bottom {
		return
	}
	s.write(s.out, "\r"+text+"\x1b[K") // what is the same is not taken away first: it would flicker
	s.bottom = text
}

func (s *screen) write(w io.Writer, text string) {
	if _, err := io.WriteString(w, text); err != nil && s.broken == nil {
		s.broken = err
	}
}

// writeError is the error of the first write that failed, as after the reader of a pipe has gone.
func (s *screen) writeError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// clean removes control characters from text of others: it must not move the cursor, nor change the writing direction.
func clean(s string) string { return events.CleanLines(s) }

// shown removes control characters from a text, except the colours of paint.
func shown(text string, coloured bool) string {
	if !coloured {
		return clean(text)
	}
	var b strings.Builder
	last := 0
	for _, at := range colours.FindAllStringIndex(text, -1) {
		code := text[at[0]+len("\x1b[") : at[1]-len("m")]
		if !slices.Contains(paints, colour(code)) {
			continue
		}
		b.WriteString(clean(text[last:at[0]]) + text[at[0]:at[1]])
		last = at[1]
	}
	return b.String() + clean(text[last:])
}

// flat is clean text in one line.
func flat(s string) string { return strings.Join(strings.Fields(clean(s)), " ") }

// fit shortens a text to a width.
func fit(s string, width int) string {
	if width <= 0 || utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}

// table writes rows in columns; the first row is the head. On a terminal, a last cell that is too long is cut, or, if
// it is prose, wrapped.
func (s *screen) table(rows [][]string, prose bool, paint func(row, column int) colour) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	room := 0
	if s.live {
		room = s.columns()
		narrow(widths, room)
	}
	for r, row := range rows {
		var b strings.Builder
		left := room
		for i, cell := range row {
			if last := i == len(row)-1; last && room > 0 && !prose {
				cell = fit(cell, max(left, 1))
			} else if !last {
				cell = fit(cell, widths[i])
				cell += strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2)
			}
			left -= utf8.RuneCountInString(cell)
			c := bold
			if r > 0 {
				c = paint(r, i)
			}
			b.WriteString(s.paint(c, cell))
		}
		s.printf("%s", strings.TrimRight(b.String(), " "))
	}
}

// narrow makes the widest columns narrower until the last one has some room.
func narrow(widths []int, room int) {
	const least, some = 8, 24 // of a column, and of the last one
	if len(widths) == 0 {
		return
	}
	last := len(widths) - 1
	want := min(widths[last], some)
	for _, w := range widths[:last] {
		want += w + 2
	}
	for ; want > room; want-- {
		widest := 0
		for i, w := range widths[:last] {
			if w > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= least {
			return
		}
		widths[widest]--
	}
}

// jsonLine is v as one line of JSON, without the escapes for HTML.
func jsonLine(v any) ([]byte, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return []byte(strings.TrimSuffix(b.String(), "\n")), nil
}
