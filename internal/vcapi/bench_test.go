package vcapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"testing"
)

// usualVM is the golden answer about a VM, with as many options and devices as a VM usually has.
func usualVM(b *testing.B) []byte {
	b.Helper()
	body, err := os.ReadFile("testdata/vm.answer.json")
	if err != nil {
		b.Fatal(err)
	}
	grow := func(typeName string, n int, element string) {
		var more bytes.Buffer
		for i := range n {
			fmt.Fprintf(&more, element, i, i)
		}
		start := fmt.Sprintf(`{"_typeName":%q,"_value":[`, typeName)
		body = bytes.Replace(body, []byte(start), append([]byte(start), more.Bytes()...), 1)
	}
	grow("ArrayOfOptionValue", 40, `{"_typeName":"OptionValue","key":"pciBridge%d.virtualDev","value":`+
		`{"_typeName":"string","_value":"pcieRootPort-%d"}},`)
	grow("ArrayOfVirtualDevice", 11, `{"_typeName":"VirtualPCIController","key":10%d,"deviceInfo":`+
		`{"_typeName":"Description","label":"Controller","summary":"Controller %d"},"unitNumber":1,"busNumber":0},`)
	body = bytes.Replace(body, []byte("guestinfo.userdata"), []byte("svga.present"), 1)
	if !json.Valid(body) {
		b.Fatal("the answer is no JSON")
	}
	return body
}

// One answer to RetrievePropertiesEx, as a run reads its VM.
func BenchmarkDecodeVM(b *testing.B) {
	body, c := usualVM(b), &Client{}
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		var result retrieveResult
		if err := c.decode(&call{}, &response{body: body}, &result); err != nil {
			b.Fatal(err)
		}
		if vm := decodeVM(result.Objects[0].properties(), redactor{}); vm.Name != "web-1" || len(vm.Cards) != 2 {
			b.Fatalf("%+v", vm)
		}
	}
}

// One answer of the long poll with 100 VMs, the most that there are in one.
func BenchmarkDecodeUpdateSet(b *testing.B) {
	var answer struct {
		Objects []struct {
			PropSet json.RawMessage `json:"propSet"`
		} `json:"objects"`
	}
	if err := json.Unmarshal(usualVM(b), &answer); err != nil {
		b.Fatal(err)
	}
	changes := bytes.ReplaceAll(answer.Objects[0].PropSet,
		[]byte(`"DynamicProperty",`), []byte(`"PropertyChange","op":"assign",`))
	var body bytes.Buffer
	body.WriteString(`{"_typeName":"UpdateSet","version":"1","truncated":false,"filterSet":[{"objectSet":[`)
	for i := range 100 {
		if i > 0 {
			body.WriteByte(',')
		}
		fmt.Fprintf(&body, `{"_typeName":"ObjectUpdate","kind":"enter",`+
			`"obj":{"type":"VirtualMachine","value":"vm-%d"},"changeSet":%s}`, i, changes)
	}
	body.WriteString(`]}]}`)

	c := &Client{}
	b.SetBytes(int64(body.Len()))
	b.ReportAllocs()
	for b.Loop() {
		var set updateSet
		if err := c.decode(&call{}, &response{body: body.Bytes()}, &set); err != nil {
			b.Fatal(err)
		}
		if len(set.FilterSet[0].ObjectSet) != 100 {
			b.Fatal("not all VMs were read")
		}
	}
}

// The error of a call: what it means is found out.
func BenchmarkDecodeError(b *testing.B) {
	body := []byte(`{"_typeName":"TaskInProgress","faultMessage":[{"key":"vim.fault.busy","message":"busy"}],` +
		`"task":{"_typeName":"ManagedObjectReference","type":"Task","value":"task-12"}}`)
	b.ReportAllocs()
	for b.Loop() {
		if e := decodeError(500, body, redactor{}); e.Name != "TaskInProgress" {
			b.Fatalf("%+v", e)
		}
	}
}
