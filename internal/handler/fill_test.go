package handler

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func secretFiles(t *testing.T, files map[string]string) Secrets {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	return Secrets(dir)
}

func TestFillSecrets(t *testing.T) {
	t.Parallel()
	s := secretFiles(t, map[string]string{"ad/join": "p\"w\n", "ad/user": "<&ü>"})
	for _, test := range []struct{ name, tree, want string }{
		{"nothing to fill", `{ "b" : [1.50, null,{}], "a":"\u00e9" }`, `{ "b" : [1.50, null,{}], "a":"\u00e9" }`},
		{"a member", `{"password":{"_typeName":"CustomizationPassword","value":{"secretRef":"ad","key":"join"},` +
			`"plainText":true}}`,
			`{"password":{"_typeName":"CustomizationPassword","value":"p\"w","plainText":true}}`},
		{"in an array, twice, in any order", `[ {"key":"join","secretRef":"ad"}, {"secretRef":"ad","key":"join"} ,2]`,
			`[ "p\"w", "p\"w" ,2]`},
		{"the whole tree", `{"secretRef":"ad","key":"join"}`, `"p\"w"`},
		{"more members: data", `{"secretRef":"ad","key":"join","more":1}`, `{"secretRef":"ad","key":"join","more":1}`},
		{"an object inside: data", `{"secretRef":"ad","key":{"secretRef":"ad","key":"join"}}`,
			`{"secretRef":"ad","key":"p\"w"}`},
		{"one member: data", `{"secretRef":"ad"}`, `{"secretRef":"ad"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, _, err := s.fill(t.Context(), json.RawMessage(test.tree))
			if err != nil || string(got) != test.want {
				t.Errorf("got %s, %v; want %s", got, err, test.want)
			}
		})
	}

	if _, _, err := s.fill(t.Context(), json.RawMessage(`{"a":{"secretRef":"ad","key":"none"}}`)); err == nil ||
		!missing(err) || strings.Contains(err.Error(), string(s)) {
		t.Errorf("a secret that is not there: %v", err)
	}
	if _, err := s.read(t.Context(), "..", "join"); err == nil {
		t.Error("a name that leads out of the folder was read")
	}
}

// Whatever tree is filled, it stays JSON, and without secrets it stays as it is.
func FuzzFill(f *testing.F) {
	for _, tree := range []string{`{"a":{"secretRef":"ad","key":"join"}}`, `[{"key":"join","secretRef":"ad"},[{}]]`,
		`{"secretRef":"ad","key":"join"}`, `"x"`, `1`, `{"a":`,
		`{"":"","":{"secretRef":"ad","key":"join"}}`} {
		f.Add([]byte(tree))
	}
	dir := f.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "ad"), 0o700); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ad", "join"), []byte("canary"), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, tree []byte) {
		if !json.Valid(tree) {
			return
		}
		filled, secrets, err := Secrets(dir).fill(t.Context(), tree)
		if err != nil {
			return
		}
		if !json.Valid(filled) {
			t.Errorf("%s became %s", tree, filled)
		}
		if len(secrets) == 0 && string(filled) != string(tree) {
			t.Errorf("%s was changed to %s", tree, filled)
		}
	})
}
