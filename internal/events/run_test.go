package events

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// What a later event stands on does not hold what belongs to one event alone. Each member is of one kind or the other:
// a new one has to be told here.
func TestCarried(t *testing.T) {
	t.Parallel()
	alone := strings.Fields("process waiting waitingFor observed requested checkpoint")
	carried := strings.Fields("run n vcenter vm vmName instanceUuid request status owner acceptedAt deadline " +
		"finishedAt canceledBy check customize network " +
		"verify processes error truncated")
	var full Run
	v := reflect.ValueOf(&full).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Pointer:
			f.Set(reflect.New(f.Type().Elem()))
		case reflect.Slice:
			f.Set(reflect.MakeSlice(f.Type(), 1, 1))
		case reflect.String:
			f.SetString("x")
		case reflect.Int:
			f.SetInt(1)
		case reflect.Bool:
			f.SetBool(true)
		default:
			t.Fatalf("a member of kind %s", f.Kind())
		}
	}
	got := reflect.ValueOf(full.Carried())
	for i := range got.NumField() {
		name, _, _ := strings.Cut(got.Type().Field(i).Tag.Get("json"), ",")
		if !slices.Contains(alone, name) && !slices.Contains(carried, name) {
			t.Errorf("nobody said whether a later event carries %s", name)
		}
		if got.Field(i).IsZero() != slices.Contains(alone, name) {
			t.Errorf("%s: carried is %v", name, !got.Field(i).IsZero())
		}
	}
}
