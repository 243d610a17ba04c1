package vcapi

import (
	"fmt"
	"strings"
	"testing"
)

// TestHide: a secret is hidden while any run holds it, so that the first of two runs to end does not uncover it; the
// service's own secrets, and what effects have sent, stay hidden.
func TestHide(t *testing.T) {
	t.Parallel()
	var m secretStore
	hides := func(secret string, want bool) {
		t.Helper()
		if got := m.redactor().text("x " + secret + " y"); (got == "x *** y") != want {
			t.Errorf("%q: %s", secret, got)
		}
	}

	m.addPermanent("own password", "shared by all")
	first, second := m.hold("of both", "of the first", "shared by all", ""), m.hold(
		"of both", "of both", "of the second",
	)

	hides("of both", true)
	first()
	first() // once is enough
	hides("of the first", false)
	hides("of both", true)
	hides("of the second", true)
	second()
	hides("of both", false)
	hides("of the second", false)
	hides("own password", true)
	hides("shared by all", true)
	m.addRecent("of an effect")
	m.addToken("token")

	for i := range maxRecentEffects - 1 {
		m.addRecent(fmt.Sprintf("act %d.", i))
	}

	hides("of an effect", true)
	m.addRecent("one more")
	hides("of an effect", false)
	for i := range 2 * maxRecentEffects {
		m.addRecent(fmt.Sprintf("secret of act %d.", i))
	}

	hides("own password", true)
	hides("token", true)
	if n := len(m.count); n > 4*maxRecentEffects {
		t.Errorf("%d texts are remembered", n)
	}
}

// TestRedactor: each encoding of a secret is found, the longest first, also where one is part of another or repeats
// itself.
func TestRedactor(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		secrets  secrets
		in, want string
	}{
		{secrets{"a"}, "banana", "b***n***n***"},
		{secrets{"ab", "abc", "abcdefghij"}, "abcdefghij abcdefghi abx", "*** ***defghi ***x"},
		{secrets{"password", "password1"}, "password1password", "******"},
		{
			secrets{`p"<&>ä`}, `p\"<&>ä p\"\u003c\u0026\u003eä p&#34;&lt;&amp;&gt;ä p%22%3C%26%3E%C3%A4`,
			"*** *** *** ***",
		},
		{secrets{""}, "x", "x"},
		{secrets{"aa"}, "aaa", "***a"},
	} {
		if got := tt.secrets.redactor().text(tt.in); got != tt.want {
			t.Errorf("%q in %q: %q, want %q", tt.secrets, tt.in, got, tt.want)
		}
	}

	var m secretStore
	m.addPermanent("known")
	if got := m.redactor("known", "of the call", "").text("known, of the call"); got != "***, ***" {
		t.Errorf("got %q", got)
	}
}

// FuzzRedactor: what is hidden is what strings.Replacer would replace, the longest first.
func FuzzRedactor(f *testing.F) {
	f.Add("secret", "cret", "a secret cret secretcret")
	f.Add("12345678", "123456789", "x123456789y12345678")
	f.Fuzz(func(t *testing.T, a, b, text string) {
		var pairs []string
		all := append(encodings(a), encodings(b)...)
		for len(all) > 0 { // the longest first
			longest := 0
			for i := range all {
				if len(all[i]) > len(all[longest]) {
					longest = i
				}
			}

			if all[longest] != "" {
				pairs = append(pairs, all[longest], hidden)
			}

			all = append(all[:longest], all[longest+1:]...)
		}

		if got, want := (secrets{a, b}).redactor().
			text(text),
			strings.NewReplacer(pairs...).
				Replace(text); got != want {
			t.Errorf("%q, %q in %q: %q, want %q", a, b, text, got, want)
		}
	})
}

// BenchmarkProcessText is what hiding costs of one poll of a guest process, by the secrets that are in use; "raw" is a
// look for its own two alone.
func BenchmarkProcessText(b *testing.B) {
	const command = `"/bin/sh" -c 'exit 3' # gf:abcdefghijklmnopqrstuvwxyz.first`
	b.Run("raw", func(b *testing.B) {
		b.ReportAllocs()
		own := encodings("pässword-of-vm-1<&>")
		for b.Loop() {
			for _, text := range own {
				_ = strings.ReplaceAll(command, text, hidden)
			}
		}
	})

	for _, n := range []int{3, 300, 4096} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var m secretStore
			for i := range n {
				m.hold(fmt.Sprintf("pässword-of-vm-%d<&>", i))
			}
			b.ReportAllocs()
			for b.Loop() {
				_ = m.redactor("pässword-of-vm-1<&>").text(command)
			}
		})
	}

	b.Run("a run comes and goes among 4096", func(b *testing.B) {
		var m secretStore
		for i := range 4096 {
			m.hold(fmt.Sprintf("pässword-of-vm-%d<&>", i))
		}

		b.ReportAllocs()
		for b.Loop() {
			forget := m.hold("another pässword", "and a token")
			_ = m.redactor("another pässword").text(command)
			forget()
		}
	})
}
