package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sethvargo/go-envconfig"
)

func TestWrap(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		text  string
		width int
		want  string
	}{
		"fits":           {"a b c", 5, "a b c"},
		"no terminal":    {strings.Repeat("word ", 40), 0, strings.Repeat("word ", 40)},
		"between words":  {"one two three", 8, "one two\nthree"},
		"under a column": {"  ok      one two three four", 20, "  ok      one two\n          three four"},
		"not too far":    {"  12:00:00  a              some words", 30, "  12:00:00  a\n            some words"},
		"colours take no room": {"\x1b[2mwhere\x1b[0m      one two three", 19, "\x1b[2mwhere\x1b[0m      one two\n  " +
			"         three"},
		"a path stays whole":    {"see   /var/log/a/long/path now", 20, "see\n/var/log/a/long/path\n      now"},
		"each line by itself":   {"one two\nthree four five", 11, "one two\nthree four\nfive"},
		"letters are not bytes": {"äöü äöü äöü", 7, "äöü äöü\näöü"},
		"spaces at the front":   {"    one two", 8, "    one\n    two"},
		"wider than the screen": {"aaaaaaaaaaaa b", 5, "aaaaaaaaaaaa\nb"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := wrap(test.text, test.width); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

// written is what a command writes on terminals of a width.
func written(
	t *testing.T,
	width int,
	env map[string]string,
	con func(*console),
	args ...string,
) (out, err string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	c := console{
		in:     strings.NewReader(""),
		out:    &o,
		err:    &e,
		env:    envconfig.MapLookuper(env),
		tty:    true,
		errTTY: true,
		width:  func() int { return width },
	}
	if con != nil {
		con(&c)
	}
	code = run(context.Background(), args, c)
	return o.String(), e.String(), code
}

// On a terminal no line is wider than it, but commands that somebody copies.
func TestHelpFits(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{}, {"submit"}, {"watch"}, {"status"}, {"cancel"}, {"validate"},
		{"deadletters"}, {"deadletters", "replay"}, {"doctor"}, {"sandbox"},
	} {
		out, _, code := written(t, 80, nil, nil, append(args, "--help")...)
		piped, _, _ := written(t, 80, nil, func(c *console) { c.tty = false }, append(args, "--help")...)
		if code != 0 || strings.Join(strings.Fields(out), " ") != strings.Join(strings.Fields(piped), " ") {
			t.Errorf("%v: other words than in a pipe (-pipe +terminal):\n%s", args, cmp.Diff(piped, out))
		}
		_, usage, _ := strings.Cut(out, "Examples:")
		example, rest, _ := strings.Cut(usage, "\n\n")
		for line := range strings.Lines(strings.Replace(out, example, "", 1) + rest) {
			if seen(strings.TrimSuffix(line, "\n")) > 80 {
				t.Errorf("%v: %s", args, line)
			}
		}
	}
}

// Colours are for terminals alone, each of the outputs by itself, and those of 256 are taken where there are as many.
func TestColours(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		env  map[string]string
		con  func(*console)
		want string
	}{
		"terminal":            {nil, nil, "\x1b[31merror\x1b[0m: "},
		"256 colours":         {map[string]string{"TERM": "xterm-256color"}, nil, "\x1b[38;5;160merror\x1b[0m: "},
		"errors into a file":  {nil, func(c *console) { c.errTTY = false }, "error: "},
		"results into a pipe": {nil, func(c *console) { c.tty = false }, "\x1b[31merror\x1b[0m: "},
		"NO_COLOR":            {map[string]string{"NO_COLOR": "1"}, nil, "error: "},
		"dumb":                {map[string]string{"TERM": "dumb"}, nil, "error: "},
	} {
		if _, err, code := written(t, 80, test.env, test.con, "statsu"); code != exitOther ||
			err != test.want+"guestflow: unknown command \"statsu\": is it status? See guestflow --help\n" {
			t.Errorf("%s: %d %q", name, code, err)
		}
	}
	if _, err, _ := written(t, 80, nil, nil, "frobnicate"); !strings.HasSuffix(err,
		"unknown command \"frobnicate\": see guestflow --help\n") {
		t.Errorf("%q", err)
	}
}

// A table's rows fit: wide columns give way, the last cell is cut, or goes on below.
func TestTable(t *testing.T) {
	t.Parallel()
	rows := [][]string{
		{"VM", "NAME", "WHAT"},
		{"vm-1", strings.Repeat("n", 60), "one two three four five six seven eight"},
		{"vm-2", "short", ""},
	}
	for _, prose := range []bool{false, true} {
		var out bytes.Buffer
		s := &screen{out: &out, live: true, columns: func() int { return 60 }}
		s.table(rows, prose, func(int, int) colour { return plain })
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		for _, line := range lines {
			if seen(line) > 60 {
				t.Errorf("%d columns: %s", seen(line), line)
			}
		}
		if cut := strings.Contains(out.String(), "eight"); cut != prose || !strings.Contains(lines[1], "nn…  one") ||
			len(lines) == 3 == prose {
			t.Errorf("prose %t:\n%s", prose, &out)
		}
	}
}
