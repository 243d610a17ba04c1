package events

import (
	"encoding/json"
	"reflect"
	"slices"
	"testing"
)

// Which steps a request asks for, in the order in which they are done.
func TestPlan(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, asked string
		want        []string
	}{
		{"nothing", `{}`, []string{"check"}},
		{"a customization is verified", `{"customize":{}}`, []string{"check", "customize", "verify"}},
		{"but not where that is turned off", `{"customize":{},"verify":false}`, []string{"check", "customize"}},
		{"the network alone is not", `{"network":{}}`, []string{"check", "network"}},
		{"unless it is asked for", `{"network":{},"verify":{}}`, []string{"check", "network", "verify"}},
		{"everything", `{"processes":[{"name":"a"},{"name":"b"}],"network":{},"customize":{}}`,
			[]string{"check", "customize", "network", "verify", "process a", "process b"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var asked RequestSpec
			if err := json.Unmarshal([]byte(row.asked), &asked); err != nil {
				t.Fatal(err)
			}
			var run Run
			run.Plan(&asked)
			var got []string
			for _, s := range run.Steps() {
				name := s.Name
				if s.Process != "" {
					name += " " + s.Process
				}
				got = append(got, name)
				if *s.State != Pending {
					t.Errorf("step %s is %s at first", name, *s.State)
				}
			}
			if !slices.Equal(got, row.want) {
				t.Errorf("steps %v, want %v", got, row.want)
			}
		})
	}
}

// Every part of a run that has a state is one of its steps: a section that Steps forgets would never be done.
func TestStepsAreComplete(t *testing.T) {
	t.Parallel()
	var run Run
	states := map[*State]string{}
	fields := reflect.ValueOf(&run).Elem()
	for i := range fields.NumField() {
		field := fields.Field(i)
		switch {
		case field.Kind() == reflect.Slice && field.Type().Elem().Kind() == reflect.Struct:
			field.Set(reflect.MakeSlice(field.Type(), 1, 1))
			field = field.Index(0)
		case field.Kind() == reflect.Pointer && field.Type().Elem().Kind() == reflect.Struct:
			field.Set(reflect.New(field.Type().Elem()))
			field = field.Elem()
		default:
			continue
		}
		if at := field.FieldByName("State"); at.IsValid() {
			states[at.Addr().Interface().(*State)] = fields.Type().Field(i).Name
		}
	}
	for _, s := range run.Steps() {
		delete(states, s.State)
	}
	for _, field := range states {
		t.Errorf("Run.%s has a state and is no step", field)
	}
}
